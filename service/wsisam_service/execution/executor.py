"""The executor in this process: a store, device memory, and one device thread around the models.

A click on a known view costs one decode; a new view is read, encoded once for all who wait, and stored behind their
backs. Masks are upscaled and run-length encoded in threads, so that neither the event loop nor the device waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic

from wsisam_service import metrics
from wsisam_service.errors import NotReady, Overloaded, RefineExpired, ServiceError, UnknownModel
from wsisam_service.execution.backend import Backend, Decoded, DecodeItem, E, V, all_adapters
from wsisam_service.execution.batcher import Answer, Batcher, DeviceQueue
from wsisam_service.execution.device_cache import DeviceCache, ReadyView
from wsisam_service.execution.facts import executor_facts
from wsisam_service.execution.memory import give_back
from wsisam_service.execution.postprocess import draw, touched_borders
from wsisam_service.execution.refine import RefineState, RefineStates
from wsisam_service.execution.tasks import together
from wsisam_service.execution.view_loader import ViewLoader, backend_of, encode_queue, load_queue
from wsisam_service.execution.warm_up import make_warm
from wsisam_service.jobs import (
    DEFAULT_ADAPTERS,
    NO_ADAPTERS,
    CacheTier,
    DecodeJob,
    DecodeResult,
    PixelSource,
    Purges,
    Timings,
)
from wsisam_service.masks import rle
from wsisam_service.purges import follow
from wsisam_service.stores.embeddings import StoreFailed, TieredStore

LOOKS_AT_A_TIME = 100
"""For views, before others have their turn: about a millisecond."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The views that jobs look at; `lr` is None where the wider view plays no part."""

    hr: str
    lr: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Found(Generic[V]):
    """A view in device memory, and where it was found."""

    ready: ReadyView[V]
    tier: CacheTier


