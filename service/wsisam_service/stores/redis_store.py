"""The store that workers share: Redis (DESIGN section 6), and the lock by which only one of them encodes a view.

Blobs of 3 MB go through threads: on the event loop, sending one stops everything for 9 ms (docs/SCALING.md). The
client is synchronous for that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import redis

from wsisam_service.jobs import FIRST_MARK, CacheTier, Purges
from wsisam_service.stores.breaker import Breaker
from wsisam_service.stores.embeddings import Claim, Unclaimed, has_part
from wsisam_service.stores.redis_urls import check_url, connect

_T = TypeVar("_T")

DEFAULT_TTL_S = 24 * 3600.0
TIMEOUT_S = 1.0
"""For a call; a store that needs longer than an encode is of no use."""
LOCK_S = 5.0
"""Life of a lock that nobody extends any more: so long a view waits for a worker that died while encoding it."""
MAKING_S = 5.0
"""For a view that another process reads and encodes: it may wait for a disk or in a queue longer than that."""
FAILURES, PAUSE_S = 3, 2.0
"""The breaker: after so many failures in a row Redis is left alone for so long."""
THREADS, WRITE_THREADS = 8, 4
"""Calls at once, and how many of them may be writes: a click's read does not wait behind what is being stored."""
WAIT_S = 1.0
"""For a thread, where reads of our own come first; then it is a miss, but no fault of Redis."""
FIRST_POLL_S, LONGEST_POLL_S = 0.02, 0.25
"""Between looks for a blob that another worker encodes."""
SIZE_AGE_S = 10.0
"""Age at which what is known of Redis's memory is asked for again."""
_ROOT = "wsisam"
_PURGES = f"{_ROOT}:purges"
"""A stream of the purges of all processes, for those that hold copies in memory."""
_MAX_PURGES, _PURGES_LIFE_S = 1000, 24 * 3600
_SCAN = 1000
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_EXTEND = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"


