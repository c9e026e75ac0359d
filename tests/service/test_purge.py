"""`DELETE /v1/slides/{id}/cache`: nothing that was made of one slide stays anywhere, and other slides lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from fastapi import FastAPI
from numpy_worker import NumpyBackend
from processes import Process, RedisServer, free_port, wait_until
from pydantic import SecretStr
from stand_ins import NumpyExecutor

from wsisam_service import purges
from wsisam_service.app import create_app
from wsisam_service.cluster.remote_executor import RemoteExecutor
from wsisam_service.execution.executor import LocalExecutor
from wsisam_service.jobs import FIRST_MARK, Purges
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.tiff import _TiledLevel, _TilePixels
from wsisam_service.slides.write import write_pyramid
from wsisam_service.stores.embeddings import MemoryStore, StoreFailed, TieredStore
from wsisam_service.stores.opening import open_store
from wsisam_service.stores.redis_store import RedisStore

BOX = [600, 400, 760, 520]
TOKEN = "a token of the test"
TILE = "0,0,512,512/512,/0/default.jpg"


@pytest.fixture
def two_slides(slides: Path, tmp_path: Path) -> Path:
    """`purged.tif` and `kept.tif`, of different content."""
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slides / "tissue.tif", folder / "purged.tif")
    write_pyramid(folder / "kept.tif", np.full((1024, 1536, 3), 200, np.uint8), 0.5)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.close()


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60) as client,
    ):
        yield client


def local_executor(store: str) -> LocalExecutor[Any, Any]:
    stores = [
        open_store(store, namespace=name, memory_bytes=64 << 20, folder_bytes=64 << 20, ttl_s=600)
        for name in ("emb", "refine")
    ]
    bounds = {"l1_bytes": 1 << 30, "max_encodes": 64, "max_decodes": 64, "encode_batch": 1, "decode_batch": 1}
    return LocalExecutor([NumpyBackend()], stores[0], stores[1], **bounds)


async def id_of(client: httpx.AsyncClient, name: str) -> str:
    return str((await client.get("/v1/slides", params={"q": name})).json()["slides"][0]["id"])


async def fingerprint_of(client: httpx.AsyncClient, slide: str) -> str:
    return str((await client.get(f"/v1/slides/{slide}")).json()["fingerprint"])


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("not within a minute")


@contextlib.contextmanager
def worker(store: str, folder: Path) -> Iterator[str]:
    """The URL of a worker process on `store`, once it is ready."""
    port = free_port()
    numpy_worker = str(Path(__file__).with_name("numpy_worker.py"))
    environment = {**os.environ, "WSISAM_WORKER_TOKEN": TOKEN, "WSISAM_STORE": store}
    command = [sys.executable, numpy_worker, "worker", "--port", str(port)]
    running = Process(command, folder / "worker.log", env=environment)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert running.alive, running.said()
        try:
            return httpx.get(f"{url}/readyz").is_success
        except httpx.TransportError:
            return False

    wait_until(ready, "the worker is ready")
    yield url
    running.close()


async def click(client: httpx.AsyncClient, slide: str, refine: str | None = None) -> dict[str, Any]:
    prompt = {"box": BOX} if refine is None else {"refine": refine, "points": [[650, 450, 1]]}
    answer = await client.post(f"/v1/slides/{slide}/segment", json={"prompts": [prompt]})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["results"][0]
    return result


@pytest.mark.redis
@pytest.mark.parametrize("kind", ["memory", "folder", "redis"])
async def test_a_slide_goes_from_every_tier_and_alone(
    kind: str, two_slides: Path, tmp_path: Path, server: RedisServer
) -> None:
    store = {"memory": "memory", "folder": f"folder:{tmp_path / 'store'}", "redis": server.url}[kind]
    settings = Settings(slides=(str(two_slides),), store=store)
    async with served(create_app(settings, Catalogue(settings.slides), local_executor(store))) as client:
        purged, kept = await id_of(client, "purged"), await id_of(client, "kept")
        token = (await click(client, purged))["refine"]
        await click(client, kept)
        answer = await client.delete(f"/v1/slides/{purged}/cache")
        assert (answer.status_code, answer.json()) == (200, {"views": 2})
        assert (await click(client, purged))["cache"] == {"hr": "encoded", "lr": "encoded"}
        assert (await click(client, kept))["cache"] == {"hr": "l1", "lr": "l1"}
        again = {"prompts": [{"refine": token, "points": [[650, 450, 1]]}]}
        late = await client.post(f"/v1/slides/{purged}/segment", json=again)
        assert (late.status_code, late.json()["type"]) == (410, "/problems/refine-expired")


class SlowToForget(MemoryStore):
    """A tier that says when it begins to forget, and forgets when it is told to."""

    tier = "redis"

    def __init__(self) -> None:
        super().__init__(64 << 20)
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def delete_matching(self, part: str) -> int:
        self.asked.set()
        await self.go.wait()
        return await super().delete_matching(part)


async def test_a_click_during_a_purge_brings_nothing_back(two_slides: Path) -> None:
    slow = SlowToForget()
    bounds = {"l1_bytes": 1 << 30, "max_encodes": 64, "max_decodes": 64, "encode_batch": 1, "decode_batch": 1}
    tiers, states = TieredStore([MemoryStore(64 << 20), slow]), TieredStore([MemoryStore(64 << 20)])
    executor: LocalExecutor[Any, Any] = LocalExecutor([NumpyBackend()], tiers, states, **bounds)
    settings = Settings(slides=(str(two_slides),))
    async with served(create_app(settings, Catalogue(settings.slides), executor)) as client:
        purged, kept = await id_of(client, "purged"), await id_of(client, "kept")
        await click(client, purged)
        purge = asyncio.create_task(client.delete(f"/v1/slides/{purged}/cache"))
        await slow.asked.wait()
        meanwhile = asyncio.create_task(click(client, purged))
        await click(client, kept)  # goes on, and has taken longer than the other one would have
        slow.go.set()
        assert (await purge).json() == {"views": 2}
        assert (await meanwhile)["cache"] == {"hr": "encoded", "lr": "encoded"}


async def test_tiles_of_reads_under_way_go_too(two_slides: Path) -> None:
    settings = Settings(slides=(str(two_slides),))
    catalogue = Catalogue(settings.slides)

    class Reading(NumpyExecutor):
        async def purge(self, fingerprint: str) -> int:
            slide = catalogue.list("purged").slides[0].slide
            assert slide is not None
            slide.read_region(0, 0, 0, 512, 512)  # as one that began before
            assert catalogue._tiles.nbytes > 0
            return 0

    async with served(create_app(settings, catalogue, Reading())) as client:
        assert (await client.delete(f"/v1/slides/{await id_of(client, 'purged')}/cache")).status_code == 200
        assert catalogue._tiles.nbytes == 0


@pytest.mark.parametrize("part", [TILE, "0,0,1500,1000/1400,/0/default.jpg"], ids=["in one read", "in several reads"])
async def test_what_is_being_read_and_drawn_is_not_kept(
    part: str, two_slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, go = threading.Event(), threading.Event()
    samples = _TilePixels._samples

    def slow_samples(self: _TilePixels, layout: _TiledLevel, number: int) -> Any:
        busy.set()
        assert go.wait(20)
        return samples(self, layout, number)

    monkeypatch.setattr(_TilePixels, "_samples", slow_samples)
    settings = Settings(slides=(str(two_slides),))
    catalogue = Catalogue(settings.slides)
    app = create_app(settings, catalogue, NumpyExecutor())
    async with served(app) as client:
        slide = await id_of(client, "purged")
        drawing = asyncio.create_task(client.get(f"/v1/slides/{slide}/iiif/{part}"))
        assert await asyncio.to_thread(busy.wait, 20)
        assert (await client.delete(f"/v1/slides/{slide}/cache")).status_code == 200
        go.set()
        drawn = (await drawing).content
        assert app.state.iiif_pictures.fingerprints() == set()
        assert catalogue._tiles.nbytes == 0
        assert (await client.get(f"/v1/slides/{slide}/iiif/{part}")).content == drawn
        assert app.state.iiif_pictures.fingerprints() == {await fingerprint_of(client, slide)}
        assert catalogue._tiles.nbytes > 0


async def test_decoded_tiles_and_tiles_for_viewers_go_too(two_slides: Path) -> None:
    settings = Settings(slides=(str(two_slides),))
    catalogue = Catalogue(settings.slides)
    app = create_app(settings, catalogue, NumpyExecutor())
    async with served(app) as client:
        purged, kept = await id_of(client, "purged"), await id_of(client, "kept")
        for slide in (purged, kept):
            answer = await client.get(f"/v1/slides/{slide}/iiif/{TILE}")
            assert answer.status_code == 200
        tiles, pictures = catalogue._tiles, app.state.iiif_pictures
        held, drawn = tiles.nbytes, pictures._bytes
        assert (await client.delete(f"/v1/slides/{purged}/cache")).status_code == 200
        assert 0 < tiles.nbytes == sum(tile.nbytes for tile in tiles._tiles.values()) < held
        assert 0 < pictures._bytes == sum(len(one.content) for one in pictures._held.values()) < drawn
        unknown = await client.delete(f"/v1/slides/{'a' * 20}/cache")
        assert unknown.json()["type"] == "/problems/unknown-slide"


@pytest.mark.redis
async def test_redis_has_nothing_left_and_the_other_worker_hears_of_it(
    two_slides: Path, tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real worker process is asked to purge; another one with the same views in its memory follows."""
    monkeypatch.setattr(purges, "POLL_S", 0.05)
    raw = redis.Redis.from_url(server.url)
    raw.flushall()
    settings = Settings(slides=(str(two_slides),), store=server.url)
    here = local_executor(server.url)
    catalogue = Catalogue(settings.slides)
    with worker(server.url, tmp_path) as url:
        remote = RemoteExecutor(url, TOKEN, timeout_s=30)
        async with (
            served(create_app(settings, catalogue, here)) as near,
            served(create_app(settings, catalogue, remote)) as far,
        ):
            purged, kept = await id_of(near, "purged"), await id_of(near, "kept")
            for slide in (purged, kept):
                await click(near, slide)
                await click(far, slide)
            fingerprint = await fingerprint_of(near, purged)
            assert len([key for key in raw.scan_iter() if fingerprint.encode() in key]) >= 2
            assert (await far.delete(f"/v1/slides/{purged}/cache")).json() == {"views": 2}
            assert [key for key in raw.scan_iter() if fingerprint.encode() in key] == []

            await until(lambda: not any(fingerprint in key for key in here._cache._entries))
            assert (await click(near, kept))["cache"]["hr"] == "l1"
            assert (await click(near, purged))["cache"]["hr"] == "encoded"


