"""How many cached tiles a second the service gives, and what serving them costs a warm click.

    wsisam serve --slides DIR &
    python bench/tiles.py http://127.0.0.1:8000 --out bench/results/tiles.json

Asks as a browser does: keep-alive connections, the tiles of one screen over and over, all in the service's memory
after the first round. Clicks are boxes on one view, one after the other, first alone and then beside a steady stream
of tiles. The load generator is a process of its own, so on two cores the second figure has no core to spare.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

CONNECTIONS = 6
TILE = 512


def tile_paths(client: httpx.Client, slide_id: str) -> list[str]:
    """The tiles of the finest level, at most a screenful."""
    info = client.get(f"/v1/slides/{slide_id}/iiif/info.json").json()
    corners = [(x, y) for y in range(0, info["height"] - TILE, TILE) for x in range(0, info["width"] - TILE, TILE)]
    base = f"/v1/slides/{slide_id}/iiif"
    return [f"{base}/{x},{y},{TILE},{TILE}/{TILE},{TILE}/0/default.jpg" for x, y in corners[:24]]


def fetch(connection: HTTPConnection, path: str) -> None:
    """One tile. The standard library's client takes a fifth of httpx's time, which here is the service's own."""
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")


def throughput(url: str, paths: list[str], seconds: float) -> float:
    """Tiles a second over all connections, as fast as they come."""
    end = time.perf_counter() + seconds

    def ask(_: int) -> int:
        connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        count = 0
        while time.perf_counter() < end:
            fetch(connection, paths[count % len(paths)])
            count += 1
        return count

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        return sum(threads.map(ask, range(CONNECTIONS))) / seconds


def stream(url: str, paths: list[str], rate: float, stop: Any, served: Any) -> None:
    """`rate` tiles a second until `stop` is set; how many in `served`."""
    start, count, lock = time.perf_counter(), 0, threading.Lock()

    def ask(_: int) -> None:
        nonlocal count
        connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        while not stop.is_set():
            with lock:
                number, count = count, count + 1
            wait = start + number / rate - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            fetch(connection, paths[number % len(paths)])

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(ask, range(CONNECTIONS)))
    served.value = count / (time.perf_counter() - start)


def clicks(client: httpx.Client, slide: dict[str, Any], seconds: float) -> list[float]:
    """Milliseconds of warm clicks, one after the other."""
    x, y = slide["width"] / 2, slide["height"] / 2
    body = {"prompts": [{"box": [x - 90, y - 90, x + 90, y + 90]}], "format": "both"}
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        client.post(f"/v1/slides/{slide['id']}/segment", json=body).raise_for_status()
        took.append((time.perf_counter() - start) * 1e3)
    return took


def percentiles(took: list[float]) -> dict[str, float]:
    return {"p50_ms": float(np.percentile(took, 50)), "p95_ms": float(np.percentile(took, 95)), "clicks": len(took)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rate", type=float, default=200.0, help="tiles a second beside the clicks")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=120) as client:
        slide = max(client.get("/v1/slides").json()["slides"], key=lambda one: one["width"] * one["height"])
        paths = tile_paths(client, slide["id"])
        for path in paths:
            client.get(path).raise_for_status()
        clicks(client, slide, 1)
        rate = throughput(options.url, paths, options.seconds)
        idle = percentiles(clicks(client, slide, options.seconds))
        spawned = multiprocessing.get_context("spawn")
        stop, served = spawned.Event(), spawned.Value("d", 0.0)
        beside = spawned.Process(target=stream, args=(options.url, paths, options.rate, stop, served))
        beside.start()
        time.sleep(2)
        loaded = percentiles(clicks(client, slide, options.seconds))
        stop.set()
        beside.join()
        info = client.get("/v1/info").json()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "commit": commit,
        "device": info["device"],
        "engine": info["engine"],
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "cached_tiles_per_s": rate,
        "click_alone": idle,
        "click_beside_tiles": {**loaded, "tiles_per_s": served.value},
        "p95_ratio": loaded["p95_ms"] / idle["p95_ms"],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
