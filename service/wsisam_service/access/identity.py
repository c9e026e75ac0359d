"""Who a request comes from."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_SCOPE_KEY = "wsisam.identity"


class Role(StrEnum):
    """What an identity may do: an annotator whatever a viewer may, an admin everything; `metrics` reads /metrics."""

    VIEWER = "viewer"
    ANNOTATOR = "annotator"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `id` is `key:NAME`, `oidc:SUBJECT`, or `anonymous` where nobody is asked who they are. `roots` are the
    names of the slide roots that it sees, None for all.
    """

    id: str
    role: Role
    roots: frozenset[str] | None = None


ANONYMOUS = Identity("anonymous", Role.ADMIN)
"""Everybody, where neither keys nor an issuer are configured."""


def address_of(scope: MutableMapping[str, Any]) -> str:
    """The client's address, behind a proxy that is trusted the one that it tells; empty where there is none."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def set_identity(scope: MutableMapping[str, Any], identity: Identity) -> None:
    """Note in an ASGI scope who the request comes from."""
    scope[_SCOPE_KEY] = identity


def identity_of(scope: MutableMapping[str, Any]) -> Identity | None:
    """Who the request comes from; None before that is known, on routes that are open to all, and with 401."""
    found: Identity | None = scope.get(_SCOPE_KEY)
    return found