class RedisStore:
    """Blobs in Redis, under `wsisam:{namespace}:{key}`. Redis keeps the bound: `maxmemory` with `volatile-lru`.

    `ttl_s` is for blobs that are put without one, so that each can be evicted. Raises `ValueError` for a bad URL.
    """

    tier: CacheTier = "redis"

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        ttl_s: float = DEFAULT_TTL_S,
        timeout_s: float = TIMEOUT_S,
        lock_s: float = LOCK_S,
    ) -> None:
        check_url(url)
        self._url = url
        self._namespace = namespace
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self.lock_s = lock_s
        self._breaker = Breaker(failures=FAILURES, pause_s=PAUSE_S)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="redis")
        self._free = asyncio.Semaphore(THREADS)
        self._writing = asyncio.Semaphore(WRITE_THREADS)
        self._connected: Any = None
        self._name = secrets.token_hex(8)
        self._size_bytes, self._size_known = 0, -SIZE_AGE_S

    @property
    def size_bytes(self) -> int:
        """Memory that Redis uses, for all its clients together, as of the last look."""
        return self._size_bytes

    async def get(self, key: str) -> bytes | None:
        return await self._call(lambda client: client.get(self._key(key)), wait_s=WAIT_S)

    async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
        life_ms = round((self._ttl_s if ttl_s is None else ttl_s) * 1000)

        def put(client: Any) -> None:
            client.set(self._key(key), blob, px=life_ms)
            self._look_at_size(client)

        async with self._writing:
            await self._call(put)

    async def contains(self, key: str) -> bool:
        return await self._call(lambda client: bool(client.exists(self._key(key))), wait_s=WAIT_S)

    async def delete_matching(self, part: str) -> int:
        def delete(client: Any) -> int:
            found = client.scan_iter(match=f"{_ROOT}:{self._namespace}:*{_plain_glob(part)}*", count=_SCAN)
            matching = [key for key in found if has_part(key.decode(), part)]
            return sum(client.unlink(key) for key in matching)

        return await self._call(delete, bounded=False)

    async def claim(self, key: str) -> bytes | Claim:
        """See `embeddings.SharedStore`. Waits while another process holds the lock, as long as that one lives and
        `MAKING_S` at most.
        """
        token, pause_s, started = secrets.token_hex(16), FIRST_POLL_S, time.monotonic()
        while True:
            blob, taken = await self._call(
                lambda client: self._take(client, key, token),
                abandoned=lambda result: self._undo(result, key, token),
                wait_s=WAIT_S,
            )
            if blob is not None:
                return blob
            if taken:
                return _Lock(self, key, token)
            if time.monotonic() - started > MAKING_S:
                return Unclaimed()
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_POLL_S)

    async def announce_purge(self, part: str) -> bool:
        """See `embeddings.SharedStore`."""

        def announce(client: Any) -> bool:
            client.xadd(_PURGES, {"part": part, "by": self._name}, maxlen=_MAX_PURGES)
            return bool(client.expire(_PURGES, _PURGES_LIFE_S))

        return await self._call(announce)

    async def purges_since(self, mark: str | None, *, by_others: bool) -> Purges:
        """See `embeddings.SharedStore`."""
        if mark is None:
            last = await self._call(lambda client: client.xrevrange(_PURGES, count=1))
            return Purges((), last[0][0].decode() if last else FIRST_MARK)
        entries = await self._call(lambda client: client.xrange(_PURGES, min=f"({mark}"))
        own = self._name.encode() if by_others else None
        parts = [entry[b"part"].decode() for _, entry in entries if entry[b"by"] != own]
        return Purges(parts, entries[-1][0].decode() if entries else mark)

    async def extend(self, key: str, token: str) -> None:
        """Let the lock on `key` live on, if it is still the one of `token`."""
        await self._call(lambda client: client.eval(_EXTEND, 1, _lock_key(key), token, round(self.lock_s * 1000)))

    async def release(self, key: str, token: str) -> None:
        """Give the lock on `key` back, if it is still the one of `token`."""
        await self._call(lambda client: client.eval(_RELEASE, 1, _lock_key(key), token))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        if self._connected is not None:
            self._connected.close()

    def _take(self, client: Any, key: str, token: str) -> tuple[bytes | None, bool]:
        """The lock if it is free, or the blob if there is one by now; in this order, so that none is encoded twice."""
        taken = bool(client.set(_lock_key(key), token, nx=True, px=round(self.lock_s * 1000)))
        blob = client.get(self._key(key))
        if taken and blob is not None:
            client.eval(_RELEASE, 1, _lock_key(key), token)
        return blob, taken

    def _undo(self, result: tuple[bytes | None, bool], key: str, token: str) -> None:
        """The one who asked for the lock has gone before it got it."""
        _, taken = result
        if taken:
            self._client().eval(_RELEASE, 1, _lock_key(key), token)

    def _key(self, key: str) -> str:
        return f"{_ROOT}:{self._namespace}:{key}"

    def _client(self) -> Any:
        if self._connected is None:
            self._connected = connect(self._url, timeout_s=self._timeout_s, max_connections=2 * THREADS)
        return self._connected

    async def _call(
        self,
        command: Callable[[Any], _T],
        *,
        bounded: bool = True,
        abandoned: Callable[[_T], None] | None = None,
        wait_s: float | None = None,
    ) -> _T:
        """What `command` gives, run in a thread, within the time limit if it is `bounded`. `abandoned` gets what it
        gave when nobody waits for it any more. Raises `TimeoutError` where no thread is free within `wait_s`.
        """
        async with asyncio.timeout(wait_s):
            await self._free.acquire()
        try:
            self._breaker.check()
            work = self._pool.submit(lambda: command(self._client()))
            try:
                async with asyncio.timeout(self._timeout_s if bounded else None):
                    result = await asyncio.wrap_future(work)
            except asyncio.CancelledError:
                self._clean_up(work, abandoned)
                raise
            except Exception:
                self._clean_up(work, abandoned)
                self._breaker.failed()
                raise
            self._breaker.succeeded()
            return result
        finally:
            self._free.release()

    def _clean_up(self, work: Future[_T], abandoned: Callable[[_T], None] | None) -> None:
        if abandoned is None or work.cancel():
            return

        def clean(done: Future[_T]) -> None:
            if not done.cancelled() and done.exception() is None:
                with contextlib.suppress(RuntimeError):  # the store is closing; a lock expires by itself
                    self._pool.submit(abandoned, done.result())

        work.add_done_callback(clean)

    def _look_at_size(self, client: Any) -> None:
        now = time.monotonic()
        if now - self._size_known < SIZE_AGE_S:
            return
        self._size_known = now
        try:
            facts = client.info("memory")
        except redis.ResponseError:  # a user who may not ask; what was to be done is done
            return
        nodes = [facts] if "used_memory" in facts else facts.values()
        self._size_bytes = sum(int(node["used_memory"]) for node in nodes)


class _Lock:
    """A lock held on a key; it lives on while this process does."""

    def __init__(self, store: RedisStore, key: str, token: str) -> None:
        self._store, self._key, self._token = store, key, token
        self._extending = asyncio.create_task(self._extend())

    async def release(self) -> None:
        self._extending.cancel()
        with contextlib.suppress(Exception):  # then it expires
            await self._store.release(self._key, self._token)

    async def _extend(self) -> None:
        while True:
            await asyncio.sleep(self._store.lock_s / 4)
            with contextlib.suppress(Exception):  # a lock that is lost costs an encode, not an answer
                await self._store.extend(self._key, self._token)


def _lock_key(key: str) -> str:
    return f"{_ROOT}:lock:{key}"


def _plain_glob(part: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in part)
