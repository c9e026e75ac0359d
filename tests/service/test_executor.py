"""The executor around a model of numpy: what is encoded when, who waits for whom, and what survives trouble."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from safetensors.numpy import save

from wsisam_model.config import MODELS
from wsisam_model.prompts import MAX_POINTS, Prompt
from wsisam_service.errors import InvalidRequest, Overloaded, RefineExpired, UnknownModel
from wsisam_service.execution import refine, view_loader
from wsisam_service.execution.backend import DecodeItem
from wsisam_service.execution.device_cache import DeviceCache, ReadyView
from wsisam_service.execution.executor import LOOKS_AT_A_TIME, LocalExecutor
from wsisam_service.execution.postprocess import draw
from wsisam_service.execution.refine import RefineState, RefineStates
from wsisam_service.jobs import FIRST_MARK, DecodedMask, DecodeJob, DecodeResult, Purges, Rle, Timings, ViewPixels
from wsisam_service.masks import rle
from wsisam_service.stores.embeddings import MemoryStore, TieredStore
from wsisam_service.stores.opening import open_store

SIDE = 256
PREFIX = "lite_medsam:79d8c9dca6db:1"
HR, LR = f"{PREFIX}:aa:2:4:8", f"{PREFIX}:aa:3:4:8"
BOX = Prompt(box=(64.0, 80.0, 192.0, 176.0))
TIMEOUT_S = 20.0


@dataclass(eq=False)
class FakeEmbedding:
    grey: int
    view_size: tuple[int, int] = (SIDE, SIDE)

    def to_bytes(self) -> bytes:
        return b"fake" + bytes([self.grey])


KIDNEY = 7
"""Grey level of the views that adapters called "kidney" know."""


@dataclass(eq=False)
class FakeView:
    grey: int
    nbytes: int = 1000


@dataclass(frozen=True)
class FakeDecoded:
    logits: np.ndarray
    predicted_iou: np.ndarray
    sam_logits_hr: np.ndarray
    sam_logits_lr: np.ndarray | None
    lr_logits: np.ndarray | None


@dataclass(frozen=True)
class FakeAdapters:
    name: str = "default"
    sha256: str = "ab" * 32
    licence: str = "CC0"
    uses_lr: bool = True
    prompts: tuple[str, ...] = ()
    knows_tissue: bool = False


class FakeModel:
    """Segments the prompt's box. Its device can be held, and made to fail."""

    config = MODELS["lite_medsam"]
    key_prefix = PREFIX
    device, precision, engine, warnings = "cpu", "float32", "numpy", ()
    captures_graphs = False

    def __init__(self) -> None:
        self.adapters: FakeAdapters | None = FakeAdapters()
        self.own_adapters: list[FakeAdapters] = []
        self.encoded: list[int] = []
        self.calls: list[tuple[str, int]] = []
        self.decoded: list[DecodeItem[FakeView]] = []
        self.busy = threading.Event()
        self.release = threading.Event()
        self.release.set()
        self.specks: list[tuple[int, int]] = []
        self.trouble: Callable[[Sequence[DecodeItem[FakeView]]], None] = lambda items: None

    def hold(self) -> None:
        self.busy.clear()
        self.release.clear()

    def _call(self, kind: str, count: int) -> None:
        self.calls.append((kind, count))
        self.busy.set()
        assert self.release.wait(TIMEOUT_S)

    def encode(self, images: Sequence[ViewPixels]) -> list[FakeEmbedding]:
        self._call("encode", len(images))
        self.encoded += [int(image[0, 0, 0]) for image in images]
        return [FakeEmbedding(int(image[0, 0, 0])) for image in images]

    def load(self, blob: bytes) -> FakeEmbedding:
        if not blob.startswith(b"fake"):
            raise ValueError(blob)
        return FakeEmbedding(blob[4])

    def prepare(self, embedding: FakeEmbedding) -> FakeView:
        return FakeView(embedding.grey)

    def decode(self, items: Sequence[DecodeItem[FakeView]]) -> list[FakeDecoded]:
        self._call("decode", len(items))
        self.trouble(items)
        self.decoded += items
        for item in items:
            item.hr.nbytes = 1500  # the fused map
        return [self._decode(item) for item in items]

    def adapters_of(self, item: DecodeItem[FakeView]) -> FakeAdapters | None:
        if item.frozen or self.adapters is None:
            return None
        wanted = item.adapters or ("kidney" if item.hr.grey == KIDNEY else None)
        return next((own for own in self.own_adapters if own.name == wanted), self.adapters)

    def _decode(self, item: DecodeItem[FakeView]) -> FakeDecoded:
        x0, y0, x1, y1 = map(int, item.prompt.box or (0, 0, 1, 1))
        logits = np.full((256, 256), -5.0, np.float32)
        logits[y0:y1, x0:x1] = 5.0
        for x, y in self.specks:
            logits[y, x] = 5.0
        count = 3 if item.multimask else 1
        lr = None if item.lr is None or item.frozen else logits
        return FakeDecoded(
            np.stack([logits] * count), np.linspace(1.2, 0.5, count), logits + 0.5, lr, lr if item.lr_mask else None
        )

    def upscale(self, logits: np.ndarray, view_size: tuple[int, int]) -> np.ndarray:
        assert view_size == (SIDE, SIDE)
        return logits


