"""Gateways without torch, a router, workers and Redis as real processes: what holds while parts of them fail.

The network is a stand-in that costs no CPU; test_cluster_model.py runs the real one. bench/cluster_load.py has the
figures.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from click_load import BOX_SIDES, Box, Clicker, boxes_of_views, expected_answers
from local_cluster import NUMPY_WORKER, LocalCluster, running_cluster
from processes import Process, free_port, wait_until

from wsisam_service.slides.write import write_pyramid

pytestmark = [pytest.mark.redis, pytest.mark.timeout(600)]

VIEWS, CLICKS = 60, 400
SIDE = 2048
Expected = Mapping[Box, Mapping[str, Any]]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, tissue: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    varied = [np.roll(tissue, 37 * index, axis=(0, 1)) for index in range(16)]  # so that no two views look the same
    write_pyramid(folder / "tissue.tif", np.vstack([np.hstack(varied[4 * row : 4 * row + 4]) for row in range(4)]), 0.5)
    return folder


@pytest.fixture(scope="module")
def expected(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """The answers of one process that does everything."""
    port = free_port()
    command = [sys.executable, *NUMPY_WORKER, "serve", "--slides", str(slides), "--port", str(port)]
    environment = {**os.environ, "WSISAM_TEST_ENCODE_S": "0", "WSISAM_TEST_DECODE_S": "0"}
    process = Process(command, tmp_path_factory.mktemp("one") / "serve.log", env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url), process.said())
        return asyncio.run(expected_answers(url, boxes_of_views(VIEWS, SIDE)))
    finally:
        process.close()


@pytest.fixture(scope="module")
def cluster(slides: Path, expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    yield from running_cluster(tmp_path_factory.mktemp("cluster"), slides)


@pytest.fixture
def clicker(cluster: LocalCluster, expected: Expected) -> Clicker:
    return Clicker(cluster.urls, expected)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


async def test_every_view_is_encoded_once_and_clicked_in_device_memory(
    cluster: LocalCluster, clicker: Clicker, expected: Expected
) -> None:
    load = await clicker.click(len(expected), boxes=list(expected))
    first_lookups = cluster.worker_metric("wsisam_embedding_lookups_total")
    first_l1 = cluster.worker_metric("wsisam_embedding_lookups_total", tier="l1")
    await clicker.click(CLICKS)
    assert load.problems == []
    assert len(load.clicks) == len(expected) + CLICKS
    assert cluster.encodes() == 2 * VIEWS  # HR and LR
    lookups = cluster.worker_metric("wsisam_embedding_lookups_total") - first_lookups
    in_l1 = cluster.worker_metric("wsisam_embedding_lookups_total", tier="l1") - first_l1
    assert in_l1 / lookups >= 0.95
    assert len({address for address in cluster.addresses if _decoded(cluster, address) > CLICKS / 10}) == 3


def _decoded(cluster: LocalCluster, address: str) -> float:
    answer = httpx.get(f"http://{address}:{cluster.worker_port}/metrics", timeout=10).text
    return float(answer.split('wsisam_batch_size_sum{kind="decode"} ')[1].split("\n")[0])


def test_the_gateways_have_no_torch(cluster: LocalCluster) -> None:
    code = f"import sys; sys.path[:0] = {cluster._path!r}; import torch"
    found = subprocess.run([sys.executable, "-S", "-c", code], check=False, capture_output=True, text=True)
    assert "No module named 'torch'" in found.stderr
    slide = httpx.get(f"{cluster.urls[0]}/v1/slides").json()["slides"][0]["id"]
    picture = httpx.get(f"{cluster.urls[0]}/v1/slides/{slide}/thumbnail")
    assert picture.headers["content-type"] == "image/jpeg"
    region = httpx.get(f"{cluster.urls[1]}/v1/slides/{slide}/region?x=0&y=0&width=64&height=64&format=png")
    assert region.headers["content-type"] == "image/png"


async def test_a_correction_finds_its_earlier_answer_through_the_other_gateway(cluster: LocalCluster) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        slide = (await client.get(f"{cluster.urls[0]}/v1/slides")).json()["slides"][0]["id"]
        path = f"/v1/slides/{slide}/segment"
        first = await client.post(cluster.urls[0] + path, json={"prompts": [{"box": [300, 300, 400, 400]}]})
        token = first.json()["results"][0]["refine"]
        body = {"prompts": [{"refine": token, "points": [[350, 350, 1]]}]}
        second = await client.post(cluster.urls[1] + path, json=body)
    assert second.status_code == 200, second.text
    assert second.json()["results"][0]["view"] == first.json()["results"][0]["view"]


async def test_a_killed_worker_costs_no_answer(cluster: LocalCluster, clicker: Clicker) -> None:
    async with clicker.clicking() as load:
        cluster.workers[0].kill()
        await asyncio.sleep(3)
        cluster.workers[0] = await asyncio.to_thread(cluster.start_worker, cluster.addresses[0])
    assert load.problems == []


async def test_a_frozen_worker_costs_no_answer(cluster: LocalCluster, clicker: Clicker) -> None:
    async with clicker.clicking() as load:
        cluster.workers[1].signal(signal.SIGSTOP)
        await asyncio.sleep(10)
        cluster.workers[1].signal(signal.SIGCONT)
        await asyncio.sleep(1)
    assert load.problems == []


async def test_redis_killed_and_back_empty_costs_no_answer(cluster: LocalCluster, clicker: Clicker) -> None:
    async with clicker.clicking() as load:
        cluster.redis.kill()
        await asyncio.sleep(2)
        await asyncio.to_thread(cluster.redis.restart)
        await asyncio.sleep(1)
    assert load.problems == []


async def test_a_full_redis_costs_no_answer(cluster: LocalCluster, clicker: Clicker) -> None:
    client = redis.Redis.from_url(cluster.redis.url)
    client.config_set("maxmemory", 64 << 20)

    def fill() -> None:
        for index in range(40):
            client.set(f"filling:{index}", os.urandom(3_400_000), ex=600)

    try:
        async with clicker.clicking() as load:
            await asyncio.to_thread(fill)
            cluster.workers[2].kill()  # its views must be found or encoded again by others, with a full Redis
            cluster.workers[2] = await asyncio.to_thread(cluster.start_worker, cluster.addresses[2])
        assert client.info("stats")["evicted_keys"] > 0
    finally:
        client.config_set("maxmemory", 1 << 30)
    assert load.problems == []


async def test_clicks_on_a_killed_gateway_are_answered_by_the_other(cluster: LocalCluster, clicker: Clicker) -> None:
    async with clicker.clicking() as load:
        cluster.gateways[0].kill()
        await asyncio.sleep(1)
    assert load.problems == []
    assert any(click.attempts == 2 for click in load.clicks)
    cluster.gateways[0] = await asyncio.to_thread(cluster.start_gateway, 0)


async def test_workers_restarted_one_after_the_other_cost_no_answer(cluster: LocalCluster, clicker: Clicker) -> None:
    ended_before = [worker.said().count("Application shutdown complete") for worker in cluster.workers]
    async with clicker.clicking() as load:
        for number, address in enumerate(cluster.addresses):
            assert await asyncio.to_thread(cluster.workers[number].terminate) in (0, -signal.SIGTERM)
            assert cluster.workers[number].said().count("Application shutdown complete") > ended_before[number]
            cluster.workers[number] = await asyncio.to_thread(cluster.start_worker, address)
    assert load.problems == []


async def test_no_worker_at_all_is_a_502_and_the_catalogue_goes_on(cluster: LocalCluster, clicker: Clicker) -> None:
    for worker in cluster.workers:
        worker.kill()
    try:
        async with httpx.AsyncClient(timeout=60) as client:
            slides = await client.get(f"{cluster.urls[1]}/v1/slides")
            path = f"/v1/slides/{slides.json()['slides'][0]['id']}/segment"
            answer = await client.post(cluster.urls[1] + path, json={"prompts": [{"box": [300, 300, 400, 400]}]})
            assert (await client.get(f"{cluster.urls[1]}/readyz")).status_code == 200
        assert answer.status_code == 502
        assert answer.json()["type"] == "/problems/worker-unavailable"
    finally:
        cluster.workers = [await asyncio.to_thread(cluster.start_worker, address) for address in cluster.addresses]
    load = await clicker.click(len(BOX_SIDES))
    assert load.problems == []
