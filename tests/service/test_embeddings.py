"""Stores: bounds in bytes, least recent use, life times, damage, and failures that are misses."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from wsisam_service import metrics
from wsisam_service.jobs import Purges
from wsisam_service.stores.embeddings import EmbeddingStore, Hit, MemoryStore, StoreFailed, TieredStore, Unclaimed
from wsisam_service.stores.folder_store import FolderStore
from wsisam_service.stores.opening import open_store

KEY = "lite_medsam:79d8c9dca6db:1:{}:2:{}:8"


def key(index: int, slide: str = "aa") -> str:
    return KEY.format(slide, index)


class Clock:
    """Time that moves when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def blob_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/??/*.blob"))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> EmbeddingStore:
    clock = Clock()
    return MemoryStore(10_000, clock=clock) if request.param == "memory" else FolderStore(tmp_path, 10_000, clock=clock)


async def test_a_store_gives_back_what_it_was_given(store: EmbeddingStore) -> None:
    await store.put(key(1), b"first")
    size = store.size_bytes
    await store.put(key(1), b"other")
    assert store.size_bytes == size
    assert await store.get(key(1)) == b"other"
    assert await store.contains(key(1))
    assert await store.get(key(2)) is None
    assert not await store.contains(key(2))


async def test_a_store_forgets_one_slide_only(store: EmbeddingStore) -> None:
    for index in range(3):
        await store.put(key(index, "aa"), b"x")
    for other in ("ab", "aaa"):
        await store.put(key(0, other), b"x")
    assert await store.delete_matching("aa") == 3
    assert await store.get(key(0, "aa")) is None
    assert await store.get(key(0, "ab")) == b"x"
    assert await store.get(key(0, "aaa")) == b"x"


@pytest.mark.parametrize("kind", ["memory", "folder"])
async def test_a_blob_lives_as_long_as_its_ttl(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    store = MemoryStore(10_000, clock=clock) if kind == "memory" else FolderStore(tmp_path, 10_000, clock=clock)
    await store.put(key(1), b"one", 60)
    await store.put(key(2), b"two")
    clock.now += 59
    assert await store.get(key(1)) == b"one"
    clock.now += 1
    assert not await store.contains(key(1))
    assert await store.get(key(1)) is None
    assert await store.get(key(2)) == b"two"


async def test_what_has_expired_in_a_folder_goes_though_nobody_asks_for_it(tmp_path: Path) -> None:
    clock = Clock()
    store = FolderStore(tmp_path, 10_000, clock=clock)
    await store.put(key(1), b"one", 60)
    await store.put(key(2), b"two", 60)
    await store.put(key(1, "bb"), b"other", 60)
    clock.now += 61
    assert await store.delete_matching("aa") == 2
    assert len(blob_files(tmp_path)) == 1
    await store.put(key(3), b"two")  # too soon to look through everything
    assert len(blob_files(tmp_path)) == 2
    clock.now += 3600
    await store.put(key(3), b"three")
    (left,) = blob_files(tmp_path)
    assert left.read_bytes().endswith(b"three")
    assert store.size_bytes == folder_bytes(tmp_path)
    await store.aclose()


async def test_memory_stays_within_its_bound_and_drops_what_was_used_longest_ago() -> None:
    store = MemoryStore(300)
    for index in range(3):
        await store.put(key(index), bytes(100))
    await store.get(key(0))
    await store.put(key(3), bytes(100))
    assert store.size_bytes == 300
    assert [await store.contains(key(index)) for index in range(4)] == [True, False, True, True]


async def test_a_blob_larger_than_the_bound_pushes_nothing_out() -> None:
    store = MemoryStore(300)
    await store.put(key(0), bytes(100))
    await store.put(key(1), bytes(301))
    assert await store.contains(key(0))
    assert not await store.contains(key(1))
    await store.put(key(2), bytes(300))
    assert await store.contains(key(2))


async def test_a_blob_larger_than_any_bound_pushes_nothing_out(store: EmbeddingStore) -> None:
    await store.put(key(0), bytes(1_000))
    await store.put(key(1), bytes(10_001))
    assert await store.contains(key(0))
    assert not await store.contains(key(1))


async def test_a_full_folder_keeps_its_bound_and_is_looked_through_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looks, files = FolderStore(tmp_path, 13_200), [], FolderStore._files
    monkeypatch.setattr(FolderStore, "_files", lambda self: looks.append(1) or files(self))
    for index in range(80):
        await store.put(key(index), bytes(200))
        assert folder_bytes(tmp_path) <= 13_200
    assert folder_bytes(tmp_path) > 10_000
    assert len(looks) < 40


async def test_a_folder_stays_within_its_bound_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 5_000)
    for index in range(4):
        await store.put(key(index), bytes(1_000))
        for age, path in enumerate(blob_files(tmp_path)):
            os.utime(path, (age, age))
    await store.get(key(0))  # now the latest
    for index in range(4, 7):
        await store.put(key(index), bytes(1_000))
        assert folder_bytes(tmp_path) <= 5_000
    assert await store.get(key(0)) == bytes(1_000)
    assert await store.get(key(6)) == bytes(1_000)


async def test_a_folder_drops_files_in_the_order_of_their_last_use(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 20_000)
    for index in range(15):
        await store.put(key(index), bytes(1_000))
        os.utime(store._path(key(index)), (index, index))
    for index in range(15, 23):
        await store.put(key(index), bytes(1_000))
    kept = [await store.contains(key(index)) for index in range(23)]
    assert kept == sorted(kept)
    assert kept.count(False) in range(5, 9)


async def test_what_a_process_that_died_left_half_written_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    await FolderStore(tmp_path, 20_000).put(key(1), b"embedding")
    (blob,) = blob_files(tmp_path)
    left, written = blob.with_name(".left.tmp"), blob.with_name(".written.tmp")
    left.write_bytes(b"half")
    written.write_bytes(b"half")
    os.utime(left, (1, 1))
    await FolderStore(tmp_path, 20_000).put(key(2), b"embedding")
    assert not left.exists()
    assert written.exists()


async def test_a_folder_keeps_its_bound_after_a_restart_that_begins_with_a_purge(tmp_path: Path) -> None:
    first = FolderStore(tmp_path, 1 << 20)
    for index in range(31):
        await first.put(key(index, "aa" if index else "bb"), bytes(300))
    bound = folder_bytes(tmp_path)
    second = FolderStore(tmp_path, bound)
    assert await second.delete_matching("bb") == 1
    for index in range(31, 33):
        await second.put(key(index), bytes(300))
        assert folder_bytes(tmp_path) <= bound


async def test_a_folder_survives_a_restart_with_its_bound(tmp_path: Path) -> None:
    first = FolderStore(tmp_path, 5_000)
    for index in range(4):
        await first.put(key(index), bytes(1_000))
    await first.aclose()
    second = FolderStore(tmp_path, 5_000)
    assert await second.get(key(3)) == bytes(1_000)
    await second.put(key(4), bytes(1_000))
    await second.put(key(5), bytes(1_000))
    assert folder_bytes(tmp_path) <= 5_000


async def test_two_processes_share_a_folder_and_its_bound(tmp_path: Path) -> None:
    one, two = FolderStore(tmp_path, 20_000), FolderStore(tmp_path, 20_000)
    for index in range(40):
        await (one if index % 2 else two).put(key(index), bytes(1_000))
        assert folder_bytes(tmp_path) <= 20_000 * 1.1
    assert await one.get(key(38)) == bytes(1_000)
    blob_files(tmp_path)[0].unlink()  # the other process evicts
    await one.put(key(99), bytes(1_000))
    assert await two.get(key(99)) == bytes(1_000)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"\0" + content[1:],
        lambda content: content.replace(b'"crc"', b'"crd"'),
        lambda content: content[: content.index(b"{")] + b"[]\nembedding",
    ],
)
async def test_a_damaged_file_is_a_miss_and_is_removed(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    store = FolderStore(tmp_path, 10_000)
    await store.put(key(1), b"embedding")
    (path,) = blob_files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert await store.get(key(1)) is None
    assert not path.exists()
    await store.put(key(1), b"embedding")
    assert await store.get(key(1)) == b"embedding"


async def test_a_file_under_another_name_is_a_miss(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10_000)
    await store.put(key(1), b"embedding")
    (one,) = blob_files(tmp_path)
    await store.put(key(2), b"other")
    (other,) = set(blob_files(tmp_path)) - {one}
    shutil.copy(one, other)
    assert not await store.contains(key(2))
    assert await store.get(key(2)) is None
    assert await store.get(key(1)) == b"embedding"


async def test_a_flipped_bit_in_the_blob_is_noticed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10_000)
    await store.put(key(1), b"embedding")
    (path,) = blob_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"G")
    assert await store.get(key(1)) is None


async def test_a_full_disk_is_a_miss_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = TieredStore([FolderStore(tmp_path, 10_000)])
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        whole(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    before = metrics.STORE_ERRORS._value.get()
    monkeypatch.setattr(Path, "write_bytes", full)
    await store.put(key(1), b"embedding")
    await store.put(key(2), b"embedding")
    monkeypatch.undo()
    assert metrics.STORE_ERRORS._value.get() == before + 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) not in caplog.text
    assert await store.get(key(1)) is None
    assert folder_bytes(tmp_path) == 0
    await store.put(key(1), b"embedding")
    assert await store.get(key(1)) == Hit(b"embedding", "folder")


async def test_tiers_name_the_one_that_hit_and_keep_a_copy_in_front(tmp_path: Path) -> None:
    first = open_store(f"folder:{tmp_path}", namespace="emb", memory_bytes=1_000, folder_bytes=10_000)
    await first.put(key(1), b"embedding")
    assert await first.get(key(1)) == Hit(b"embedding", "memory")
    await first.aclose()
    second = open_store(f"folder:{tmp_path}", namespace="emb", memory_bytes=1_000, folder_bytes=10_000)
    assert await second.tier_of(key(1)) == "folder"
    assert await second.get(key(1)) == Hit(b"embedding", "folder")
    assert await second.get(key(1)) == Hit(b"embedding", "memory")
    other = open_store(f"folder:{tmp_path}", namespace="refine", memory_bytes=1_000, folder_bytes=10_000)
    assert await other.get(key(1)) is None


async def test_what_tiers_keep_and_copy_lives_as_long_as_their_ttl() -> None:
    clock = Clock()
    front, back = (MemoryStore(10_000, clock=clock) for _ in range(2))
    tiers = TieredStore([front, back], ttl_s=60)
    await tiers.put(key(1), b"one")
    await back.put(key(2), b"two")
    assert await tiers.get(key(2)) is not None
    assert await front.contains(key(2))
    clock.now += 61
    assert await tiers.get(key(1)) is None
    assert not await front.contains(key(2))


@pytest.mark.parametrize("arrives", ["before it is over", "afterwards"])
async def test_a_hit_during_a_deletion_leaves_no_copy_in_front(arrives: str) -> None:
    asked, answer, deleting, delete = (asyncio.Event() for _ in range(4))

    class Slow(MemoryStore):
        tier = "folder"

        async def get(self, key: str) -> bytes | None:
            blob = await super().get(key)
            asked.set()
            await answer.wait()
            return blob

        async def delete_matching(self, part: str) -> int:
            deleting.set()
            await delete.wait()
            return await super().delete_matching(part)

    front, slow = MemoryStore(1000), Slow(1000)
    store = TieredStore([front, slow])
    await slow.put(key(1), b"one")
    deletion = asyncio.create_task(store.delete_matching("aa"))
    await deleting.wait()
    reading = asyncio.create_task(store.get(key(1)))
    await asked.wait()
    order = [(answer, reading), (delete, deletion)]
    for event, task in order if arrives == "before it is over" else reversed(order):
        event.set()
        await task
    assert reading.result() == Hit(b"one", "folder")
    assert front.size_bytes == 0


async def test_a_purge_says_so_where_one_tier_could_not_be_asked_and_the_others_have_forgotten() -> None:
    class Away(MemoryStore):
        async def delete_matching(self, part: str) -> int:
            raise OSError

        async def claim(self, key: str) -> Unclaimed:
            return Unclaimed()

        async def announce_purge(self, part: str) -> bool:
            raise OSError

        async def purges_since(self, mark: str | None, *, by_others: bool) -> Purges:
            raise OSError

    before, behind = MemoryStore(10_000), MemoryStore(10_000)
    tiers = TieredStore([before, Away(10_000), behind])
    await tiers.put(key(1), b"embedding")
    with pytest.raises(StoreFailed):
        await tiers.delete_matching("aa")
    assert before.size_bytes == behind.size_bytes == 0
    with pytest.raises(StoreFailed):
        await tiers.announce_purge("aa")
    with pytest.raises(StoreFailed):
        await tiers.purges_since(None, by_others=True)


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(ValueError, match="folder:PATH"):
        open_store("folder:", namespace="emb", memory_bytes=1, folder_bytes=1)