@pytest.mark.redis
@pytest.mark.parametrize("model", ["in each gateway", "at a worker"])
async def test_the_other_gateway_forgets_tiles_and_pictures_of_that_slide_alone(
    model: str, two_slides: Path, tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purges, "POLL_S", 0.05)
    raw = redis.Redis.from_url(server.url)
    raw.flushall()
    settings = Settings(slides=(str(two_slides),), secret=SecretStr("a secret of the test"))
    catalogues = [Catalogue(settings.slides) for _ in range(2)]
    with contextlib.ExitStack() as running:
        if model == "at a worker":
            url = running.enter_context(worker(server.url, tmp_path))
            apps = [create_app(settings, one, RemoteExecutor(url, TOKEN, timeout_s=30)) for one in catalogues]
        else:
            apps = [create_app(settings, one, local_executor(server.url)) for one in catalogues]
        async with served(apps[0]) as first, served(apps[1]) as second:
            purged, kept = await id_of(first, "purged"), await id_of(first, "kept")
            for client in (first, second):
                for slide in (purged, kept):
                    await click(client, slide)
                    assert (await client.get(f"/v1/slides/{slide}/iiif/{TILE}")).status_code == 200
            prints = {slide: await fingerprint_of(second, slide) for slide in (purged, kept)}
            pictures, tiles = apps[1].state.iiif_pictures, catalogues[1]._tiles
            held = tiles.nbytes
            assert pictures.fingerprints() == set(prints.values())

            assert (await first.delete(f"/v1/slides/{purged}/cache")).status_code == 200
            await until(lambda: prints[purged] not in pictures.fingerprints())
            assert pictures.fingerprints() == {prints[kept]}
            assert 0 < tiles.nbytes == sum(tile.nbytes for tile in tiles._tiles.values()) < held
            assert len({owner for owner, _, _ in tiles._tiles}) == 1
            assert (await second.get(f"/v1/slides/{purged}/iiif/{TILE}")).status_code == 200
    told = b"".join(field for _, entry in raw.xrange("wsisam:purges") for field in entry.values())
    assert told
    for word in (purged, prints[purged], "purged", "kept"):
        assert word.encode() not in told


