"""Tells the audit trail of every request that is about slides or pictures, and of whoever is refused anywhere."""

from __future__ import annotations

import asyncio
import re
import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsisam_service.access.identity import address_of, identity_of
from wsisam_service.api.middleware import ClientGone
from wsisam_service.audit.events import CLIENT_GONE_STATUS, UNKNOWN, AuditEvent
from wsisam_service.audit.trail import AuditTrail
from wsisam_service.errors import problem_of
from wsisam_service.logs import request_id

_SLIDES_AND_PICTURES = ("/v1/slides", "/v1/segment")
_EXTENSION = "/sam"
"""Pictures and weights come to it by POST; what is asked by GET tells nothing of them."""
_CALLER_KEY, _TRANSFER_KEY = "wsisam.caller", "wsisam.transfer"
_SLIDE_ID = re.compile(r"[a-z2-7]{1,64}")


def note_caller(scope: Scope, who: str) -> None:
    """Note in an ASGI scope who asks, where they are known and have no identity here."""
    scope[_CALLER_KEY] = who


def note_transfer(scope: Scope) -> None:
    """Note in an ASGI scope that something is being sent to a PACS."""
    scope[_TRANSFER_KEY] = True


class AuditMiddleware:
    """Outside whatever refuses requests, so that refusals are told too."""

    def __init__(self, app: ASGIApp, trail: AuditTrail) -> None:
        self.app = app
        self.trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self.app(scope, receive, noted_send)
        except ClientGone:
            status = CLIENT_GONE_STATUS
            raise
        except asyncio.CancelledError:  # the service ends, and RequestMiddleware answers so
            status = status or HTTPStatus.SERVICE_UNAVAILABLE
            raise
        except Exception as error:
            status = status or problem_of(error).status
            raise
        finally:
            event = _event(scope, status or HTTPStatus.INTERNAL_SERVER_ERROR, time.perf_counter() - started)
            if _is_told(scope, event):
                self.trail.record(event)


def _is_told(scope: Scope, event: AuditEvent) -> bool:
    path = scope["path"]
    about_slides = path.startswith(_SLIDES_AND_PICTURES) or (path.startswith(_EXTENSION) and scope["method"] == "POST")
    return about_slides or event.credentials_refused or event.status == HTTPStatus.FORBIDDEN


def _event(scope: Scope, status: int, seconds: float) -> AuditEvent:
    """The route by its template and the slide by its id, for a path may hold anything that a client put there."""
    identity = identity_of(scope)
    slide = str(scope.get("path_params", {}).get("slide_id", ""))
    return AuditEvent(
        "request",
        who=scope.get(_CALLER_KEY, UNKNOWN) if identity is None else identity.id,
        role="" if identity is None else identity.role,
        address=address_of(scope),
        route=f"{scope['method']} {getattr(scope.get('route'), 'path', 'unmatched')}",
        slide=slide if _SLIDE_ID.fullmatch(slide) else "",
        transfer=scope.get(_TRANSFER_KEY, False),
        status=status,
        ms=seconds * 1e3,
        request_id=request_id(),
    )
