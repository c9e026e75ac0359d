"""Brings views into device memory: from L1, from the store, or by encoding their pixels, once for all who wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic

from wsisam_service import metrics
from wsisam_service.errors import Overloaded, UnknownModel
from wsisam_service.execution.backend import Backend, E, V
from wsisam_service.execution.batcher import Batcher, DeviceQueue
from wsisam_service.execution.device_cache import DeviceCache, ReadyView
from wsisam_service.execution.tasks import all_ended
from wsisam_service.jobs import CacheTier, PixelsNeeded, PixelSource, Timings, ViewPixels
from wsisam_service.stores.embeddings import Claim, Hit, TieredStore, has_part

_log = logging.getLogger(__name__)

MAX_WRITES = 32
"""Embeddings on their way to the store; beyond it the store is too slow and further ones stay in L1 only."""


class _Flight(Generic[V]):
    """A view being brought in, shared by all who wait for it. `work` is its place in the device's queue, once it has
    one; `spans` are (stage, start, end) on `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[tuple[ReadyView[V], CacheTier]] | None = None
        self.waiters = 0
        self.work: Future[Any] | None = None
        self.spans: list[tuple[str, float, float]] = []


def backend_of(backends: Mapping[str, Backend[E, V]], key: str) -> Backend[E, V]:
    """The model that view `key` belongs to. Raises `UnknownModel`, also where weights or preprocessing differ."""
    backend = backends.get(key.partition(":")[0])
    if backend is None or not key.startswith(backend.key_prefix + ":"):
        raise UnknownModel(f"no model here has the embeddings of this view; there are {', '.join(backends)}")
    return backend


class ViewLoader(Generic[E, V]):
    """Single flight per view: an encode in flight is shared, one that nobody waits for any more is dropped unless it
    has started, and one that is done goes to the store behind the caller's back.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend[E, V]],
        store: TieredStore,
        cache: DeviceCache[V],
        batcher: Batcher,
        *,
        loads: DeviceQueue[E, ReadyView[V]],
        encodes: DeviceQueue[ViewPixels, tuple[E, ReadyView[V]]],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._backends = backends
        self._store = store
        self._cache = cache
        self._batcher = batcher
        self._loads = loads
        self._encodes = encodes
        self._pool = pool
        self._flights: dict[str, _Flight[V]] = {}
        self._writes: dict[str, tuple[ReadyView[V], asyncio.Task[None]]] = {}
        self._forgetting: dict[asyncio.Event, str] = {}
        for tier in store.sizes():
            metrics.CACHE_BYTES.labels(tier=tier).set_function(partial(_held, store, tier))

    async def get(self, key: str, pixels: PixelSource, timings: Timings) -> tuple[ReadyView[V], CacheTier]:
        """View `key` in device memory, and where it was found. Raises what `pixels` raises, and `Overloaded`."""
        others_failed = False
        while True:
            await self._until_forgotten(key)
            ready = self._at_hand(key)
            if ready is not None:
                return ready, "l1"
            flight = self._flights.get(key)
            started_here = flight is None
            if flight is None:
                flight = self._start(key, pixels)
            try:
                return await self._wait_for(key, flight, timings)
            except Overloaded:
                raise
            except PixelsNeeded:
                if started_here:
                    raise  # else it was somebody else who has no pixels; each round one such caller less
            except Exception:
                # It was the pixel source of whoever came first that failed; this caller has one of its own.
                if started_here or others_failed:
                    raise
                others_failed = True

    async def ensure(self, key: str, pixels: PixelSource, timings: Timings) -> CacheTier:
        """Make sure that `key` is stored, without bringing it into device memory where it is; where it was found."""
        tier = await self.find(key)
        if tier is not None:
            return tier
        _, tier = await self.get(key, pixels, timings)
        if key in self._writes:
            await asyncio.shield(self._writes[key][1])
        return tier

    async def find(self, key: str) -> CacheTier | None:
        """The fastest tier that has `key`. Raises `UnknownModel`."""
        backend_of(self._backends, key)
        return "l1" if self._at_hand(key) is not None else await self._store.tier_of(key)

    async def forget(self, fingerprint: str) -> int:
        """Forget the views of a slide in every tier; how many there were in the tier with most of them. Who asks for
        one meanwhile waits: what a tier still has would be copied into those that have forgotten it.
        """
        over = asyncio.Event()
        self._forgetting[over] = fingerprint
        try:
            flights = [one.task for key, one in self._flights.items() if has_part(key, fingerprint) and one.task]
            await all_ended(flights)  # what is being encoded would be stored afterwards
            await self._settle()
            dropped = self._cache.drop_matching(fingerprint)
            return max(dropped, await self._store.delete_matching(fingerprint))
        finally:
            del self._forgetting[over]
            over.set()

    async def aclose(self) -> None:
        await self._settle()
        await self._store.aclose()

    async def _until_forgotten(self, key: str) -> None:
        while waiting := [over for over, part in self._forgetting.items() if has_part(key, part)]:
            await waiting[0].wait()  # another purge may have begun meanwhile

    def _at_hand(self, key: str) -> ReadyView[V] | None:
        ready = self._cache.get(key)
        if ready is None and key in self._writes:
            ready = self._writes[key][0]
        return ready

    def _start(self, key: str, pixels: PixelSource) -> _Flight[V]:
        flight = self._flights[key] = _Flight()
        flight.task = asyncio.create_task(self._bring(flight, key, pixels))
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # someone has looked
        return flight

    async def _wait_for(self, key: str, flight: _Flight[V], timings: Timings) -> tuple[ReadyView[V], CacheTier]:
        assert flight.task is not None
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            for span in flight.spans:
                timings.span(*span)
            started = flight.work is not None and flight.work.running()
            if flight.waiters == 0 and not started and not flight.task.done():
                self._land(key, flight)  # at once, so that nobody joins what is being dropped
                flight.task.cancel()

    def _land(self, key: str, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _bring(self, flight: _Flight[V], key: str, pixels: PixelSource) -> tuple[ReadyView[V], CacheTier]:
        try:
            backend = backend_of(self._backends, key)
            hit = await self._store.get(key)
            embedding = None if hit is None else await self._parsed(backend, hit)
            claim = None
            if embedding is None:
                claimed = await self._store.claim(key)
                if isinstance(claimed, Hit):  # another process has encoded it meanwhile
                    hit = claimed
                    embedding = await self._parsed(backend, hit)
                else:
                    claim = claimed
            if hit is None or embedding is None:
                return await self._encode(flight, key, backend.config.name, pixels, claim), "encoded"
            (work,) = self._batcher.submit(self._loads, backend.config.name, [embedding])
            flight.work = work
            ready = (await asyncio.wrap_future(work)).result
            self._cache.put(key, ready)
            return ready, hit.tier
        finally:
            self._land(key, flight)

    async def _encode(
        self, flight: _Flight[V], key: str, model: str, pixels: PixelSource, claim: Claim | None
    ) -> ReadyView[V]:
        """Encode `key`; the claim on it is given back once it is stored, or cannot be made."""
        try:
            with self._batcher.admit(self._encodes.kind, 1):
                started = time.perf_counter()
                image = await pixels(key)
                flight.spans.append(("read", started, time.perf_counter()))
                (work,) = self._batcher.submit(self._encodes, model, [image])
                flight.work = work
                answer = await asyncio.wrap_future(work)
        except BaseException:
            if claim is not None:
                await claim.release()
            raise
        flight.spans.append(("queue", answer.submitted, answer.started))
        flight.spans.append(("encode", answer.started, answer.ended))
        embedding, ready = answer.result
        self._cache.put(key, ready)
        self._writes[key] = ready, asyncio.create_task(self._write(key, embedding, claim))
        return ready

    async def _parsed(self, backend: Backend[E, V], hit: Hit) -> E | None:
        """The embedding of a blob; a blob that is none is a miss."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, backend.load, hit.blob)
        except Exception as error:
            metrics.STORE_ERRORS.inc()
            _log.warning("the %s store gave a blob that is no embedding: %r", hit.tier, error)
            return None

    async def _write(self, key: str, embedding: E, claim: Claim | None) -> None:
        try:
            if len(self._writes) > MAX_WRITES:
                metrics.STORE_ERRORS.inc()
                _log.warning("the store is too slow; an embedding stays in L1 only")
                return
            blob = await asyncio.get_running_loop().run_in_executor(self._pool, embedding.to_bytes)
            await self._store.put(key, blob)
        except Exception:
            _log.exception("an embedding could not be written")
        finally:
            if claim is not None:
                await claim.release()
            del self._writes[key]

    async def _settle(self) -> None:
        """Wait for the writes on their way."""
        await all_ended([task for _, task in self._writes.values()])


def _held(store: TieredStore, tier: CacheTier) -> float:
    return store.sizes()[tier]


def load_queue(backends: Mapping[str, Backend[E, V]], *, max_batch: int) -> DeviceQueue[E, ReadyView[V]]:
    """Device work that makes stored embeddings ready for the decoder."""

    def run(model: str, embeddings: Sequence[E]) -> list[ReadyView[V]]:
        return [ReadyView(backends[model].prepare(embedding), embedding.view_size) for embedding in embeddings]

    return DeviceQueue("load", run, max_batch=max_batch)


def encode_queue(
    backends: Mapping[str, Backend[E, V]], *, max_batch: int
) -> DeviceQueue[ViewPixels, tuple[E, ReadyView[V]]]:
    """Device work that encodes views and makes them ready for the decoder."""

    def run(model: str, images: Sequence[ViewPixels]) -> list[tuple[E, ReadyView[V]]]:
        backend = backends[model]
        embeddings = backend.encode(images)
        return [(e, ReadyView(backend.prepare(e), e.view_size)) for e in embeddings]

    return DeviceQueue("encode", run, max_batch=max_batch, seconds=metrics.ENCODE_SECONDS)
