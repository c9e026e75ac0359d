"""The shared store against a real redis-server: blobs, life times, the lock, and every way in which Redis lets down."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from processes import RedisServer, Server, free_port, redis_has_tls, redis_path, wait_until

from wsisam_service import metrics
from wsisam_service.settings import SettingsError, load_settings
from wsisam_service.stores import redis_store
from wsisam_service.stores.breaker import Breaker, CircuitOpen
from wsisam_service.stores.embeddings import Claim, Hit, TieredStore, Unclaimed
from wsisam_service.stores.opening import open_store
from wsisam_service.stores.redis_store import FAILURES, THREADS, RedisStore
from wsisam_service.stores.redis_urls import check_url

pytestmark = pytest.mark.redis

KEY = "lite_medsam:79d8c9dca6db:1:aa:2:4:8"
BLOB = os.urandom(3_400_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.close()


@pytest.fixture
def raw(server: RedisServer) -> redis.Redis:
    client = redis.Redis.from_url(server.url)
    client.flushall()
    return client


@pytest.fixture
async def store(server: RedisServer, raw: redis.Redis) -> AsyncIterator[RedisStore]:
    opened = RedisStore(server.url, "emb", ttl_s=100)
    yield opened
    await opened.aclose()


def write_certificate(pem: Path, secret: Path) -> None:
    """Of 127.0.0.1, signed by itself."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(secret)]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-out", str(pem)]
    subprocess.run(["openssl", "req", "-x509", *key, *name], check=True, capture_output=True)


async def until_claimed(waiting: asyncio.Task[bytes | Claim]) -> bytes | Claim:
    return await asyncio.wait_for(waiting, 20)


async def test_a_blob_comes_back_under_the_documented_key_with_a_life_time(store: RedisStore, raw: redis.Redis) -> None:
    await store.put(KEY, BLOB, 50)
    assert await store.get(KEY) == BLOB
    assert await store.contains(KEY)
    assert 49_000 < raw.pttl(f"wsisam:emb:{KEY}") <= 50_000
    await store.put(KEY, b"forever is not on offer")
    assert 0 < raw.ttl(f"wsisam:emb:{KEY}") <= 100
    assert await store.get("another") is None
    assert not await store.contains("another")
    assert store.size_bytes > len(BLOB)


async def test_a_slide_is_forgotten_wholly_and_alone(store: RedisStore) -> None:
    for slide in ("aa", "a*", "ab", "aaa"):
        for cx in range(3):
            await store.put(f"lite_medsam:79d8c9dca6db:1:{slide}:2:{cx}:8", b"x")
    assert await store.delete_matching("a*") == 3
    assert await store.contains("lite_medsam:79d8c9dca6db:1:aa:2:0:8")
    assert await store.delete_matching("aa") == 3
    for other in ("ab", "aaa"):
        assert await store.contains(f"lite_medsam:79d8c9dca6db:1:{other}:2:0:8")


async def test_a_purge_is_told_to_others_and_once(store: RedisStore, server: RedisServer) -> None:
    other = RedisStore(server.url, "emb")
    start = (await other.purges_since(None, by_others=True)).mark
    await store.announce_purge("aa")
    told = await other.purges_since(start, by_others=True)
    assert told.slides == ["aa"]
    for mark in (told.mark, (await other.purges_since(None, by_others=True)).mark):
        assert (await other.purges_since(mark, by_others=True)).slides == []
    assert (await store.purges_since(start, by_others=True)).slides == []
    assert (await store.purges_since(start, by_others=False)).slides == ["aa"]
    await other.aclose()


async def test_purges_are_remembered_for_a_day_and_so_many_at_most(store: RedisStore, raw: redis.Redis) -> None:
    with raw.pipeline() as earlier:
        for number in range(2_000):
            earlier.xadd("wsisam:purges", {"part": f"slide {number}", "by": "somebody"})
        earlier.execute()
    await store.announce_purge("aa")
    assert 1_000 <= raw.xlen("wsisam:purges") < 1_200  # Redis forgets them by the hundred
    assert 24 * 3600 - 60 < raw.ttl("wsisam:purges") <= 24 * 3600