@pytest.mark.redis
async def test_a_frozen_redis_holds_up_nothing_and_what_was_purged_meanwhile_arrives(
    two_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purges, "POLL_S", 0.05)
    frozen = RedisServer(tmp_path / "redis")
    settings = Settings(slides=(str(two_slides),))
    asked: list[str | None] = []

    class Watched(LocalExecutor[Any, Any]):
        async def purges(self, since: str | None) -> Purges | None:
            asked.append(since)
            return await super().purges(since)

    monkeypatch.setitem(globals(), "LocalExecutor", Watched)
    app = create_app(settings, Catalogue(settings.slides), local_executor(frozen.url))
    async with served(app) as client:
        purged = await id_of(client, "purged")
        assert (await client.get(f"/v1/slides/{purged}/iiif/{TILE}")).status_code == 200
        fingerprint = await fingerprint_of(client, purged)
        frozen.signal(signal.SIGSTOP)
        before, turns = len(asked), 0
        while len(asked) < before + 2:  # one question that Redis leaves without an answer, at least
            turns += 1
            await asyncio.sleep(0.01)
        assert turns > 20
        frozen.signal(signal.SIGCONT)
        elsewhere = RedisStore(frozen.url, "emb")
        await elsewhere.announce_purge(fingerprint)
        await elsewhere.aclose()
        await until(lambda: fingerprint not in app.state.iiif_pictures.fingerprints())
    frozen.close()


