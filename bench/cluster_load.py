"""A whole cluster under load and while its parts fail: two gateways, Envoy, three workers, Redis, 24 connections.

The network is the stand-in of tests/service/numpy_worker.py, whose encode is 50 ms and whose decode 4 ms of sleep:
what is measured is everything around it. `--model real` runs LiteMedSAM on a thread a worker. Writes bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis
import skimage.data

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "service"))

from click_load import Clicker, boxes_of_views, expected_answers  # noqa: E402
from local_cluster import NUMPY_WORKER, REAL_WORKER, LocalCluster  # noqa: E402
from processes import Process, free_port, wait_until  # noqa: E402

from wsisam_service.slides.write import write_pyramid  # noqa: E402

SIDE = 2048
FAULT_CONNECTIONS = 4
Report = dict[str, Any]


def make_slide(folder: Path) -> None:
    folder.mkdir()
    tissue = np.asarray(skimage.data.immunohistochemistry(), np.uint8)
    varied = [np.roll(tissue, 37 * index, axis=(0, 1)) for index in range(16)]
    write_pyramid(folder / "tissue.tif", np.vstack([np.hstack(varied[4 * row : 4 * row + 4]) for row in range(4)]), 0.5)


def one_process(folder: Path, slides: Path, worker: tuple[str, ...], views: int) -> Any:
    """The answers of one process that does everything."""
    port = free_port()
    command = [sys.executable, *worker, "serve", "--slides", str(slides), "--port", str(port), "--threads", "1"]
    process = Process(command, folder / "one.log")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), "one process is ready", within_s=240)
        return asyncio.run(expected_answers(url, boxes_of_views(views, SIDE)))
    finally:
        process.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


async def steady(cluster: LocalCluster, clicker: Clicker, clicks: int) -> Report:
    """Clicks from cold, and how many views were encoded for them."""
    began = time.monotonic()
    load = await clicker.click(clicks)
    seconds = time.monotonic() - began
    lookups = cluster.worker_metric("wsisam_embedding_lookups_total")
    cold = sorted(load.clicks, key=lambda click: click.began)[: clicks // 10]
    warm_since = max(click.ended for click in cold)
    return {
        "clicks": clicks,
        "wrong_or_failed": len(load.problems),
        "views_encoded": cluster.encodes(),
        "lookups_in_l1": round(cluster.worker_metric("wsisam_embedding_lookups_total", tier="l1") / lookups, 4),
        "clicks_per_s": round(clicks / seconds, 1),
        "warm_p50_ms": round(1e3 * load.quantile(0.5, since=warm_since), 1),
        "warm_p95_ms": round(1e3 * load.quantile(0.95, since=warm_since), 1),
    }


async def fault(cluster: LocalCluster, clicker: Clicker, break_it: Callable[[], Awaitable[None]]) -> Report:
    """Clicks while `break_it` runs. Slow is beyond three times the p95 from before."""
    async with clicker.clicking(warm_up_s=5.0) as load:
        event = time.monotonic()
        p95 = load.quantile(0.95, until=event)
        await break_it()
    after = [click for click in load.clicks if click.ended > event]
    return {
        "clicks": len(load.clicks),
        "wrong_or_failed": len(load.problems),
        "repeated_at_the_other_gateway": sum(click.attempts > 1 for click in load.clicks),
        "p95_before_ms": round(1e3 * p95, 1),
        "slowest_ms": round(1e3 * max(click.seconds for click in after), 1),
        "recovered_after_s": round(load.recovery_s(event, 3 * p95), 2),
    }


def faults(cluster: LocalCluster) -> dict[str, Callable[[], Awaitable[None]]]:
    store = redis.Redis.from_url(cluster.redis.url)

    async def kill_worker() -> None:
        cluster.workers[0].kill()
        await asyncio.sleep(8)

    async def freeze_worker() -> None:
        cluster.workers[1].signal(signal.SIGSTOP)
        await asyncio.sleep(10)
        cluster.workers[1].signal(signal.SIGCONT)
        await asyncio.sleep(3)

    async def empty_redis() -> None:
        cluster.redis.kill()
        await asyncio.sleep(2)
        await asyncio.to_thread(cluster.redis.restart)
        await asyncio.sleep(3)

    async def fill_redis() -> None:
        store.config_set("maxmemory", 64 << 20)
        for index in range(40):
            await asyncio.to_thread(store.set, f"filling:{index}", os.urandom(3_400_000), ex=600)
        await asyncio.sleep(3)
        store.config_set("maxmemory", 1 << 30)

    async def kill_gateway() -> None:
        cluster.gateways[0].kill()
        await asyncio.sleep(5)

    async def restart_all() -> None:
        for number, address in enumerate(cluster.addresses):
            await asyncio.to_thread(cluster.workers[number].terminate)
            cluster.workers[number] = await asyncio.to_thread(cluster.start_worker, address)

    return {
        "worker killed": kill_worker,
        "worker frozen for 10 s": freeze_worker,
        "redis killed, back empty after 2 s": empty_redis,
        "redis full": fill_redis,
        "gateway killed": kill_gateway,
        "workers restarted one by one": restart_all,
    }


def repair(cluster: LocalCluster) -> None:
    """Start what a fault has ended."""
    for number, worker in enumerate(cluster.workers):
        if not worker.alive:
            cluster.workers[number] = cluster.start_worker(cluster.addresses[number])
    for number, gateway in enumerate(cluster.gateways):
        if not gateway.alive:
            cluster.gateways[number] = cluster.start_gateway(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("numpy", "real"), default="numpy")
    parser.add_argument("--clicks", type=int, default=2000)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--connections", type=int, default=24)
    parser.add_argument("--faults", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    slides = folder / "slides"
    make_slide(slides)
    worker = NUMPY_WORKER if options.model == "numpy" else REAL_WORKER
    expected = one_process(folder, slides, worker, options.views)
    cluster = LocalCluster(folder / "cluster", slides, worker=worker, worker_environment={"WSISAM_THREADS": "1"})
    report: Report = {"model": options.model, "connections": options.connections, "views": options.views}
    clicker = Clicker(cluster.urls, expected, connections=options.connections)
    try:
        report["steady"] = asyncio.run(steady(cluster, clicker, options.clicks))
        print(json.dumps(report["steady"]), flush=True)
        for name, break_it in faults(cluster).items() if options.faults else ():
            # Few connections: what is waited for is the part that failed, not the processors of this machine.
            few = Clicker(cluster.urls, expected, connections=FAULT_CONNECTIONS)
            report[name] = asyncio.run(fault(cluster, few, break_it))
            print(name, json.dumps(report[name]), flush=True)
            repair(cluster)
    finally:
        cluster.close()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    report |= {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "machine": platform.machine()}
    report["commit"] = commit.stdout.strip()
    name = "cluster_load" if options.model == "numpy" else "cluster_load_real"
    (REPOSITORY / "bench" / "results" / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
