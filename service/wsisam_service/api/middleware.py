"""What surrounds every request, as plain ASGI: its id, its limits, its log line and its metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsisam_service.api.problems import error_response
from wsisam_service.audit.events import CLIENT_GONE_STATUS
from wsisam_service.errors import BodyTooLarge, InvalidRequest, NotReady, Timeout
from wsisam_service.logs import RequestIds, current_request
from wsisam_service.metrics import INFLIGHT, REQUEST_SECONDS, REQUESTS

PRIVATE = "private, no-cache"
"""Whatever is answered here may be a patient's: for the browser's own cache only, which asks again before it shows it,
for tissue that was replaced must not be seen.
"""

T = TypeVar("T")

logger = logging.getLogger("wsisam.access")


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


class RequestMiddleware:
    """Around all but CORS and keys in the path: names the request, turns errors that nobody else did into problem
    documents, keeps answers out of shared caches, logs and counts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        ids = RequestIds.of_headers(headers.get("x-request-id"), headers.get("traceparent"))
        token = current_request.set(ids)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = ids.request_id
                answered.setdefault("cache-control", PRIVATE)
                if _has_two_ends(headers):  # what follows it may be a body to whoever stands in front of us
                    answered["connection"] = "close"
            await send(message)

        start = time.perf_counter()
        try:
            with INFLIGHT.labels("request").track_inprogress():
                await self.app(scope, receive, send_with_id)
        except ClientGone:
            status = CLIENT_GONE_STATUS
        except asyncio.CancelledError:  # the service ends, and did not end this request within its grace
            if not status:
                ending = NotReady("the service is ending", retry_after_s=2)
                await error_response(ending)(scope, receive, send_with_id)
            raise
        except Exception as error:
            if status:
                raise
            await error_response(error)(scope, receive, send_with_id)
        finally:
            _account(scope, status, time.perf_counter() - start)
            current_request.reset(token)


class LimitsMiddleware:
    """Bounds a request's body, also one that tells no length, and its time. `longer_s` has the seconds of paths
    (without a last slash) that may take longer.
    """

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, timeout_s: float, longer_s: Mapping[str, float] | None = None
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.timeout_s = timeout_s
        self.longer_s = longer_s or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _has_two_ends(headers):
            raise InvalidRequest("a body has a length or comes in chunks, not both")
        told = headers.get("content-length", "0")
        if not told.isascii() or not told.isdigit() or int(told) > self.max_body_bytes:
            raise self._too_large()
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise self._too_large()
            return message

        timeout_s = self.longer_s.get(scope["path"].rstrip("/"), self.timeout_s)
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                await self.app(scope, counted_receive, send)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise Timeout(f"the request was not done within {timeout_s:g} s") from error

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"a request body has at most {self.max_body_bytes} bytes")


async def unless_client_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. A client that closes its connection cancels it, and `ClientGone` is raised.

    The request's body must have been read before: what comes after it can only be the end of the connection.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_connection_end(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _has_two_ends(headers: Headers) -> bool:
    """Whether a request's body ends elsewhere for those who believe the length than for those who count chunks."""
    return "content-length" in headers and "transfer-encoding" in headers


async def _connection_end(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _account(scope: Scope, status: int, seconds: float) -> None:
    """One log line and two metrics, by the route's template: a path could name a slide."""
    route = getattr(scope.get("route"), "path", "unmatched")
    status = status or HTTPStatus.INTERNAL_SERVER_ERROR
    REQUESTS.labels(route, str(status)).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
    extra = {"method": scope["method"], "route": route, "status": int(status), "ms": round(seconds * 1e3, 2)}
    logger.info("request", extra=extra)
