"""Where embeddings outlive the device's memory: what a store does, a byte-bounded one in memory, and tiers of stores.

Stores hold opaque blobs under keys and know nothing of their content. A store may raise; `TieredStore`, which is what
the executor sees, turns every failure into a miss (DESIGN section 6).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from wsisam_service import metrics
from wsisam_service.jobs import CacheTier, Purges

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Clock = Callable[[], float]
"""Seconds since the epoch."""


class StoreFailed(Exception):
    """A tier did not do what must not be left undone."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A blob and the tier that had it."""

    blob: bytes
    tier: CacheTier


class EmbeddingStore(Protocol):
    """Blobs under keys, bounded in bytes: what does not fit pushes out what was used longest ago."""

    tier: CacheTier
    """The store's name in answers and metrics."""

    @property
    def size_bytes(self) -> int:
        """Bytes held, as far as this process knows."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The blob under `key`; None where there is none, or none that is whole and of age."""
        ...

    async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
        """Keep `blob`, in place of an earlier one, at most `ttl_s` seconds."""
        ...

    async def contains(self, key: str) -> bool:
        """Whether `get` would most likely find it; reads no blob."""
        ...

    async def delete_matching(self, part: str) -> int:
        """Forget every key that has `part` between its colons; how many there were."""
        ...

    async def aclose(self) -> None: ...


class Claim(Protocol):
    """The right to be the only one who makes the blob of a key, until it is released."""

    async def release(self) -> None: ...


class Unclaimed:
    """Leave to make the blob of a key beside others who may."""

    async def release(self) -> None:
        """Nothing is held."""


@runtime_checkable
class SharedStore(Protocol):
    """What a store that several processes share also has: only one of them makes a blob, and all hear of purges."""

    async def claim(self, key: str) -> bytes | Claim:
        """The right to make the blob of `key`, or the blob that another process has made; waits while one makes it, but
        not for ever.
        """
        ...

    async def announce_purge(self, part: str) -> bool:
        """Tell the other processes that keys with `part` are to be forgotten; true, or it raises."""
        ...

    async def purges_since(self, mark: str | None, *, by_others: bool) -> Purges:
        """What has been announced since `mark`, nothing for None; `by_others` leaves out what this store announced."""
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    blob: bytes
    expires: float


class MemoryStore:
    """Blobs in this process's memory."""

    tier: CacheTier = "memory"

    def __init__(self, max_bytes: int, *, clock: Clock = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    async def get(self, key: str) -> bytes | None:
        if not await self.contains(key):
            return None
        self._kept.move_to_end(key)
        return self._kept[key].blob

    async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
        self._drop(key)
        if len(blob) > self._max_bytes:
            return
        self._kept[key] = _Kept(blob, expiry(self._clock, ttl_s))
        self._bytes += len(blob)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    async def contains(self, key: str) -> bool:
        kept = self._kept.get(key)
        if kept is not None and 0 < kept.expires <= self._clock():
            self._drop(key)
            return False
        return kept is not None

    async def delete_matching(self, part: str) -> int:
        matching = [key for key in self._kept if has_part(key, part)]
        for key in matching:
            self._drop(key)
        return len(matching)

    async def aclose(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept.blob)


class TieredStore:
    """Stores one behind the other, fastest first. A hit is copied into the tiers before it; failures are misses.

    `ttl_s` is the life of every blob; a copy made by a hit begins a life of its own.
    """

    def __init__(self, stores: Sequence[EmbeddingStore], *, ttl_s: float | None = None) -> None:
        self._stores = tuple(stores)
        self._ttl_s = ttl_s
        self._failing: set[CacheTier] = set()
        self._deletions = 0

    async def get(self, key: str) -> Hit | None:
        deletions = self._deletions
        for index, store in enumerate(self._stores):
            blob = await self._attempt(store, store.get(key))
            if blob is not None:
                lacking = self._stores[:index] if deletions == self._deletions else ()
                for faster in lacking:
                    await self._attempt(faster, faster.put(key, blob, self._ttl_s))
                return Hit(blob, store.tier)
        return None

    async def put(self, key: str, blob: bytes) -> None:
        for store in self._stores:
            await self._attempt(store, store.put(key, blob, self._ttl_s))

    async def claim(self, key: str) -> Hit | Claim | None:
        """See `SharedStore`. None where nobody shares this store, or sharing fails: then whoever asks goes ahead."""
        for store in self._stores:
            if isinstance(store, SharedStore):
                claimed = await self._attempt(store, store.claim(key))
                return Hit(claimed, store.tier) if isinstance(claimed, bytes) else claimed
        return None

    async def tier_of(self, key: str) -> CacheTier | None:
        """The fastest tier that has `key`."""
        for store in self._stores:
            if await self._attempt(store, store.contains(key)):
                return store.tier
        return None

    async def delete_matching(self, part: str) -> int:
        """Forget keys with `part` in every tier; how many the tier with most of them had.

        Raises `StoreFailed` where one could not be asked, once all others have forgotten.
        """
        # The slowest first: what a hit copies from it meanwhile goes with the faster ones.
        counts = [await self._attempt(store, store.delete_matching(part)) for store in reversed(self._stores)]
        self._deletions += 1  # so that a hit that is on its way is copied no more
        if None in counts:
            raise StoreFailed
        return max((count for count in counts if count is not None), default=0)

    @property
    def shared(self) -> bool:
        """Whether other processes hold copies of what is in it."""
        return any(isinstance(store, SharedStore) for store in self._stores)

    async def announce_purge(self, part: str) -> None:
        """See `SharedStore`. Raises `StoreFailed`."""
        for store in self._stores:
            if isinstance(store, SharedStore) and await self._attempt(store, store.announce_purge(part)) is None:
                raise StoreFailed

    async def purges_since(self, mark: str | None, *, by_others: bool) -> Purges | None:
        """See `SharedStore`; None where nobody shares this store. Raises `StoreFailed`."""
        for store in self._stores:
            if isinstance(store, SharedStore):
                found = await self._attempt(store, store.purges_since(mark, by_others=by_others))
                if found is None:
                    raise StoreFailed
                return found
        return None

    def sizes(self) -> Mapping[CacheTier, int]:
        """Bytes held by each tier."""
        return {store.tier: store.size_bytes for store in self._stores}

    async def aclose(self) -> None:
        for store in self._stores:
            await store.aclose()

    async def _attempt(self, store: EmbeddingStore, call: Awaitable[_T]) -> _T | None:
        """What `call` gives, or None where the store fails. The log tells when failing begins and ends."""
        try:
            result = await call
        except Exception as error:
            metrics.STORE_ERRORS.inc()
            if store.tier not in self._failing:
                self._failing.add(store.tier)
                # Not its text, which for an OSError has a path.
                _log.warning("the %s store fails, going on without it: %r", store.tier, error)
            return None
        if store.tier in self._failing:
            self._failing.discard(store.tier)
            _log.info("the %s store answers again", store.tier)
        return result


def has_part(key: str, part: str) -> bool:
    """Whether `part` stands between colons of `key`, as the fingerprint does in a view key."""
    return part in key.split(":")


def expiry(clock: Clock, ttl_s: float | None) -> float:
    """When something kept now goes, in seconds since the epoch; 0 for never."""
    return 0 if ttl_s is None else clock() + ttl_s
