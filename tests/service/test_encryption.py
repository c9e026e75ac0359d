"""Blobs in folders and Redis that only who has the key can read, and that nobody can change unnoticed."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from processes import RedisServer

from wsisam_service.settings import Settings, SettingsError, load_settings
from wsisam_service.stores.embeddings import EmbeddingStore, Hit, SharedStore, TieredStore
from wsisam_service.stores.encryption import StoreKey, encrypted, parse_keys
from wsisam_service.stores.folder_store import FolderStore
from wsisam_service.stores.opening import open_store
from wsisam_service.stores.redis_store import RedisStore

KEY = "lite_medsam:79d8c9dca6db:1:aa:2:4:8"
BLOB = b"a view of tissue" * 1000
OLD, NEW = StoreKey(b"o" * 32), StoreKey(b"n" * 32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.close()


@pytest.fixture(params=["folder", pytest.param("redis", marks=pytest.mark.redis)])
def below(request: pytest.FixtureRequest, tmp_path: Path) -> EmbeddingStore:
    """A store to encrypt."""
    if request.param == "folder":
        return FolderStore(tmp_path, 1 << 20)
    server: RedisServer = request.getfixturevalue("server")
    redis.Redis.from_url(server.url).flushall()
    return RedisStore(server.url, "emb")


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.blob")
    return path


async def test_what_lies_in_the_store_is_not_the_blob(below: EmbeddingStore) -> None:
    store = encrypted(below, [NEW])
    await store.put(KEY, BLOB)
    await store.put(f"{KEY}1", BLOB)
    assert await store.get(KEY) == BLOB
    first, second = [await below.get(f"{NEW.id}:{name}") for name in (KEY, f"{KEY}1")]
    assert first is not None
    assert second is not None
    assert BLOB[:16] not in first
    sealed = slice(-len(BLOB) - 16, -16)  # before the tag, which is bound to the name
    assert first[sealed] != second[sealed]  # each has a nonce of its own
    assert store.tier == below.tier
    await store.aclose()


async def test_keys_are_exchanged_without_losing_what_is_stored(below: EmbeddingStore) -> None:
    await encrypted(below, [OLD]).put(KEY, BLOB)
    changing = encrypted(below, [NEW, OLD])
    assert await changing.get(KEY) == BLOB
    assert await changing.contains(KEY)
    await changing.put(f"{KEY}1", BLOB)
    changed = encrypted(below, [NEW])
    assert await changed.get(f"{KEY}1") == BLOB
    assert await changed.get(KEY) is None  # whose key is gone is a miss, and not there
    assert not await changed.contains(KEY)
    assert await changed.delete_matching("aa") == 2  # but a purge reaches it
    await changed.aclose()


async def test_a_blob_that_was_meddled_with_is_a_miss(tmp_path: Path) -> None:
    below = FolderStore(tmp_path, 1 << 20)
    store, name = encrypted(below, [NEW]), f"{NEW.id}:{KEY}"
    await store.put(KEY, BLOB)
    sealed = await below.get(name)
    assert sealed is not None
    await store.put(f"{KEY}1", b"other tissue" * 1000)
    other = await below.get(f"{name}1")
    assert other is not None
    for place in (0, 15, 25, len(sealed) // 2, len(sealed) - 1):  # magic, key id, nonce, blob, tag
        flipped = bytearray(sealed)
        flipped[place] ^= 1
        await below.put(name, bytes(flipped))
        assert await store.get(KEY) is None, place
    for changed in (*(sealed[:length] for length in (0, 20, 25, 33, 40)), other, BLOB):
        await below.put(name, changed)
        assert await store.get(KEY) is None
    await below.put(name, sealed)
    assert await store.get(KEY) == BLOB
    await store.aclose()


@pytest.mark.redis
async def test_one_worker_makes_a_blob_and_the_other_opens_it(server: RedisServer) -> None:
    first, second = (encrypted(RedisStore(server.url, "claims"), [NEW]) for _ in range(2))
    assert isinstance(first, SharedStore)
    assert isinstance(second, SharedStore)
    claim = await first.claim(KEY)
    assert not isinstance(claim, bytes)
    await first.put(KEY, BLOB)
    assert await second.claim(KEY) == BLOB
    await claim.release()
    raw = redis.Redis.from_url(server.url)
    raw.set(f"wsisam:claims:{NEW.id}:{KEY}", b"damaged")
    again = await second.claim(KEY)
    assert not isinstance(again, bytes)
    await again.release()
    now = (await second.purges_since(None, by_others=True)).mark
    await first.announce_purge("aa")
    assert (await second.purges_since(now, by_others=True)).slides == ["aa"]
    assert (await first.purges_since(now, by_others=True)).slides == []
    assert (await first.purges_since(now, by_others=False)).slides == ["aa"]
    await first.aclose()
    await second.aclose()


async def test_the_setting_encrypts_every_store_outside_this_process(tmp_path: Path) -> None:
    key = base64.b64encode(os.urandom(32)).decode()
    for namespace in ("emb", "refine"):
        store = open_store(
            f"folder:{tmp_path}",
            namespace=namespace,  # type: ignore[arg-type]
            memory_bytes=0,
            folder_bytes=1 << 20,
            keys=parse_keys(key),
        )
        assert isinstance(store, TieredStore)
        await store.put(KEY, BLOB)
        assert await store.get(KEY) == Hit(BLOB, "folder")
        assert BLOB[:16] not in only_file(tmp_path / namespace).read_bytes()
        await store.aclose()


@pytest.mark.parametrize(
    "bad",
    [
        "not base64",
        "!" + base64.b64encode(b"k" * 32).decode(),
        base64.b64encode(b"k" * 16).decode(),
        base64.b64encode(b"too short").decode(),
        "ä",
    ],
)
def test_a_bad_key_is_the_operators_error_and_is_not_repeated(bad: str) -> None:
    with pytest.raises(SettingsError, match="store_keys") as told:
        load_settings({"store_keys": bad})
    assert bad not in str(told.value)


def test_keys_are_shown_to_nobody() -> None:
    key = base64.b64encode(b"k" * 32).decode()
    settings = Settings(store_keys=key)  # type: ignore[arg-type]
    assert key not in settings.describe()
    assert key not in repr(settings)
