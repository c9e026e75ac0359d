"""The executor behind HTTP, for gateways only: decode, encode, missing, purges and info, with a shared token.

What a call lacks comes back as 409 with the keys of the views whose pixels should be sent along; what could be answered
already is in the same body. Like every call it is idempotent: routers may repeat it on another worker.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from wsisam_service.api import problems
from wsisam_service.api.bodies import JSON_MEDIA_TYPE, json_response
from wsisam_service.api.middleware import LimitsMiddleware, RequestMiddleware, unless_client_gone
from wsisam_service.cluster.wire import (
    DecodeReply,
    EncodeReply,
    read_decode_call,
    read_encode_call,
    write_decode_reply,
    write_encode_reply,
)
from wsisam_service.errors import NotReady, Unauthorized, WorkerUnavailable
from wsisam_service.jobs import FIRST_MARK, Executor, PixelsNeeded, Purges, Timings, ViewPixels
from wsisam_service.settings import Settings


class SentPixels:
    """A `jobs.PixelSource` over what came with the call; it remembers what it was asked for and did not have."""

    def __init__(self, pixels: Mapping[str, ViewPixels]) -> None:
        self._pixels = pixels
        self.missing: dict[str, None] = {}

    async def __call__(self, key: str) -> ViewPixels:
        try:
            return self._pixels[key]
        except KeyError:
            self.missing[key] = None
            raise PixelsNeeded((key,)) from None


def create_worker(settings: Settings, executor: Executor) -> FastAPI:
    """The worker's application over `executor`, which it warms up at start and closes at the end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            await executor.warm_up()
            yield
        finally:
            await executor.aclose()

    app = FastAPI(title="WSI-SAM worker", lifespan=lifespan, openapi_url=None)
    app.include_router(_open_routes(executor))
    app.include_router(_calls(executor), dependencies=[Depends(_token_check(settings.worker_token.get_secret_value()))])
    problems.install(app)
    app.add_middleware(LimitsMiddleware, max_body_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
    app.add_middleware(RequestMiddleware)
    return app


def _open_routes(executor: Executor) -> APIRouter:
    """What probes and Prometheus ask, without a token; nothing of a slide is in it."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> PlainTextResponse:
        if not await executor.healthy():
            raise NotReady("the device has failed, only a restart helps")
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    async def readyz() -> PlainTextResponse:
        if not await executor.ready():
            raise NotReady("the model is not warm", retry_after_s=2)
        return PlainTextResponse("ready\n")

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _calls(executor: Executor) -> APIRouter:
    """The verbs of `jobs.Executor`."""
    router = APIRouter(prefix="/v1")

    @router.post("/decode")
    async def decode(request: Request) -> Response:
        call = read_decode_call(await request.body())
        sent, timings = SentPixels(call.pixels), Timings()
        results = await unless_client_gone(request, executor.decode(call.jobs, sent, timings))
        for result in results:
            if isinstance(result, WorkerUnavailable):
                raise result  # a router sends all of it to another worker
        # A job tells the first view that it lacks; the pair's other one is asked for at the same time.
        results = [
            PixelsNeeded(tuple(key for key in (job.hr, job.lr) if key in sent.missing))
            if isinstance(result, PixelsNeeded)
            else result
            for job, result in zip(call.jobs, results, strict=True)
        ]
        body = write_decode_reply(DecodeReply(results, timings.seconds))
        return Response(body, _status(sent), media_type=JSON_MEDIA_TYPE)

    @router.post("/encode")
    async def encode(request: Request) -> Response:
        call = read_encode_call(await request.body())
        sent, timings = SentPixels(call.pixels), Timings()
        try:
            tiers = await unless_client_gone(request, executor.encode(call.views, sent, timings))
        except PixelsNeeded:
            tiers = {}
        reply = EncodeReply(tiers, list(sent.missing), timings.seconds)
        return Response(write_encode_reply(reply), _status(sent), media_type=JSON_MEDIA_TYPE)

    @router.post("/missing")
    async def missing(request: Request) -> Response:
        return json_response({"missing": await executor.missing(read_encode_call(await request.body()).views)})

    @router.delete("/slides/{fingerprint}")
    async def purge(fingerprint: str) -> Response:
        return json_response({"purged": await executor.purge(fingerprint)})

    @router.get("/purges")
    async def purges(since: Annotated[str | None, Query(pattern=r"^\d{1,20}(-\d{1,20})?$")] = None) -> Response:
        found = await executor.purges(since) or Purges((), since or FIRST_MARK)
        return json_response({"slides": found.slides, "mark": found.mark})

    @router.get("/info")
    async def info() -> Response:
        return json_response(await executor.info())

    return router


def _status(sent: SentPixels) -> int:
    return HTTPStatus.CONFLICT if sent.missing else HTTPStatus.OK


def _token_check(token: str) -> Callable[[Request], Awaitable[None]]:
    expected = f"Bearer {token}".encode()

    async def check(request: Request) -> None:
        if token and not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected):
            raise Unauthorized("a worker answers its gateways only")

    return check