async def test_sending_blobs_leaves_the_event_loop_free(store: RedisStore) -> None:
    await store.put(KEY, BLOB)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    for _ in range(5):
        await store.get(KEY)
    turning.cancel()
    assert turns > 50  # a transfer on the loop would let it turn a handful of times


async def test_only_one_of_two_workers_may_make_a_blob_and_the_other_gets_it(
    store: RedisStore, server: RedisServer, raw: redis.Redis
) -> None:
    other = RedisStore(server.url, "emb")
    claim = await store.claim(KEY)
    assert not isinstance(claim, bytes)
    waiting = asyncio.create_task(other.claim(KEY))
    await store.put(KEY, BLOB)
    assert await until_claimed(waiting) == BLOB
    await claim.release()
    assert raw.exists(f"wsisam:lock:{KEY}") == 0
    assert await store.claim(KEY) == BLOB
    assert raw.exists(f"wsisam:lock:{KEY}") == 0
    await other.aclose()


async def test_a_claim_lives_as_long_as_its_holder_and_no_longer(server: RedisServer, raw: redis.Redis) -> None:
    holder, other = (RedisStore(server.url, "emb", lock_s=0.4) for _ in range(2))
    claim = await holder.claim(KEY)
    assert not isinstance(claim, bytes)
    waiting = asyncio.create_task(other.claim(KEY))
    done, _ = await asyncio.wait([waiting], timeout=1.5)  # far longer than the lock lives by itself
    assert not done
    claim._extending.cancel()  # type: ignore[attr-defined]  # as if the holder had died
    second = await until_claimed(waiting)
    assert not isinstance(second, bytes)
    await claim.release()  # what is no longer its own
    assert raw.exists(f"wsisam:lock:{KEY}") == 1
    await second.release()
    assert raw.exists(f"wsisam:lock:{KEY}") == 0
    await holder.aclose()
    await other.aclose()


async def test_a_blob_that_takes_another_process_long_is_made_twice(
    server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "MAKING_S", 0.2)
    holder, other = (RedisStore(server.url, "emb") for _ in range(2))
    claim = await holder.claim(KEY)
    assert not isinstance(claim, bytes)
    second = await until_claimed(asyncio.create_task(other.claim(KEY)))
    assert isinstance(second, Unclaimed)
    await second.release()
    assert raw.exists(f"wsisam:lock:{KEY}") == 1
    await claim.release()
    await holder.aclose()
    await other.aclose()


async def test_who_stops_waiting_leaves_no_lock_behind(store: RedisStore, raw: redis.Redis) -> None:
    for _ in range(20):
        asking = asyncio.create_task(store.claim(KEY))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.to_thread(wait_until, lambda: raw.exists(f"wsisam:lock:{KEY}") == 0, "no lock", within_s=3.0)


async def test_a_closed_store_leaves_no_thread_and_no_connection(server: RedisServer, raw: redis.Redis) -> None:
    def connections() -> set[str]:
        return {client["id"] for client in raw.client_list()}

    before = connections()
    store = RedisStore(server.url, "emb")
    await asyncio.gather(*(store.put(f"{KEY}{number}", BLOB) for number in range(3)))
    assert connections() > before
    await store.aclose()
    assert not any(thread.is_alive() for thread in store._pool._threads)
    await asyncio.to_thread(wait_until, lambda: connections() <= before, "no connection")


