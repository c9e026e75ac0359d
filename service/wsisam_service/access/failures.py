"""Wrong keys and tokens, counted by the address that they come from."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from wsisam_service.access.allowances import Allowances
from wsisam_service.errors import RateLimited

IPV6_NETWORK = 64
"""Bits of an IPv6 address that count: the rest of it one machine may choose as it likes."""


class Failures:
    """`per_minute` wrong credentials from an address may come at once and then come back evenly; 0 is no limit."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowances = Allowances(per_minute, clock=clock)

    def check(self, address: str) -> None:
        """Raises `RateLimited` where credentials from `address` are not looked at now, right ones neither."""
        if wait_s := self._allowances.wait_s(_place(address)):
            raise RateLimited("too many wrong keys or tokens from this address", retry_after_s=wait_s)

    def count(self, address: str) -> None:
        """Count wrong credentials from `address`."""
        self._allowances.take(_place(address))


def _place(address: str) -> str:
    """What counts as one address."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.ip_network((int(known), IPV6_NETWORK), strict=False))