async def test_a_gateway_by_itself_asks_nobody(two_slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    class Watched(NumpyExecutor):
        async def purges(self, since: str | None) -> Purges | None:
            asked.append(since)
            return await local.purges(since)

    monkeypatch.setattr(purges, "POLL_S", 0.0)
    settings, local = Settings(slides=(str(two_slides),)), local_executor("memory")
    async with served(create_app(settings, Catalogue(settings.slides), Watched())) as client:
        for _ in range(5):
            await id_of(client, "kept")  # read in a thread, so that everything else has its turn
    await local.aclose()
    assert asked == [None]


async def test_what_is_purged_before_the_first_answer_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purges, "POLL_S", 0.0)
    marks: list[str | None] = []
    forgotten: list[str] = []

    async def ask(mark: str | None) -> Purges:
        marks.append(mark)
        if len(marks) == 1:
            raise StoreFailed
        return Purges(["aa"] if mark == FIRST_MARK else [], "7-0")

    async def forget(slides: Sequence[str]) -> None:
        forgotten.extend(slides)
        if len(forgotten) == 1:
            raise StoreFailed  # once: it must be tried again

    following = asyncio.create_task(purges.follow(ask, forget))
    await until(lambda: len(forgotten) == 2)
    following.cancel()
    assert marks[:3] == [None, FIRST_MARK, "7-0"]
    assert forgotten == ["aa", "aa"]


async def test_tiles_of_a_slide_that_made_room_for_others_go_with_it(two_slides: Path) -> None:
    catalogue = Catalogue((str(two_slides),), open_slides=1)
    first, second = (catalogue.get(listed.id) for listed in catalogue.list().slides)
    for slide in (first, second):
        slide.read_region(0, 0, 0, 256, 256)
    assert len({owner for owner, _, _ in catalogue._tiles._tiles}) == 1
    catalogue.drop_tiles({first.fingerprint, second.fingerprint})
    assert catalogue._tiles.nbytes == 0


@pytest.mark.redis
async def test_a_purge_that_does_not_reach_redis_says_so(two_slides: Path, tmp_path: Path) -> None:
    lost = RedisServer(tmp_path / "redis")
    settings = Settings(slides=(str(two_slides),), store=lost.url)
    async with served(create_app(settings, Catalogue(settings.slides), local_executor(lost.url))) as client:
        slide = await id_of(client, "purged")
        await click(client, slide)
        lost.close()
        answer = await client.delete(f"/v1/slides/{slide}/cache")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        lost.start()
        lost.await_listening()
        for _ in range(100):  # until the breaker lets a call through again
            answer = await client.delete(f"/v1/slides/{slide}/cache")
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.1)
        assert answer.status_code == 200
