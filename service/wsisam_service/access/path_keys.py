"""A key in the base path, `/k/{key}/…`, for clients that can send no header, as QuPath's SAM extension.

The key is taken out of the path before anything else sees the request, so that no log, metric, trace, error or audit
record can hold it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

MARK = "/k/"
_SCOPE_KEY = "wsisam.path_key"


class KeyInPath:
    """Outermost ASGI middleware: `/k/{key}/sam/` becomes `/sam/`, and the key a note in the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(MARK):
            key, _, rest = scope["path"].removeprefix(MARK).partition("/")
            scope[_SCOPE_KEY] = key
            scope["path"] = f"/{rest}"
            scope["raw_path"] = quote(scope["path"]).encode()
        await self.app(scope, receive, send)


def path_key_of(scope: MutableMapping[str, Any]) -> str | None:
    """The key that came in the path, None where there was none."""
    key: str | None = scope.get(_SCOPE_KEY)
    return key


def base_path_of(scope: MutableMapping[str, Any]) -> str:
    """What the client wrote before the path that the routes see: `/k/{key}`, or nothing. For links in answers to that
    client, and nowhere else.
    """
    key = path_key_of(scope)
    return "" if key is None else MARK + key
