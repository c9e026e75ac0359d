"""Where nobody is asked who they are, only this machine's own names are answered to.

A page that the user has open elsewhere can let its own name lead to 127.0.0.1 (DNS rebinding) and would then be, to the
browser, a page of this service. What such a page cannot change is the name in the Host header.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from wsisam_service.errors import Forbidden


def install(app: FastAPI) -> None:
    """Let `app` answer to local names only; inside its other middleware, so that refusals are logged and told."""
    app.user_middleware.append(Middleware(LocalHosts))


class LocalHosts:
    """ASGI middleware: refuses requests for a host that is neither an address nor localhost."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_local(Headers(scope=scope).get("host", "")):
            raise Forbidden(
                "nobody is asked who they are here, so only localhost and addresses are answered to; give serve "
                "--keys, or --insecure if something in front of it asks"
            )
        await self.app(scope, receive, send)


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
