"""`DELETE /v1/slides/{id}/cache`: nothing that was made of one slide stays anywhere, and other slides lose nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
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
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.cluster.remote_executor import RemoteExecutor
from wsisam_service.execution import executor as executor_module
from wsisam_service.execution.executor import LocalExecutor
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.write import write_pyramid
from wsisam_service.stores.opening import open_store

BOX = [600, 400, 760, 520]
TOKEN = "a token of the test"


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


async def test_decoded_tiles_and_tiles_for_viewers_go_too(two_slides: Path) -> None:
    settings = Settings(slides=(str(two_slides),))
    catalogue = Catalogue(settings.slides)
    app = create_app(settings, catalogue, NumpyExecutor())
    async with served(app) as client:
        purged, kept = await id_of(client, "purged"), await id_of(client, "kept")
        for slide in (purged, kept):
            answer = await client.get(f"/v1/slides/{slide}/iiif/0,0,512,512/512,/0/default.jpg")
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
    monkeypatch.setattr(executor_module, "PURGE_POLL_S", 0.05)
    raw = redis.Redis.from_url(server.url)
    raw.flushall()
    port = free_port()
    numpy_worker = str(Path(__file__).with_name("numpy_worker.py"))
    environment = {**os.environ, "WSISAM_WORKER_TOKEN": TOKEN, "WSISAM_STORE": server.url}
    worker = Process(
        [sys.executable, numpy_worker, "worker", "--port", str(port)], tmp_path / "worker.log", env=environment
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert worker.alive, worker.said()
        try:
            return httpx.get(f"{url}/readyz").is_success
        except httpx.TransportError:
            return False

    wait_until(ready, "the worker is ready")
    settings = Settings(slides=(str(two_slides),), store=server.url)
    here = local_executor(server.url)
    remote = RemoteExecutor(url, TOKEN, timeout_s=30)
    catalogue = Catalogue(settings.slides)
    async with (
        served(create_app(settings, catalogue, here)) as near,
        served(create_app(settings, catalogue, remote)) as far,
    ):
        purged, kept = await id_of(near, "purged"), await id_of(near, "kept")
        for slide in (purged, kept):
            await click(near, slide)
            await click(far, slide)
        fingerprint = (await near.get(f"/v1/slides/{purged}")).json()["fingerprint"]
        assert len([key for key in raw.scan_iter() if fingerprint.encode() in key]) >= 2
        assert (await far.delete(f"/v1/slides/{purged}/cache")).json() == {"views": 2}
        assert [key for key in raw.scan_iter() if fingerprint.encode() in key] == []

        for _ in range(500):
            if not any(fingerprint in key for key in here._cache._entries):
                break
            await asyncio.sleep(0.02)
        assert (await click(near, kept))["cache"]["hr"] == "l1"
        assert (await click(near, purged))["cache"]["hr"] == "encoded"
    worker.close()


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
