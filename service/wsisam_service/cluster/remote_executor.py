"""The executor of a gateway without a model: the calls of `jobs.Executor` over HTTP, to a worker or a router of many.

Jobs go by HR view, each with its key in the header `x-wsisam-view`, so that a router sends a view's clicks to the
worker that holds it. Pixels follow only where a worker asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx

from wsisam_service.cluster.wire import (
    CALL_MEDIA_TYPE,
    DecodeCall,
    EncodeCall,
    failure_of,
    read_decode_reply,
    read_encode_reply,
    write_decode_call,
    write_encode_call,
)
from wsisam_service.errors import InvalidRequest, NotReady, ServiceError, Timeout, Unauthorized, WorkerUnavailable
from wsisam_service.execution.tasks import together
from wsisam_service.jobs import (
    CacheTier,
    DecodeJob,
    DecodeResult,
    PixelsNeeded,
    PixelSource,
    Purges,
    Timings,
    ViewPixels,
)
from wsisam_service.logs import current_request

_log = logging.getLogger(__name__)

VIEW_HEADER = "x-wsisam-view"
CONNECT_S = 2.0
IDLE_S = 30.0
"""Age at which an unused connection is dropped, before the other side does."""
MAX_CONNECTIONS = 256
CALLS_AT_ONCE = 16
"""Views of one request on their way at the same time."""
RETRY_PAUSES_S = (0.05, 0.15, 0.4, 0.8, 1.6)
"""Waits before another try when no worker answers: as long as a router needs to notice that one has gone."""
MAX_ROUNDS = 5
"""Times that a call is sent with more pixels; another worker may take it up meanwhile and lack others."""
INFO_AGE_S, OLD_INFO_AGE_S = 5.0, 60.0
"""Ages at which what is known of the workers is asked for again: behind the caller's back, and before it is used."""
INFO_WAIT_S = 2.0
"""The longest that callers wait for what is asked again: the worker that is asked may be frozen, and theirs not be."""
_DONE = (HTTPStatus.OK, HTTPStatus.CONFLICT)
_ELSEWHERE = (WorkerUnavailable, NotReady)
"""What a worker may answer that another one may not: it is about to end."""
_SAME_STORE = (WorkerUnavailable,)
"""The same for what asks the shared store: there `NotReady` says that the store cannot be reached, by anybody."""


