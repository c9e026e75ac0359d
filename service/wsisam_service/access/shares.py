"""Each identity's fair share: requests a minute, and requests under way that keep the model busy."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wsisam_service.access.identity import Identity
from wsisam_service.errors import RateLimited

MINUTE_S = 60.0
PRUNE_FROM = 1000
"""Identities remembered before those are forgotten who have asked nothing for a minute."""


@dataclass(slots=True)
class _Allowance:
    """What is left of a minute's requests at `at_s`; a minute later all of them are back."""

    left: float
    at_s: float


class Shares:
    """Counts by identity. `per_minute` requests may come at once and then come back evenly; 0 is no limit. `work`
    requests that keep the model busy may be under way at a time. Used by one event loop; `clock` gives seconds.
    """

    def __init__(self, *, per_minute: int, work: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._work = work
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}
        self._working: Counter[str] = Counter()

    def count(self, identity: Identity) -> None:
        """Count one request. Raises `RateLimited`."""
        if not self._per_minute:
            return
        now = self._clock()
        allowance = self._allowances.get(identity.id)
        if allowance is None:
            self._prune(now)
            allowance = self._allowances[identity.id] = _Allowance(self._per_minute, now)
        rate = self._per_minute / MINUTE_S
        allowance.left = min(self._per_minute, allowance.left + (now - allowance.at_s) * rate)
        allowance.at_s = now
        if allowance.left < 1:
            wait_s = math.ceil((1 - allowance.left) / rate)
            raise RateLimited(f"at most {self._per_minute} requests a minute", retry_after_s=max(1, wait_s))
        allowance.left -= 1

    @contextlib.contextmanager
    def working(self, identity: Identity) -> Iterator[None]:
        """Count one request that keeps the model busy as under way. Raises `RateLimited`."""
        if self._working[identity.id] >= self._work:
            raise RateLimited(f"at most {self._work} requests for the model at a time", retry_after_s=1)
        self._working[identity.id] += 1
        try:
            yield
        finally:
            self._working[identity.id] -= 1
            if not self._working[identity.id]:
                del self._working[identity.id]

    def _prune(self, now: float) -> None:
        if len(self._allowances) >= PRUNE_FROM:
            kept = {name: one for name, one in self._allowances.items() if now - one.at_s < MINUTE_S}
            self._allowances = kept