async def test_a_frozen_redis_is_a_miss_soon_and_then_at_once(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    store = RedisStore(server.url, "emb", timeout_s=0.3)
    tiers = TieredStore([store])
    await tiers.put(KEY, BLOB)
    errors = metrics.STORE_ERRORS._value.get()
    server.signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            assert await tiers.get(KEY) is None
        with pytest.raises(CircuitOpen):
            await store.get(KEY)
        assert await tiers.claim(KEY) is None
        assert metrics.STORE_ERRORS._value.get() == errors + 4
    finally:
        server.signal(signal.SIGCONT)

    async def found() -> bool:
        return await tiers.get(KEY) is not None

    started = time.monotonic()
    while not await found():
        assert time.monotonic() - started < 10, "the breaker never closed"
        await asyncio.sleep(0.05)
    server.close()
    await tiers.aclose()


async def test_a_crowd_of_our_own_is_no_fault_of_redis(
    server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Steady:
        def get(self, key: str) -> bytes:
            time.sleep(0.02)
            return b"x"

    store = RedisStore(server.url, "emb", timeout_s=0.15)
    monkeypatch.setattr(store, "_client", Steady)
    assert await asyncio.gather(*(store.get(KEY) for _ in range(160))) == [b"x"] * 160  # 0.4 s of eight threads
    await store.aclose()


class Held:
    """A client whose calls take until they are let go."""

    def __init__(self, held: str) -> None:
        self.held, self.go = held, threading.Event()

    def get(self, key: str) -> bytes:
        self._wait("get")
        return b"x"

    def set(self, key: str, blob: bytes, px: int, nx: bool = False) -> bool:
        self._wait("set")
        return True

    def scan_iter(self, match: str, count: int) -> Iterator[bytes]:
        self._wait("scan")
        yield f"wsisam:emb:{KEY}".encode()

    def unlink(self, key: bytes) -> int:
        return 1

    def _wait(self, call: str) -> None:
        if call == self.held:
            assert self.go.wait(60)


async def test_a_click_does_not_wait_behind_what_is_being_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = RedisStore("redis://nowhere:1/0", "emb", timeout_s=60), Held("set")
    monkeypatch.setattr(store, "_client", lambda: client)
    monkeypatch.setattr(store, "_look_at_size", lambda client: None)
    writes = [asyncio.create_task(store.put(KEY, b"x")) for _ in range(2 * THREADS)]
    await asyncio.sleep(0)  # they begin
    assert await store.get(KEY) == b"x"
    assert not any(write.done() for write in writes)
    client.go.set()
    await asyncio.gather(*writes)
    await store.aclose()


async def test_a_read_behind_a_crowd_of_slow_reads_is_a_miss_and_no_fault_of_redis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_store, "WAIT_S", 0.05)
    store, client = RedisStore("redis://nowhere:1/0", "emb", timeout_s=60), Held("get")
    monkeypatch.setattr(store, "_client", lambda: client)
    first = [asyncio.create_task(store.get(KEY)) for _ in range(THREADS)]
    await asyncio.sleep(0)
    late = await asyncio.gather(*(store.get(KEY) for _ in range(FAILURES)), return_exceptions=True)
    assert [type(error) for error in late] == [TimeoutError] * FAILURES
    client.go.set()
    assert await asyncio.gather(*first) == [b"x"] * THREADS
    assert await store.get(KEY) == b"x"
    await store.aclose()


async def test_only_failures_in_a_row_keep_redis_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsteady:
        def get(self, key: str) -> bytes:
            if key.endswith("bad"):
                raise redis.ConnectionError
            return b"x"

    store = RedisStore("redis://nowhere:1/0", "emb")
    monkeypatch.setattr(store, "_client", Unsteady)
    for _ in range(2):
        for _ in range(FAILURES - 1):
            with pytest.raises(redis.ConnectionError):
                await store.get("bad")
        assert await store.get(KEY) == b"x"
    await store.aclose()


async def test_callers_who_leave_are_no_fault_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = RedisStore("redis://nowhere:1/0", "emb", timeout_s=60), Held("get")
    monkeypatch.setattr(store, "_client", lambda: client)
    asking = [asyncio.create_task(store.get(KEY)) for _ in range(FAILURES)]
    await asyncio.sleep(0)
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    client.go.set()
    assert await store.get(KEY) == b"x"
    await store.aclose()


async def test_a_lock_that_comes_too_late_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Late(Held):
        def get(self, key: str) -> None:  # type: ignore[override]
            """Nobody has made it."""

        def eval(self, script: str, count: int, lock: str, token: str) -> None:
            assert lock == f"wsisam:lock:{KEY}"
            loop.call_soon_threadsafe(given_back.set)

    store, client = RedisStore("redis://nowhere:1/0", "emb", timeout_s=0.05), Late("set")
    monkeypatch.setattr(store, "_client", lambda: client)
    with pytest.raises(TimeoutError):
        await store.claim(KEY)
    client.go.set()
    await asyncio.wait_for(given_back.wait(), 20)
    await store.aclose()


async def test_a_lock_is_held_no_longer_than_its_claim(store: RedisStore) -> None:
    before = asyncio.all_tasks()
    claim = await store.claim(KEY)
    assert not isinstance(claim, bytes)
    (holding,) = asyncio.all_tasks() - before
    await claim.release()
    assert holding.cancelled()


async def test_a_lock_outlives_a_call_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    extended, loop = asyncio.Event(), asyncio.get_running_loop()

    class Unsteady:
        calls = 0

        def eval(self, *_: object) -> None:
            self.calls += 1
            if self.calls == 1:
                raise redis.ConnectionError
            loop.call_soon_threadsafe(extended.set)

    store, client = RedisStore("redis://nowhere:1/0", "emb", lock_s=0.01), Unsteady()
    monkeypatch.setattr(store, "_client", lambda: client)
    lock = redis_store._Lock(store, KEY, "token")
    await asyncio.wait_for(extended.wait(), 20)
    await lock.release()
    await store.aclose()


async def test_a_redis_that_is_away_hinders_nobody_from_giving_a_claim_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def set(self, key: str, token: str, nx: bool, px: int) -> bool:
            return True

        def get(self, key: str) -> None:
            """Nobody has made it."""

        def eval(self, script: str, count: int, lock: str, token: str) -> None:
            raise redis.ConnectionError

    store = RedisStore("redis://nowhere:1/0", "emb")
    monkeypatch.setattr(store, "_client", Away)
    claim = await store.claim(KEY)
    assert not isinstance(claim, bytes)
    await claim.release()
    await store.aclose()


async def test_a_purge_gets_the_time_that_a_large_redis_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    store, client = RedisStore("redis://nowhere:1/0", "emb", timeout_s=0.05), Held("scan")
    monkeypatch.setattr(store, "_client", lambda: client)
    purge = asyncio.create_task(store.delete_matching("aa"))
    with pytest.raises(TimeoutError):
        await store._call(lambda client: client.go.wait(60))  # begun later, and at its limit now
    client.go.set()
    assert await purge == 1
    await store.aclose()


async def test_a_redis_that_died_and_came_back_empty_is_used_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    tiers = TieredStore([RedisStore(server.url, "emb", timeout_s=0.5)])
    await tiers.put(KEY, BLOB)
    server.kill()
    assert await tiers.get(KEY) is None
    server.restart()
    assert await tiers.get(KEY) is None  # over the stale socket, at the second attempt
    await tiers.put(KEY, b"again")
    assert await tiers.get(KEY) == Hit(b"again", "redis")
    server.close()
    await tiers.aclose()


async def test_a_full_redis_drops_old_blobs_and_takes_new_ones(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, max_bytes=32 << 20)
    tiers = TieredStore([RedisStore(server.url, "emb")])
    errors = metrics.STORE_ERRORS._value.get()
    for index in range(20):
        await tiers.put(f"{KEY}{index}", BLOB)
    assert await tiers.get(f"{KEY}19") is not None
    assert await tiers.tier_of(f"{KEY}0") is None
    assert metrics.STORE_ERRORS._value.get() == errors
    server.close()
    await tiers.aclose()


async def test_an_acl_user_may_use_its_own_keys_only(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    administrator = redis.Redis.from_url(server.url)
    administrator.execute_command(
        "ACL SETUSER wsisam on >p@ss ~wsisam:* +@all -@dangerous"
    )  # so it may not ask for sizes
    administrator.execute_command("ACL SETUSER default off")
    store = RedisStore(f"redis://wsisam:p%40ss@127.0.0.1:{server.port}/0", "emb")
    await store.put(KEY, b"x")
    assert await store.get(KEY) == b"x"
    claim = await store.claim("other")
    assert not isinstance(claim, bytes)
    await claim.release()
    wrong = RedisStore(f"redis://wsisam:wrong@127.0.0.1:{server.port}/0", "emb")
    with pytest.raises(redis.AuthenticationError):
        await wrong.get(KEY)
    await store.aclose()
    await wrong.aclose()
    server.close()


async def test_tls_is_checked_against_the_given_authority(tmp_path: Path) -> None:
    pem, secret = tmp_path / "cert.pem", tmp_path / "key.pem"
    if not redis_has_tls():
        pytest.skip("this redis-server was built without TLS")
    write_certificate(pem, secret)
    port = free_port()
    tls = ("--tls-port", str(port), "--port", "0", "--tls-cert-file", str(pem), "--tls-key-file", str(secret))
    server = RedisServer(
        tmp_path / "redis", *tls, "--tls-ca-cert-file", str(pem), "--tls-auth-clients", "no", port=port
    )
    url = f"rediss://127.0.0.1:{port}/0"
    trusting = RedisStore(f"{url}?ssl_ca_certs={pem}", "emb")
    await trusting.put(KEY, BLOB)
    assert await trusting.get(KEY) == BLOB
    doubting = RedisStore(url, "emb")
    with pytest.raises(redis.ConnectionError):
        await doubting.get(KEY)
    await trusting.aclose()
    await doubting.aclose()
    server.close()


async def test_sentinel_leads_to_the_server_in_charge(server: RedisServer, raw: redis.Redis, tmp_path: Path) -> None:
    port = free_port()
    rules = tmp_path / "sentinel.conf"
    rules.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor wsisam 127.0.0.1 {server.port} 1\n")
    sentinel = Server([redis_path(), str(rules), "--sentinel"], tmp_path / "sentinel.log")
    sentinel.port = port
    sentinel.await_listening()
    store = RedisStore(f"redis+sentinel://127.0.0.1:{port}/wsisam/0", "emb")
    await store.put(KEY, BLOB)
    assert raw.exists(f"wsisam:emb:{KEY}")
    assert await store.get(KEY) == BLOB
    await store.aclose()
    sentinel.close()


async def test_a_cluster_is_a_store_too(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--cluster-enabled", "yes")
    client = redis.Redis.from_url(server.url)
    client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    wait_until(lambda: client.cluster("info")["cluster_state"] == "ok", "the cluster is whole")
    store = RedisStore(f"redis+cluster://127.0.0.1:{server.port}", "emb")
    await store.put(KEY, BLOB)
    assert await store.claim(KEY) == BLOB
    claim = await store.claim("other")
    assert not isinstance(claim, bytes)
    await claim.release()
    assert await store.delete_matching("aa") == 1
    assert not await store.contains(KEY)
    await store.aclose()
    server.close()


def test_the_breaker_lets_one_call_try_after_its_pause() -> None:
    now = 0.0
    breaker = Breaker(failures=2, pause_s=5, clock=lambda: now)
    breaker.failed()
    breaker.check()
    breaker.failed()
    with pytest.raises(CircuitOpen):
        breaker.check()
    now = 5.0
    breaker.check()
    with pytest.raises(CircuitOpen):
        breaker.check()  # beside the one that tries
    breaker.succeeded()
    breaker.check()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host:1",
        "redis+cluster://host",
        "rediss+cluster://h:1?ssl_ca=x",
        "redis3://h",
        "redis://h:1/0?password=hunter2",
        "redis://h:1?hunter2",
        "rediss://h:1/0?ssl_password=hunter2",
        "redis://u:hunter2/2@h:1/0",
        "redis://u:12/hunter2@h:1/0",
        "redis://u:12#hunter2@h:1/0",
        "redis+cluster://u:12/hunter2@h:1",
        "redis://h:hunter2/0",
    ],
)
def test_a_url_that_is_none_is_refused_at_start_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"Redis URL|Sentinel URL") as refused:
        check_url(url)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(SettingsError, match="setting store"):
        load_settings({"store": url})


async def test_the_setting_opens_memory_before_redis(server: RedisServer, raw: redis.Redis) -> None:
    first, second = (open_store(server.url, namespace="emb", memory_bytes=10_000_000, folder_bytes=0) for _ in range(2))
    await first.put(KEY, BLOB)
    assert (await first.get(KEY)) == Hit(BLOB, "memory")
    assert (await second.get(KEY)) == Hit(BLOB, "redis")
    await first.aclose()
    await second.aclose()