class LocalExecutor(Generic[E, V]):
    """`jobs.Executor` around models in this process. Used by one event loop; `aclose` ends its threads.

    `max_encodes` and `max_decodes` bound the work in flight, beyond which requests are refused; `encode_batch` and
    `decode_batch` the items of one device call. `l1_bytes` is device memory for views, beside weights and a batch.
    """

    def __init__(
        self,
        backends: Sequence[Backend[E, V]],
        store: TieredStore,
        refine_store: TieredStore,
        *,
        l1_bytes: int,
        max_encodes: int,
        max_decodes: int,
        encode_batch: int,
        decode_batch: int,
    ) -> None:
        self._backends = {backend.config.name: backend for backend in backends}
        self._cache: DeviceCache[V] = DeviceCache(l1_bytes)
        self._decodes = _decode_queue(self._backends, max_batch=decode_batch)
        self._loads = load_queue(self._backends, max_batch=encode_batch)
        self._encodes = encode_queue(self._backends, max_batch=encode_batch)
        self._batcher = Batcher(
            [self._decodes, self._loads, self._encodes],
            limits={self._decodes.kind: max_decodes, self._encodes.kind: max_encodes},
            free_memory=self._cache.shrink,
        )
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="executor")
        self._views = ViewLoader(
            self._backends, store, self._cache, self._batcher, loads=self._loads, encodes=self._encodes, pool=self._pool
        )
        self._store = store
        self._refine = RefineStates(refine_store)
        self._following: asyncio.Task[None] | None = None
        # One request must not fill the encoder's queue: at two views a pair it takes a quarter of it.
        self._new_pairs_at_once = max(1, max_encodes // 8)
        # A prewarm keeps the encoder busy but lets a click's views in after few of its own.
        self._prewarms_at_once = 2 * encode_batch
        self._warm = False

    def add(self, backend: Backend[E, V]) -> None:
        """Offer one more model, which replaces one of the same name. Its first click finds it cold."""
        self._backends[backend.config.name] = backend

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        """See `jobs.Executor`."""
        results: dict[int, DecodeResult | Exception] = {}
        by_pair: dict[_Pair, list[int]] = {}
        for index, job in enumerate(jobs):
            try:
                if job.recall:
                    results[index] = await self._recalled(job)
                else:
                    by_pair.setdefault(self._pair_of(job), []).append(index)
            except ServiceError as error:
                results[index] = error
        gate = asyncio.Semaphore(self._new_pairs_at_once)

        async def decode_pair(pair: _Pair, indices: list[int]) -> None:
            known = pair.hr in self._cache and (pair.lr is None or pair.lr in self._cache)
            async with contextlib.nullcontext() if known else gate:
                decoded = await self._decode_pair(pair, [jobs[index] for index in indices], pixels, timings)
            results.update(zip(indices, decoded, strict=True))

        with self._batcher.admit(self._decodes.kind, len(jobs)):
            await together(decode_pair(pair, indices) for pair, indices in by_pair.items())
        return [results[index] for index in range(len(jobs))]

    async def encode(self, views: Sequence[str], pixels: PixelSource, timings: Timings) -> Mapping[str, CacheTier]:
        """See `jobs.Executor`."""
        waiting = iter(dict.fromkeys(views))
        tiers: dict[str, CacheTier] = {}

        async def encode_views() -> None:
            for key in waiting:
                tiers[key] = await self._views.ensure(key, pixels, timings)

        await together(encode_views() for _ in range(self._prewarms_at_once))
        return tiers

    async def missing(self, views: Sequence[str]) -> list[str]:
        """See `jobs.Executor`."""
        missing: list[str] = []
        for number, key in enumerate(views, 1):
            if await self._views.find(key) is None:
                missing.append(key)
            if number % LOOKS_AT_A_TIME == 0:
                await asyncio.sleep(0)  # a store in memory lets nobody else have a turn
        return missing

    async def purge(self, fingerprint: str) -> int:
        """See `jobs.Executor`. Other processes on the same shared store follow within `purges.POLL_S`."""
        try:
            gone = await self._forget(fingerprint)
            await self._store.announce_purge(fingerprint)
        except StoreFailed as error:
            raise NotReady("a store cannot be reached, so the slide is not forgotten there", retry_after_s=5) from error
        return gone

    async def purges(self, since: str | None) -> Purges | None:
        """See `jobs.Executor`."""
        try:
            return await self._store.purges_since(since, by_others=False)
        except StoreFailed as error:
            raise NotReady("the store that tells of purges cannot be reached", retry_after_s=5) from error

    async def info(self) -> Mapping[str, Any]:
        """See `jobs.Executor`."""
        return executor_facts(list(self._backends.values()))

    async def ready(self) -> bool:
        """See `jobs.Executor`."""
        return self._warm and self._batcher.healthy

    async def healthy(self) -> bool:
        """See `jobs.Executor`."""
        return self._batcher.healthy

    async def warm_up(self) -> None:
        """See `jobs.Executor`."""
        for backend in self._backends.values():
            await make_warm(backend, self._batcher, encodes=self._encodes, decodes=self._decodes)
        await asyncio.to_thread(give_back)
        if self._store.shared and self._following is None:
            by_others = partial(self._store.purges_since, by_others=True)
            self._following = asyncio.create_task(follow(by_others, self._forget_all))
        self._warm = True

    async def aclose(self) -> None:
        """Finish what runs and what is being stored, refuse the rest, and end the threads."""
        if self._following is not None:
            self._following.cancel()
        await asyncio.to_thread(self._batcher.close)
        await self._views.aclose()
        await self._refine.aclose()
        self._pool.shutdown()

    async def _forget(self, fingerprint: str) -> int:
        gone = await self._views.forget(fingerprint)
        await self._refine.forget(fingerprint)
        return gone

    async def _forget_all(self, fingerprints: Sequence[str]) -> None:
        for fingerprint in fingerprints:
            await self._forget(fingerprint)

    def _pair_of(self, job: DecodeJob) -> _Pair:
        offered = all_adapters(backend_of(self._backends, job.hr))
        if job.adapters not in (DEFAULT_ADAPTERS, NO_ADAPTERS, *(one.name for one in offered)):
            raise UnknownModel(f"no adapters here are called {job.adapters!r}")
        meant = [one for one in offered if job.adapters in (DEFAULT_ADAPTERS, one.name)]
        return _Pair(job.hr, job.lr if meant and (job.lr_mask or any(one.uses_lr for one in meant)) else None)

    async def _decode_pair(
        self, pair: _Pair, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        """Jobs on one pair of views. Of failures only `Overloaded` is raised: it holds for the whole request."""
        try:
            hr, lr = await self._find_both(pair, pixels, timings)
        except Overloaded:
            raise
        except Exception as error:
            return [error] * len(jobs)
        forgotten = self._refine.times_forgotten(pair.hr)
        items = [await self._item(job, hr, lr) for job in jobs]
        good = [(job, item) for job, item in zip(jobs, items, strict=True) if not isinstance(item, Exception)]
        model = backend_of(self._backends, pair.hr).config.name
        works = self._batcher.submit(self._decodes, model, [item for _, item in good])
        try:
            answers = await asyncio.gather(
                *(
                    self._answer(*known, work, (hr, lr), timings, forgotten=forgotten)
                    for known, work in zip(good, works, strict=True)
                ),
                return_exceptions=True,
            )
        finally:
            for work in works:
                if not work.cancel() and not work.done():  # it runs, and what it makes of its views stays with them
                    work.add_done_callback(lambda _: self._remeasure(pair))
            self._remeasure(pair)
        results: list[DecodeResult | Exception] = []
        remaining = iter(answers)
        for item in items:
            result = item if isinstance(item, Exception) else next(remaining)
            if isinstance(result, Overloaded) or not isinstance(result, DecodeResult | Exception):
                raise result
            results.append(result)
        return results

    def _remeasure(self, pair: _Pair) -> None:
        """Account for what decoding has added to the views of a pair."""
        self._cache.remeasure(pair.hr)
        if pair.lr is not None:
            self._cache.remeasure(pair.lr)

    async def _find_both(
        self, pair: _Pair, pixels: PixelSource, timings: Timings
    ) -> tuple[_Found[V], _Found[V] | None]:
        """Both views, brought in together: the wider one is read while the other is encoded."""
        if pair.lr is None:
            return await self._find(pair.hr, "hr", pixels, timings), None
        both = await asyncio.gather(
            self._find(pair.hr, "hr", pixels, timings),
            self._find(pair.lr, "lr", pixels, timings),
            return_exceptions=True,
        )
        hr, lr = both
        if isinstance(hr, BaseException):
            raise hr
        if isinstance(lr, BaseException):
            raise lr
        return hr, lr

    async def _find(self, key: str, role: str, pixels: PixelSource, timings: Timings) -> _Found[V]:
        ready, tier = await self._views.get(key, pixels, timings)
        metrics.EMBEDDING_LOOKUPS.labels(tier=tier, role=role).inc()
        return _Found(ready, tier)

    async def _item(self, job: DecodeJob, hr: _Found[V], lr: _Found[V] | None) -> DecodeItem[V] | ServiceError:
        """What the decoder gets for a job, with the earlier answer that it refines."""
        prompt = job.prompt
        if job.refine_from is not None:
            try:
                prompt = (await self._refine.load(job.refine_from)).continued(prompt, job.hr)
            except ServiceError as error:
                return error
        backend = backend_of(self._backends, job.hr)
        item = DecodeItem(
            hr.ready.view,
            None if lr is None else lr.ready.view,
            prompt,
            adapters=None if job.adapters in (DEFAULT_ADAPTERS, NO_ADAPTERS) else job.adapters,
            frozen=backend.adapters is None or job.adapters == NO_ADAPTERS,
            multimask=job.multimask,
            lr_mask=job.lr_mask and lr is not None,
            # An answer that is corrected once will be again; the first one stays as cheap as it can be.
            lr_sam=job.refinable and job.refine_from is not None and lr is not None,
        )
        drawn_by = backend.adapters_of(item)
        if drawn_by is None:
            return item
        # Of the sets that a view may call for, this one may not look at the wider view.
        wide = item.lr is not None and (drawn_by.uses_lr or job.lr_mask)
        return replace(item, adapters=drawn_by.name, lr=item.lr if wide else None, lr_sam=item.lr_sam and wide)

    async def _recalled(self, job: DecodeJob) -> DecodeResult:
        """The answer that a token stands for, as it was given. Raises `RefineExpired`."""
        assert job.refine_from is not None
        state = await self._refine.load(job.refine_from)
        if state.hr != job.hr:
            raise RefineExpired("the refine token is of another view")
        mask = state.answer.mask
        touches = await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: touched_borders(rle.decode(mask))
        )
        return DecodeResult([state.answer], touches, None, job.refine_from, "l1", None, adapters="")

    async def _answer(
        self,
        job: DecodeJob,
        item: DecodeItem[V],
        work: Future[Answer[Decoded]],
        views: tuple[_Found[V], _Found[V] | None],
        timings: Timings,
        *,
        forgotten: int,
    ) -> DecodeResult:
        """The result of a job whose item is in the device's queue as `work`; `forgotten` as in `RefineStates.keep`."""
        hr, lr = views
        answer = await asyncio.wrap_future(work)
        timings.span("queue", answer.submitted, answer.started)
        timings.span("decode", answer.started, answer.ended)
        started = time.perf_counter()
        backend = backend_of(self._backends, job.hr)
        drawing = partial(draw, stability_offset=job.stability_offset)
        drawn = await asyncio.get_running_loop().run_in_executor(
            self._pool, drawing, backend, answer.result, hr.ready.view_size, item.prompt
        )
        timings.span("mask", started, time.perf_counter())
        logits = answer.result.sam_logits_hr, answer.result.sam_logits_lr
        state = RefineState(job.hr, item.prompt, *logits, drawn.masks[0])
        return DecodeResult(
            masks=drawn.masks,
            touches=drawn.touches,
            lr_mask=drawn.lr_mask,
            refine_id=self._refine.keep(state, forgotten) if job.refinable else "",
            cache_hr=hr.tier,
            cache_lr=None if lr is None else lr.tier,
            adapters=item.adapters or NO_ADAPTERS,
        )


def _decode_queue(backends: Mapping[str, Backend[E, V]], *, max_batch: int) -> DeviceQueue[DecodeItem[V], Decoded]:
    """Device work that answers prompts."""

    def run(model: str, items: Sequence[DecodeItem[V]]) -> Sequence[Decoded]:
        return backends[model].decode(items)

    return DeviceQueue("decode", run, max_batch=max_batch, seconds=metrics.DECODE_SECONDS)