class Pixels:
    """Views whose grey level is the key's ladder step; counts reads, and can be held or fail."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.error: Exception | None = None

    async def __call__(self, key: str) -> ViewPixels:
        self.reads.append(key)
        self.started.set()
        await self.release.wait()
        if self.error is not None:
            raise self.error
        return np.full((SIDE, SIDE, 3), int(key.split(":")[4]), np.uint8)


OPTIONS = {"l1_bytes": 100_000, "max_encodes": 64, "max_decodes": 1024, "encode_batch": 4, "decode_batch": 16}


class SlowStore(MemoryStore):
    """Keeps what is put only once it is let; `told` is what has happened to it."""

    def __init__(self) -> None:
        super().__init__(1_000_000)
        self.begun, self.release = asyncio.Event(), asyncio.Event()
        self.told: list[str] = []

    async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
        self.begun.set()
        await self.release.wait()
        await super().put(key, blob, ttl_s)
        self.told.append("stored")

    async def aclose(self) -> None:
        self.told.append("closed")


class ClaimedStore(SlowStore):
    """Shared with other processes, who wait for a view until the claim on it is given back."""

    async def claim(self, key: str) -> GivenClaim:
        self.told.append("claimed")
        return GivenClaim(self.told)

    async def announce_purge(self, part: str) -> bool:
        return True

    async def purges_since(self, mark: str | None, *, by_others: bool) -> Purges:
        return Purges((), FIRST_MARK)


@dataclass
class GivenClaim:
    told: list[str]

    async def release(self) -> None:
        self.told.append("given back")


class Rig:
    """An executor with its parts in sight."""

    def __init__(self, store: TieredStore | None = None, refine: TieredStore | None = None, **options: int) -> None:
        self.model = FakeModel()
        self.pixels = Pixels()
        self.now = 0.0
        self.store = store or TieredStore([MemoryStore(1_000_000)])
        refine = refine or TieredStore([MemoryStore(2_000_000, clock=lambda: self.now)], ttl_s=3600)
        self.executor = LocalExecutor([self.model], self.store, refine, **(OPTIONS | options))

    async def decode(self, *jobs: DecodeJob) -> list[DecodeResult | Exception]:
        return await self.executor.decode(jobs, self.pixels, Timings())

    async def one(self, job: DecodeJob) -> DecodeResult:
        (result,) = await self.decode(job)
        assert isinstance(result, DecodeResult), result
        return result


def job(hr: str = HR, lr: str | None = LR, prompt: Prompt = BOX, **options: Any) -> DecodeJob:
    return DecodeJob(hr, lr, prompt, **options)


def views(index: int) -> tuple[str, str]:
    return f"{PREFIX}:bb:2:{index}:0", f"{PREFIX}:bb:3:{index}:0"


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until `condition`; a thread may have to come round."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # the condition is a queue that a thread fills
            await asyncio.sleep(0.001)


async def busy(model: FakeModel) -> None:
    assert await asyncio.to_thread(model.busy.wait, TIMEOUT_S)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.model.release.set()
    await rig.executor.aclose()


async def test_a_click_gives_the_mask_the_borders_and_where_the_views_came_from(rig: Rig) -> None:
    timings = Timings()
    (first,) = await rig.executor.decode([job(prompt=Prompt(box=(0, 80, 192, 256)))], rig.pixels, timings)
    assert isinstance(first, DecodeResult)
    mask = rle.decode(first.masks[0].mask)
    assert mask.shape == (SIDE, SIDE)
    assert mask[80:, :192].all()
    assert mask.sum() == 176 * 192
    assert first.touches == (True, False, False, True)
    assert first.masks[0].predicted_iou == 1.0  # the model's 1.2 is no IoU
    assert (first.cache_hr, first.cache_lr, first.lr_mask) == ("encoded", "encoded", None)
    assert set(timings.seconds) == {"read", "queue", "encode", "decode", "mask"}
    again = await rig.one(job())
    assert (again.cache_hr, again.cache_lr) == ("l1", "l1")


async def test_specks_are_drawn_only_where_somebody_clicked_also_in_an_earlier_turn(rig: Rig) -> None:
    rig.model.specks = [(3, 250), (250, 3)]
    first = await rig.one(job(prompt=replace(BOX, points=((3.0, 250.0),), labels=(1,))))
    plain = await rig.one(job())
    assert rle.decode(first.masks[0].mask).sum() == rle.decode(plain.masks[0].mask).sum() + 1
    assert rle.decode(first.masks[0].mask)[250, 3]
    assert not any(plain.touches)
    click = Prompt(points=((250.0, 3.0),), labels=(1,))
    second = await rig.one(job(prompt=click, refine_from=first.refine_id))
    assert [rle.decode(second.masks[0].mask)[y, x] for x, y in rig.model.specks] == [True, True]


def test_a_mask_is_where_the_logits_are_above_zero() -> None:
    nothing = np.zeros((256, 256), np.float32)
    drawn = draw(FakeModel(), FakeDecoded(nothing[None], np.array([0.5]), nothing, nothing, nothing), (SIDE, SIDE), BOX)
    assert drawn.lr_mask is not None
    assert not rle.decode(drawn.masks[0].mask).any()
    assert not rle.decode(drawn.lr_mask).any()


async def test_multimask_and_lr_mask_come_when_asked_for(rig: Rig) -> None:
    result = await rig.one(job(multimask=True, lr_mask=True))
    assert len(result.masks) == 3
    assert result.lr_mask == result.masks[0].mask


async def test_the_frozen_model_neither_reads_nor_encodes_the_wider_view(rig: Rig) -> None:
    result = await rig.one(job(adapters="none", lr_mask=True))
    assert rig.pixels.reads == [HR]
    assert (result.cache_lr, result.lr_mask) == (None, None)
    assert rig.model.decoded[0].frozen
    assert not rig.model.decoded[0].lr_mask, "there is nothing to draw it from"
    rig.model.adapters = None
    assert (await rig.one(job())).cache_lr is None
    assert rig.pixels.reads == [HR]


async def test_a_view_goes_to_the_adapters_that_know_its_tissue_or_that_are_named(rig: Rig) -> None:
    rig.model.own_adapters = [FakeAdapters(name="kidney", uses_lr=False), FakeAdapters(name="liver")]
    kidney = job(f"{PREFIX}:bb:{KIDNEY}:0:0", f"{PREFIX}:bb:{KIDNEY + 1}:0:0")
    asked = [
        kidney,
        replace(kidney, adapters="default"),
        replace(kidney, adapters="liver"),
        job(),
        job(adapters="none"),
    ]
    results = await rig.decode(*asked, replace(job(), adapters="kidney"))
    drawn_by = [result.adapters for result in results if isinstance(result, DecodeResult)]
    assert drawn_by == ["kidney", "kidney", "liver", "default", "none", "kidney"]
    wide = {item.adapters: item.lr is not None for item in rig.model.decoded if item.hr.grey == KIDNEY}
    assert wide == {"kidney": False, "liver": True}
    (stranger,) = await rig.decode(replace(kidney, adapters="bone"))
    assert isinstance(stranger, UnknownModel)


async def test_adapters_that_do_not_use_the_wider_view_leave_it_unread_unless_its_mask_is_asked_for(rig: Rig) -> None:
    rig.model.adapters = FakeAdapters(uses_lr=False)
    result = await rig.one(job())
    assert rig.pixels.reads == [HR]
    assert result.cache_lr is None
    assert (await rig.one(job(lr_mask=True))).lr_mask is not None
    assert rig.pixels.reads == [HR, LR]


async def test_a_hundred_clicks_on_a_new_view_encode_it_once(rig: Rig) -> None:
    results = await asyncio.gather(*(rig.one(job()) for _ in range(100)))
    assert sorted(rig.pixels.reads) == [HR, LR]
    assert sorted(rig.model.encoded) == [2, 3]
    assert {result.cache_hr for result in results} == {"encoded"}


async def test_a_view_is_not_encoded_twice_while_it_is_being_stored() -> None:
    rig = Rig(l1_bytes=0)
    await rig.one(job())
    await rig.one(job())
    await rig.executor.aclose()
    assert sorted(rig.model.encoded) == [2, 3]


async def test_waiting_prompts_of_many_requests_go_in_one_call(rig: Rig) -> None:
    await rig.one(job())
    rig.model.hold()
    first = asyncio.create_task(rig.one(job()))
    await busy(rig.model)
    rest = [asyncio.create_task(rig.decode(job(), job())) for _ in range(4)]
    await until(lambda: len(rig.executor._decodes.waiting) == 8)
    rig.model.release.set()
    await asyncio.gather(first, *rest)
    assert rig.model.calls[-2:] == [("decode", 1), ("decode", 8)]


async def test_prompts_of_one_request_go_together_even_on_an_idle_device(rig: Rig) -> None:
    await rig.one(job())
    await rig.decode(*[job()] * 16)
    assert rig.model.calls[-1] == ("decode", 16)


async def test_prompts_on_many_known_views_go_together() -> None:
    rig = Rig(max_encodes=8)
    known = [views(index) for index in range(16)]
    await rig.executor.encode([key for pair in known for key in pair], rig.pixels, Timings())
    rig.model.hold()
    first = asyncio.create_task(rig.one(job(*known[0])))
    await busy(rig.model)
    rest = asyncio.create_task(rig.decode(*(job(*pair) for pair in known)))
    await until(lambda: len(rig.executor._decodes.waiting) == 16)
    rig.model.release.set()
    await asyncio.gather(first, rest)
    assert rig.model.calls[-1] == ("decode", 16)
    await rig.executor.aclose()


async def test_decodes_overtake_waiting_encodes(rig: Rig) -> None:
    await rig.one(job())
    rig.model.calls.clear()
    rig.model.hold()
    new = asyncio.create_task(rig.executor.encode([views(0)[0]], rig.pixels, Timings()))
    await busy(rig.model)
    more = asyncio.create_task(rig.executor.encode([views(1)[0]], rig.pixels, Timings()))
    await until(lambda: len(rig.executor._encodes.waiting) == 1)
    click = asyncio.create_task(rig.one(job()))
    await until(lambda: len(rig.executor._decodes.waiting) == 1)
    rig.model.release.set()
    await asyncio.gather(new, more, click)
    assert [kind for kind, _ in rig.model.calls] == ["encode", "decode", "encode"]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    rig = Rig(max_decodes=2)
    await rig.one(job())
    rig.model.hold()
    rig.executor._decodes.seconds_per_item = 3.0
    waiting = asyncio.create_task(rig.decode(job(), job()))
    await busy(rig.model)
    with pytest.raises(Overloaded) as refused:
        await rig.decode(job())
    assert refused.value.retry_after_s == 6
    rig.model.release.set()
    await waiting
    await rig.one(job())
    await rig.executor.aclose()


async def test_full_encodes_refuse_new_views_but_not_clicks_on_known_ones() -> None:
    rig = Rig(max_encodes=1)
    await rig.one(job(lr=None))
    rig.pixels.release.clear()
    rig.pixels.started.clear()
    waiting = asyncio.create_task(rig.one(job(views(0)[0], None)))
    await rig.pixels.started.wait()
    with pytest.raises(Overloaded):
        await rig.decode(job(views(1)[0], None))
    await rig.one(job(lr=None))
    rig.pixels.release.set()
    await waiting
    await rig.executor.aclose()


async def test_looking_for_thousands_of_views_lets_others_have_their_turn(rig: Rig) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    wanted = [view for index in range(1000) for view in views(index)]
    assert await rig.executor.missing(wanted) == wanted
    turning.cancel()
    assert turns >= len(wanted) // LOOKS_AT_A_TIME


async def test_a_prewarm_of_thousands_of_views_is_at_few_of_them_at_once(rig: Rig) -> None:
    rig.pixels.release.clear()
    before = len(asyncio.all_tasks())
    prewarm = asyncio.create_task(
        rig.executor.encode([views(index)[0] for index in range(1000)], rig.pixels, Timings())
    )
    await rig.pixels.started.wait()
    assert len(asyncio.all_tasks()) - before < 100
    prewarm.cancel()
    await asyncio.gather(prewarm, return_exceptions=True)


async def test_what_the_tiers_hold_is_told_whoever_filled_them(rig: Rig) -> None:
    def told(tier: str) -> float | None:
        return REGISTRY.get_sample_value("wsisam_cache_bytes", {"tier": tier})

    assert told("memory") == 0
    await rig.one(job())
    await until(lambda: told("memory") == rig.store.sizes()["memory"] > 0)
    await rig.executor.purge("aa")
    assert told("memory") == 0


async def test_one_request_for_more_views_than_the_queue_holds_is_served() -> None:
    rig = Rig(max_encodes=8)
    results = await rig.decode(*(job(*views(index)) for index in range(30)))
    assert all(isinstance(result, DecodeResult) for result in results)
    await rig.executor.aclose()


async def test_cancelling_a_request_drops_its_reads_and_its_queued_work(rig: Rig) -> None:
    rig.pixels.release.clear()
    click = asyncio.create_task(rig.one(job()))
    await rig.pixels.started.wait()
    click.cancel()
    await asyncio.wait([click])
    rig.pixels.release.set()
    await rig.one(job(lr=None))
    assert rig.model.calls == [("encode", 1), ("decode", 1)]
    assert rig.pixels.reads.count(HR) == 2
    rig.model.hold()
    running = asyncio.create_task(rig.one(job(lr=None)))
    await busy(rig.model)
    queued = asyncio.create_task(rig.decode(*[job(lr=None)] * 5))
    await until(lambda: len(rig.executor._decodes.waiting) == 5)
    queued.cancel()
    await asyncio.wait([queued])
    assert not rig.executor._decodes.waiting
    rig.model.release.set()
    await running
    assert rig.model.calls == [("encode", 1), ("decode", 1), ("decode", 1)]


async def test_who_leaves_does_not_take_the_others_encode_along(rig: Rig) -> None:
    rig.pixels.release.clear()
    leaves, stays = (asyncio.create_task(rig.one(job())) for _ in range(2))
    await rig.pixels.started.wait()
    leaves.cancel()
    await asyncio.wait([leaves])
    rig.pixels.release.set()
    assert (await stays).cache_hr == "encoded"
    assert sorted(rig.pixels.reads) == [HR, LR]


async def test_an_encode_that_has_started_is_kept_although_nobody_waits(rig: Rig) -> None:
    rig.model.hold()
    click = asyncio.create_task(rig.one(job(lr=None)))
    await busy(rig.model)
    click.cancel()
    await asyncio.wait([click])
    rig.model.release.set()
    await rig.one(job(lr=None))
    assert rig.pixels.reads == [HR]


async def test_a_read_that_fails_for_one_is_tried_by_the_other(rig: Rig) -> None:
    broken = Pixels()
    broken.error = OSError("connection lost")
    broken.release.clear()
    first = asyncio.create_task(rig.executor.decode([job(lr=None)], broken, Timings()))
    await broken.started.wait()
    second = asyncio.create_task(rig.one(job(lr=None)))
    await until(lambda: rig.executor._views._flights[HR].waiters == 2)
    broken.release.set()
    assert [type(result) for result in await first] == [OSError]
    assert (await second).cache_hr == "encoded"


async def test_one_failing_prompt_or_view_does_not_fail_the_others(rig: Rig) -> None:
    def trouble(items: Sequence[DecodeItem[FakeView]]) -> None:
        if any(item.prompt.box is None for item in items):
            raise ValueError("no box")

    rig.model.trouble = trouble
    unknown = "vit_b:000000000000:1:aa:2:4:8"
    good, bad, strange, expired, other = await rig.decode(
        job(),
        job(prompt=Prompt(points=((3.0, 4.0),), labels=(1,))),
        job(hr=unknown, lr=None),
        job(refine_from="00" * 16),
        job(adapters="mine"),
    )
    assert isinstance(good, DecodeResult)
    assert [type(error) for error in (bad, strange, expired, other)] == [
        ValueError,
        UnknownModel,
        RefineExpired,
        UnknownModel,
    ]


async def test_a_key_of_other_weights_is_refused_not_answered(rig: Rig) -> None:
    stale = HR.replace("79d8c9dca6db", "000000000000")
    assert [type(result) for result in await rig.decode(job(hr=stale, lr=None))] == [UnknownModel]
    with pytest.raises(UnknownModel):
        await rig.executor.encode([stale], rig.pixels, Timings())
    with pytest.raises(UnknownModel):
        await rig.executor.missing([stale])


async def test_device_memory_for_views_stays_within_its_bound_as_they_grow() -> None:
    rig = Rig(l1_bytes=5_000)
    for index in range(6):
        await rig.one(job(views(index)[0], None))
        assert rig.executor._cache.size_bytes <= 5_000
    assert rig.executor._cache.size_bytes == 4_500  # three of 1,500
    assert (await rig.one(job(views(0)[0], None))).cache_hr == "memory"
    assert len(rig.pixels.reads) == 6
    await rig.executor.aclose()


def test_views_used_longest_ago_leave_device_memory_first() -> None:
    cache = DeviceCache[FakeView](3_000)

    def put(key: str, nbytes: int = 1_000) -> None:
        cache.put(key, ReadyView(FakeView(0, nbytes), (SIDE, SIDE)))

    for key in "abc":
        put(key)
    assert cache.get("a") is not None
    put("c")  # again, in its own place
    assert cache.size_bytes == 3_000
    put("d")
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    put("larger than all", 3_001)
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    cache.shrink()
    assert [key for key in "abcd" if key in cache] == ["d"], "at most half is kept"
    put("as large as all", 3_000)
    assert "as large as all" in cache
    assert cache.size_bytes == 3_000


async def test_what_a_decode_adds_to_the_wider_view_counts_too(rig: Rig) -> None:
    def grow(items: Sequence[DecodeItem[FakeView]]) -> None:
        for item in items:
            assert item.lr is not None
            item.lr.nbytes = 1_200

    rig.model.trouble = grow
    await rig.one(job())
    assert rig.executor._cache.size_bytes == 1_500 + 1_200


async def test_a_device_without_memory_refuses_the_whole_request(rig: Rig) -> None:
    def trouble(items: Sequence[DecodeItem[FakeView]]) -> None:
        if any(item.prompt.box is None for item in items):
            raise MemoryError

    rig.model.trouble = trouble
    with pytest.raises(Overloaded):
        await rig.decode(job(), job(prompt=Prompt(points=((3.0, 4.0),), labels=(1,))))


async def test_what_a_decode_adds_counts_although_its_client_has_left(rig: Rig) -> None:
    await rig.executor.encode([HR], rig.pixels, Timings())
    rig.model.hold()
    click = asyncio.create_task(rig.one(job(lr=None)))
    await busy(rig.model)
    click.cancel()
    await asyncio.wait([click])
    rig.model.release.set()
    await until(lambda: rig.executor._cache.size_bytes == 1_500)


async def test_a_failing_store_and_a_damaged_blob_are_misses(tmp_path: Path) -> None:
    class Broken(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            raise ConnectionError

        async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
            raise ConnectionError

    rig = Rig(TieredStore([Broken(1000)]))
    assert (await rig.one(job())).cache_hr == "encoded"
    await rig.executor.aclose()

    rig = Rig()
    await rig.store.put(HR, b"something else")
    assert (await rig.one(job())).cache_hr == "encoded"
    await rig.executor.aclose()


async def test_embeddings_survive_a_restart_in_a_folder(tmp_path: Path) -> None:
    spec = f"folder:{tmp_path}"
    for expected in ("encoded", "folder"):
        rig = Rig(open_store(spec, namespace="emb", memory_bytes=100_000, folder_bytes=100_000))
        result = await rig.one(job())
        assert (result.cache_hr, result.cache_lr) == (expected, expected)
        await rig.executor.aclose()


async def test_encode_reports_missing_and_purge(rig: Rig) -> None:
    assert await rig.executor.missing([HR, LR]) == [HR, LR]
    tiers = await rig.executor.encode([HR, LR, HR], rig.pixels, Timings())
    assert tiers == {HR: "encoded", LR: "encoded"}
    assert await rig.store.tier_of(HR) == "memory"
    assert await rig.executor.missing([HR, LR]) == []
    assert await rig.executor.encode([HR], rig.pixels, Timings()) == {HR: "l1"}
    await rig.one(job(*views(0)))
    assert await rig.executor.purge("aa") == 2
    assert await rig.executor.missing([HR, LR, *views(0)]) == [HR, LR]


async def test_what_is_being_encoded_or_stored_during_a_purge_is_forgotten_too(rig: Rig) -> None:
    async def purged(rig: Rig, click: asyncio.Task[DecodeResult], go_on: Callable[[], None]) -> None:
        purging = asyncio.create_task(rig.executor.purge("aa"))
        await until(lambda: bool(rig.executor._views._forgetting) or purging.done())
        go_on()
        await asyncio.gather(purging, click)
        await until(lambda: not rig.executor._views._writes)
        assert await rig.executor.missing([HR]) == [HR]

    rig.model.hold()
    click = asyncio.create_task(rig.one(job(lr=None)))
    await busy(rig.model)
    await purged(rig, click, rig.model.release.set)
    slow = SlowStore()
    other = Rig(store=TieredStore([slow]))
    click = asyncio.create_task(other.one(job(lr=None)))
    await slow.begun.wait()
    await purged(other, click, slow.release.set)
    await other.executor.aclose()


async def test_a_prewarm_ends_once_its_views_are_stored() -> None:
    slow = SlowStore()
    rig = Rig(store=TieredStore([slow]))
    prewarm = asyncio.create_task(rig.executor.encode([HR], rig.pixels, Timings()))
    await slow.begun.wait()
    for _ in range(20):  # turns of the event loop, in which it would end
        await asyncio.sleep(0)
    assert not prewarm.done()
    slow.release.set()
    await prewarm
    assert slow.told == ["stored"]
    await rig.executor.aclose()


async def test_a_purge_that_runs_out_of_time_takes_nobody_else_along() -> None:
    class Slow(MemoryStore):
        go = asyncio.Event()

        async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
            await self.go.wait()
            await super().put(key, blob, ttl_s)

    rig = Rig(TieredStore([Slow(1_000_000)]), refine=TieredStore([Slow(2_000_000)]))
    other = HR.replace(":aa:", ":bb:")
    given = await rig.one(job(other, None))
    rig.model.hold()
    click = asyncio.create_task(rig.one(job(lr=None)))
    await busy(rig.model)
    purges = [asyncio.create_task(rig.executor.purge(slide)) for slide in ("aa", "bb")]
    await until(lambda: rig.executor._views._flights[HR].task is not None)
    await asyncio.wait(purges, timeout=0.05)
    for purge in purges:
        purge.cancel()
    await asyncio.wait(purges)
    rig.model.release.set()
    Slow.go.set()
    assert (await click).cache_hr == "encoded"
    await until(lambda: not rig.executor._views._writes and not rig.executor._refine._pending)
    assert await rig.store.tier_of(other) == "memory"
    assert (await rig.one(job(other, None, refine_from=given.refine_id))).refine_id
    await rig.executor.aclose()


async def test_a_click_waits_for_each_purge_of_its_slide_also_for_one_that_begins_while_it_waits() -> None:
    gates: list[asyncio.Event] = []

    class Slow(MemoryStore):
        async def delete_matching(self, part: str) -> int:
            gates.append(asyncio.Event())
            await gates[-1].wait()
            return await super().delete_matching(part)

    rig = Rig(TieredStore([Slow(1_000_000)]))
    first = asyncio.create_task(rig.executor.purge("aa"))
    await until(lambda: len(gates) == 1)
    click = asyncio.create_task(rig.one(job(lr=None)))
    await rig.one(job(*views(0)))  # goes on, and has taken longer than the click would have
    second = asyncio.create_task(rig.executor.purge("aa"))
    await until(lambda: len(gates) == 2)
    gates[0].set()
    await first
    await rig.one(job(*views(1)))
    assert not click.done()
    gates[1].set()
    await second
    assert (await click).cache_hr == "encoded"
    await rig.executor.aclose()


async def test_an_answer_that_is_decoded_during_a_purge_is_not_kept_and_those_on_other_slides_are() -> None:
    states = MemoryStore(2_000_000)
    rig = Rig(refine=TieredStore([states]))
    await rig.executor.encode([HR, views(0)[0]], rig.pixels, Timings())
    rig.model.hold()
    clicks = [asyncio.create_task(rig.one(job(lr=None)))]
    await busy(rig.model)
    clicks.append(asyncio.create_task(rig.one(job(views(0)[0], None))))
    await until(lambda: len(rig.executor._decodes.waiting) == 1)
    assert await rig.executor.purge("aa") == 1
    rig.model.release.set()
    purged, kept = [await click for click in clicks]
    await until(lambda: not rig.executor._refine._pending)
    assert list(states._kept) == [kept.refine_id]
    (late,) = await rig.decode(job(lr=None, refine_from=purged.refine_id))
    assert isinstance(late, RefineExpired)
    again = await rig.one(job(lr=None))
    assert (await rig.one(job(lr=None, refine_from=again.refine_id))).refine_id
    await rig.executor.aclose()


async def test_refining_adds_points_and_feeds_the_earlier_logits_back(rig: Rig) -> None:
    first = await rig.one(job())
    click = Prompt(points=((10.0, 20.0),), labels=(0,))
    second = await rig.one(job(prompt=click, refine_from=first.refine_id))
    merged = rig.model.decoded[-1].prompt
    assert (merged.box, merged.points, merged.labels) == (BOX.box, click.points, click.labels)
    assert merged.mask_hr is not None
    assert merged.mask_lr is not None
    assert merged.mask_hr.dtype == np.float32
    assert merged.mask_hr[100, 100] == 5.5
    assert merged.mask_hr[0, 0] == -4.5
    more = Prompt(box=(1.0, 2.0, 3.0, 4.0), points=((30.0, 40.0),), labels=(1,))
    await rig.one(job(prompt=more, refine_from=second.refine_id))
    merged = rig.model.decoded[-1].prompt
    assert (merged.box, merged.points, merged.labels) == (more.box, click.points + more.points, (0, 1))


async def test_a_new_mask_takes_the_place_of_all_earlier_logits(rig: Rig) -> None:
    first = await rig.one(job())
    new = np.full((256, 256), -10, np.float32)
    await rig.one(job(prompt=Prompt(mask_hr=new), refine_from=first.refine_id))
    merged = rig.model.decoded[-1].prompt
    assert merged.mask_hr is new
    assert merged.mask_lr is None


async def test_a_correction_with_too_many_points_in_all_never_reaches_the_device(rig: Rig) -> None:
    many = Prompt(points=((5.0, 5.0),) * (MAX_POINTS - 1), labels=(1,) * (MAX_POINTS - 1))
    first = await rig.one(job(prompt=many))
    decoded = len(rig.model.decoded)
    await rig.one(job(prompt=Prompt(points=((6.0, 6.0),), labels=(0,)), refine_from=first.refine_id))
    decoded += 1
    two = Prompt(points=((6.0, 6.0),) * 2, labels=(0, 0))
    (refused,) = await rig.decode(job(prompt=two, refine_from=first.refine_id))
    assert isinstance(refused, InvalidRequest)
    assert len(rig.model.decoded) == decoded


async def test_a_recalled_answer_is_the_one_given_and_decodes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = await rig.one(job())
    await until(lambda: not rig.executor._refine._pending)
    decoded = len(rig.model.decoded)
    drawn, draw = list[int](), rle.decode

    def noted(mask: Rle) -> rle.Mask:
        drawn.append(threading.get_ident())
        return draw(mask)

    monkeypatch.setattr(rle, "decode", noted)
    recalled = await rig.one(job(prompt=Prompt(), refine_from=given.refine_id, recall=True))
    assert recalled.masks == given.masks[:1]
    assert len(rig.model.decoded) == decoded
    assert drawn != [threading.get_ident()]  # others are answered meanwhile
    (elsewhere,) = await rig.decode(job(*views(0), refine_from=given.refine_id, recall=True))
    assert isinstance(elsewhere, RefineExpired)


async def test_a_correction_starts_from_the_same_logits_before_and_after_they_are_stored() -> None:
    slow = SlowStore()
    states = RefineStates(TieredStore([slow]))
    logits = np.full((256, 256), 0.1, np.float32)
    state = RefineState(HR, BOX, logits, None, DecodedMask(Rle((256, 256), "PPYo0"), 0.9))
    refine_id = states.keep(state, states.times_forgotten(HR))
    early = await states.load(refine_id)
    slow.release.set()
    await until(lambda: not states._pending)
    late = await states.load(refine_id)
    np.testing.assert_array_equal(early.logits_hr, late.logits_hr)
    assert early.answer == late.answer


@pytest.mark.parametrize("words", [b"{}", b"[]", b'{"hr": "a", "box": 1, "points": [], "labels": [], "answer": []}'])
def test_a_refine_state_of_another_kind_is_damaged(words: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        RefineState.from_bytes(save({"prompt": np.frombuffer(words, np.uint8)}))


async def test_answers_pile_up_behind_a_slow_store_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "MAX_PENDING", 1)
    slow = SlowStore()
    rig = Rig(refine=TieredStore([slow]))
    kept, given = await rig.one(job()), await rig.one(job())
    await rig.one(job(refine_from=kept.refine_id))
    (lost,) = await rig.decode(job(refine_from=given.refine_id))
    assert isinstance(lost, RefineExpired)
    slow.release.set()
    await rig.executor.aclose()


async def test_a_refine_state_belongs_to_its_view_and_expires(rig: Rig) -> None:
    first = await rig.one(job())
    (elsewhere,) = await rig.decode(job(*views(0), refine_from=first.refine_id))
    assert isinstance(elsewhere, RefineExpired)  # as after an update that changes the keys of views
    await until(lambda: not rig.executor._refine._pending)
    rig.now += 3599
    await rig.one(job(refine_from=first.refine_id))
    rig.now += 1
    (late,) = await rig.decode(job(refine_from=first.refine_id))
    assert isinstance(late, RefineExpired)


async def test_ready_after_warm_up_and_not_after_the_thread_has_crashed(rig: Rig) -> None:
    rig.model.own_adapters = [FakeAdapters(name="kidney")]
    assert not await rig.executor.ready()
    await rig.executor.warm_up()
    assert await rig.executor.ready()
    info = await rig.executor.info()
    assert info["models"][0]["adapters"]["name"] == "default"
    assert [own["name"] for own in info["models"][0]["own_adapters"]] == ["kidney"]
    assert info["models"][0]["trained_prompts"] == ["box"]

    def crash(items: Sequence[DecodeItem[FakeView]]) -> None:
        raise SystemExit

    rig.model.trouble = crash
    (result,) = await rig.decode(job())
    assert isinstance(result, Exception)
    await until(lambda: not rig.executor._batcher._thread.is_alive())
    assert not await rig.executor.ready()


@pytest.mark.parametrize("role", ["store", "refine"])
async def test_closing_waits_for_what_is_being_stored_and_closes_the_stores(role: str) -> None:
    slow = SlowStore()
    rig = Rig(store=TieredStore([slow])) if role == "store" else Rig(refine=TieredStore([slow]))
    await rig.executor.warm_up()
    await rig.one(job(lr=None))
    await slow.begun.wait()
    closing = asyncio.create_task(rig.executor.aclose())
    await until(lambda: not rig.executor._batcher._thread.is_alive())
    assert not await rig.executor.ready()
    slow.release.set()
    await closing
    assert slow.told == ["stored", "closed"]


async def test_others_wait_for_a_view_until_it_is_stored() -> None:
    store = ClaimedStore()
    rig = Rig(store=TieredStore([store]))
    await rig.one(job(lr=None))
    await store.begun.wait()
    assert store.told == ["claimed"]
    store.release.set()
    await rig.executor.aclose()
    assert store.told == ["claimed", "stored", "given back", "closed"]


@pytest.mark.parametrize(
    "how", ["refused", "not read", "not encoded", "not written", "store too slow", "not waited for"]
)
async def test_others_wait_for_no_view_that_is_not_coming(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError

    store = ClaimedStore()
    rig = Rig(store=TieredStore([store]), max_encodes=1)
    full = rig.executor._batcher.admit("encode", 1) if how == "refused" else contextlib.nullcontext()
    if how == "not encoded":
        monkeypatch.setattr(rig.model, "encode", fail)
    if how == "not written":
        monkeypatch.setattr(FakeEmbedding, "to_bytes", fail)
    if how == "store too slow":
        monkeypatch.setattr(view_loader, "MAX_WRITES", 0)
    if how == "not waited for":
        rig.pixels.release.clear()
    rig.pixels.error = RuntimeError() if how == "not read" else None
    with full:
        click = asyncio.create_task(rig.decode(job(lr=None)))
        if how == "not waited for":
            await rig.pixels.started.wait()
            click.cancel()
        await asyncio.gather(click, return_exceptions=True)
    await until(lambda: store.told == ["claimed", "given back"])
    await rig.executor.aclose()


async def test_nobody_follows_the_purges_of_others_once_it_is_closed() -> None:
    before = asyncio.all_tasks()
    rig = Rig(store=TieredStore([ClaimedStore()]))
    await rig.executor.warm_up()
    (following,) = asyncio.all_tasks() - before
    await rig.executor.aclose()
    assert following.done()


async def test_one_view_and_one_box_are_enough_to_warm_up(rig: Rig) -> None:
    await rig.executor.warm_up()
    assert rig.model.calls == [("encode", 1), ("decode", 1)]


async def test_graphs_are_captured_before_the_first_click_for_all_sizes_that_clients_lead_to(rig: Rig) -> None:
    rig.model.captures_graphs = True
    await rig.executor.warm_up()
    sizes = {"encode": (4, 2, 1), "decode": (16, 8, 4, 2, 1)}  # as many as the queues take at once
    assert rig.model.calls == [(kind, size) for kind, some in sizes.items() for size in some]


async def test_the_lr_branch_is_asked_for_its_logits_once_an_answer_is_corrected(rig: Rig) -> None:
    first = await rig.one(job())
    await rig.one(job(refine_from=first.refine_id))
    assert [item.lr_sam for item in rig.model.decoded] == [False, True]
    (silent,) = await rig.decode(job(refinable=False))
    assert isinstance(silent, DecodeResult)
    assert silent.refine_id == ""


def test_the_executor_brings_in_no_torch() -> None:
    code = "import sys, wsisam_service.execution.executor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_time_of_overlapping_stretches_counts_once() -> None:
    timings = Timings()
    for started, ended in ((0.0, 2.0), (0.0, 2.0), (3.0, 4.0), (1.0, 3.5)):
        timings.span("decode", started, ended)
    assert timings.seconds == {"decode": pytest.approx(4.0)}