class RemoteExecutor:
    """`jobs.Executor` at `url`; `timeout_s` bounds each HTTP call; `tls` says whom to trust and who we are."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"content-type": CALL_MEDIA_TYPE, **({"authorization": f"Bearer {token}"} if token else {})},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=IDLE_S),
            verify=True if tls is None else tls,
            transport=transport,
        )
        self._info: Mapping[str, Any] | None = None
        self._asked_s = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._wait_until_s = 0.0

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        """See `jobs.Executor`."""
        results: dict[int, DecodeResult | Exception] = {}
        by_view: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            by_view.setdefault(job.hr, []).append(index)
        gate = asyncio.Semaphore(CALLS_AT_ONCE)

        async def decode_view(indices: list[int]) -> None:
            async with gate:
                decoded = await self._decode_view([jobs[index] for index in indices], pixels, timings)
            results.update(zip(indices, decoded, strict=True))

        await together(decode_view(indices) for indices in by_view.values())
        return [results[index] for index in range(len(jobs))]

    async def encode(self, views: Sequence[str], pixels: PixelSource, timings: Timings) -> Mapping[str, CacheTier]:
        """See `jobs.Executor`."""
        waiting = iter(dict.fromkeys(views))
        tiers: dict[str, CacheTier] = {}

        async def encode_views() -> None:
            for key in waiting:
                tiers.update(await self._encode_view(key, pixels, timings))

        await together(encode_views() for _ in range(CALLS_AT_ONCE))
        return tiers

    async def missing(self, views: Sequence[str]) -> list[str]:
        """See `jobs.Executor`. Asks one worker, which knows its own views and those in the shared store."""
        if not views:
            return []
        response = await self._call("POST", "/v1/missing", views[0], write_encode_call(EncodeCall(views)))
        missing: list[str] = response.json()["missing"]
        return missing

    async def purge(self, fingerprint: str) -> int:
        """See `jobs.Executor`. Reaches one worker and the shared store, through which the other workers hear of it."""
        response = await self._call("DELETE", f"/v1/slides/{fingerprint}", fingerprint, b"", _SAME_STORE)
        return int(response.json()["purged"])

    async def purges(self, since: str | None) -> Purges:
        """See `jobs.Executor`. Any worker knows, for the shared store tells; without one there is nothing to hear."""
        path = f"/v1/purges?since={since}" if since else "/v1/purges"
        response = await self._call("GET", path, "", b"", _SAME_STORE)
        told = response.json()
        return Purges(told["slides"], told["mark"])

    async def info(self) -> Mapping[str, Any]:
        """See `jobs.Executor`. At most a minute old, and the last known where no worker answers in time."""
        if self._info is None:
            await self._refresh()
        self._refresh_where_old()
        if self._refreshing is not None and self._age_s() > OLD_INFO_AGE_S:
            await asyncio.wait([self._refreshing], timeout=max(0.0, self._wait_until_s - time.monotonic()))
        assert self._info is not None
        return self._info

    async def ready(self) -> bool:
        """Whether a worker has said what models there are. Later trouble of workers is not the gateway's."""
        if self._info is None:
            with contextlib.suppress(WorkerUnavailable, Timeout):
                await self._refresh()
        self._refresh_where_old()
        return self._info is not None

    async def healthy(self) -> bool:
        """Always: there is no device here."""
        return True

    async def warm_up(self) -> None:
        """Nothing to wait for here: workers may come later."""

    async def aclose(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._http.aclose()

    async def _decode_view(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        """Jobs on one HR view, again with pixels until the worker lacks none."""
        results: dict[int, DecodeResult | Exception] = {}
        waiting = list(range(len(jobs)))
        sent: dict[str, ViewPixels] = {}
        for _ in range(MAX_ROUNDS):
            body = write_decode_call(DecodeCall([jobs[index] for index in waiting], sent))
            reply = read_decode_reply((await self._call("POST", "/v1/decode", jobs[0].hr, body)).content)
            _account(timings, reply.seconds)
            results.update(zip(waiting, reply.results, strict=True))
            needed = {index: result.views for index, result in results.items() if isinstance(result, PixelsNeeded)}
            if not needed:
                break
            failed = await _read(dict.fromkeys(key for keys in needed.values() for key in keys), pixels, sent, timings)
            results |= {index: failed[key] for index, keys in needed.items() for key in keys if key in failed}
            waiting = [index for index, result in results.items() if isinstance(result, PixelsNeeded)]
            if not waiting:
                break
        unanswered = WorkerUnavailable("the workers keep asking for the same pixels")
        return [
            unanswered if isinstance(result := results[index], PixelsNeeded) else result for index in range(len(jobs))
        ]

    async def _encode_view(self, key: str, pixels: PixelSource, timings: Timings) -> Mapping[str, CacheTier]:
        sent: dict[str, ViewPixels] = {}
        for _ in range(2):
            body = write_encode_call(EncodeCall([key], sent))
            reply = read_encode_reply((await self._call("POST", "/v1/encode", key, body)).content)
            _account(timings, reply.seconds)
            if key in reply.tiers:
                return reply.tiers
            failed = await _read(reply.missing, pixels, sent, timings)
            if failed:
                raise failed[key]
        raise WorkerUnavailable("the workers keep asking for the same pixels")

    async def _call(
        self,
        method: str,
        path: str,
        view: str,
        body: bytes,
        elsewhere: tuple[type[ServiceError], ...] = _ELSEWHERE,
    ) -> httpx.Response:
        """The answer of a worker, tried again while none gives one but those of `elsewhere`. Raises the error that a
        worker answers.
        """
        ids = current_request.get()
        headers = {VIEW_HEADER: view, **(ids.headers() if ids else {})}
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                response = await self._http.request(method, path, content=body, headers=headers)
            except httpx.ReadTimeout as error:
                raise Timeout("the worker did not answer in time") from error
            except httpx.TransportError as error:
                failure: ServiceError = WorkerUnavailable("no worker answers")
                failure.__cause__ = error
            else:
                if response.status_code in _DONE:
                    return response
                answered = _failure(response)
                if isinstance(answered, Unauthorized):
                    _log.error("the workers refuse this gateway: WSISAM_WORKER_TOKEN is not theirs")
                    raise WorkerUnavailable("the workers refuse this gateway") from answered
                if not isinstance(answered, elsewhere):
                    raise answered
                failure = answered
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        raise failure

    def _age_s(self) -> float:
        """How long ago the workers were last asked, with or without success."""
        return time.monotonic() - self._asked_s

    def _refresh_where_old(self) -> None:
        if self._info is not None and self._refreshing is None and self._age_s() > INFO_AGE_S:
            self._refreshing = asyncio.create_task(self._refresh_quietly())
            self._wait_until_s = time.monotonic() + INFO_WAIT_S

    async def _refresh(self) -> None:
        try:
            self._info = (await self._call("GET", "/v1/info", "", b"")).json()
        finally:
            self._asked_s = time.monotonic()

    async def _refresh_quietly(self) -> None:
        try:
            await self._refresh()
        except Exception as error:
            _log.warning("no worker tells its models, the last known ones are offered: %r", error)
        finally:
            self._refreshing = None


async def _read(
    keys: Iterable[str], pixels: PixelSource, into: dict[str, ViewPixels], timings: Timings
) -> dict[str, Exception]:
    """Read views `into`; those that cannot be read, with why."""
    started = time.perf_counter()
    wanted = list(keys)
    read = await asyncio.gather(*(pixels(key) for key in wanted), return_exceptions=True)
    timings.span("read", started, time.perf_counter())
    failed: dict[str, Exception] = {}
    for key, view in zip(wanted, read, strict=True):
        if isinstance(view, Exception):
            failed[key] = view
        elif isinstance(view, BaseException):
            raise view
        else:
            into[key] = view
    return failed


def _account(timings: Timings, seconds: Mapping[str, float]) -> None:
    """A worker's seconds, as stretches that end now: those of calls side by side count once."""
    now = time.perf_counter()
    for stage, spent in seconds.items():
        timings.span(stage, now - spent, now)


def _failure(response: httpx.Response) -> Exception:
    """What an answer that is none stands for. A router's own answers are no problem documents."""
    try:
        words = response.json()
        told = isinstance(words, dict) and str(words.get("type", "")).startswith("/problems/")
    except ValueError:
        told = False
    retry_after = response.headers.get("retry-after", "")
    if told:
        return failure_of({**words, "retry_after_s": int(retry_after) if retry_after.isdigit() else None})
    if response.status_code == HTTPStatus.GATEWAY_TIMEOUT:
        return Timeout("no worker answered in time")
    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return InvalidRequest("the router refuses bodies of this size")
    return WorkerUnavailable("no worker answers")
