"""What gateway, router and worker add to a warm click: the same click in process, over HTTP to one process, and through
gateway, Envoy and worker, one after the other in each round. LiteMedSAM on one thread everywhere.

Writes bench/results/hop.json: p50 and p95 in milliseconds, and ratios of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import skimage.data

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "service"))

from local_cluster import REAL_WORKER, LocalCluster  # noqa: E402
from processes import Process, free_port, wait_until  # noqa: E402

from wsisam_service.assembly import build_executor, load_backend  # noqa: E402
from wsisam_service.jobs import Timings  # noqa: E402
from wsisam_service.segmenting.prompts import PromptSpec  # noqa: E402
from wsisam_service.segmenting.segmenter import Segmenter, SegmentRequest  # noqa: E402
from wsisam_service.settings import Settings  # noqa: E402
from wsisam_service.slides.catalogue import Catalogue  # noqa: E402
from wsisam_service.slides.write import write_pyramid  # noqa: E402

BOX = (270.0, 20.0, 460.0, 290.0)
WARM_UP = 5


def serve(folder: Path, slides: Path) -> tuple[Process, str]:
    """One process that does everything, once it is ready."""
    port = free_port()
    command = [sys.executable, *REAL_WORKER, "serve", "--slides", str(slides), "--port", str(port), "--threads", "1"]
    process = Process(command, folder / "serve.log", env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    wait_until(ready, "one process is ready", within_s=240)
    return process, url


async def measure(slides: Path, urls: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, by way."""
    settings = Settings(slides=(str(slides),), threads=1)
    executor = build_executor(settings, load_backend(settings))
    await executor.warm_up()
    segmenter, catalogue = Segmenter(executor, settings), Catalogue(settings.slides)
    (listed,) = catalogue.list().slides
    assert listed.slide is not None
    jobs = []

    class Recorder:
        """Passes on to the executor, and keeps the jobs that the click was made of."""

        async def decode(self, asked, pixels, timings):  # type: ignore[no-untyped-def]
            jobs[:] = asked
            return await executor.decode(asked, pixels, timings)

        def __getattr__(self, name: str) -> object:
            return getattr(executor, name)

    recording = Segmenter(Recorder(), settings)  # type: ignore[arg-type]
    await recording.segment(listed.slide, SegmentRequest([PromptSpec(box=BOX)]), Timings())

    async def unread(key: str) -> np.ndarray:
        raise AssertionError("the view is known")

    times: dict[str, list[float]] = {name: [] for name in ("decode in process", "click in process", *urls)}
    async with httpx.AsyncClient(timeout=120) as client:
        paths = {name: await _path(client, url) for name, url in urls.items()}
        for number in range(rounds + WARM_UP):
            for name, taken in times.items():
                started = time.perf_counter()
                if name == "decode in process":
                    await executor.decode(jobs, unread, Timings())
                elif name == "click in process":
                    await segmenter.segment(listed.slide, SegmentRequest([PromptSpec(box=BOX)]), Timings())
                else:
                    answer = await client.post(paths[name], json={"prompts": [{"box": BOX}]})
                    answer.raise_for_status()
                if number >= WARM_UP:
                    taken.append(1e3 * (time.perf_counter() - started))
    await executor.aclose()
    return times


async def _path(client: httpx.AsyncClient, url: str) -> str:
    slides = (await client.get(f"{url}/v1/slides")).json()["slides"]
    return f"{url}/v1/slides/{slides[0]['id']}/segment"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    slides = folder / "slides"
    slides.mkdir()
    write_pyramid(slides / "tissue.tif", np.asarray(skimage.data.immunohistochemistry(), np.uint8), 0.5)
    process, url = serve(folder, slides)
    one = {"WSISAM_THREADS": "1"}
    cluster = LocalCluster(
        folder / "cluster", slides, workers=1, gateways=1, worker=REAL_WORKER, worker_environment=one
    )
    try:
        urls = {"HTTP, one process": url, "HTTP, gateway, Envoy, worker": cluster.urls[0]}
        times = asyncio.run(measure(slides, urls, options.rounds))
    finally:
        cluster.close()
        process.close()
    p50 = {name: statistics.median(taken) for name, taken in times.items()}
    p95 = {name: sorted(taken)[int(0.95 * len(taken))] for name, taken in times.items()}
    least = {name: min(taken) for name, taken in times.items()}
    cluster_name = "HTTP, gateway, Envoy, worker"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    report = {
        "p50_ms": {name: round(value, 2) for name, value in p50.items()},
        "p95_ms": {name: round(value, 2) for name, value in p95.items()},
        "min_ms": {name: round(value, 2) for name, value in least.items()},
        "cluster_over_in_process": round(p50[cluster_name] / p50["decode in process"], 3),
        "cluster_over_one_process": round(p50[cluster_name] / p50["HTTP, one process"], 3),
        "cluster_over_one_process_of_minima": round(least[cluster_name] / least["HTTP, one process"], 3),
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "commit": commit.stdout.strip(),
    }
    print(json.dumps(report, indent=1))
    (REPOSITORY / "bench" / "results" / "hop.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
