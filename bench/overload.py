"""Four times more clicks than two workers can answer, for 30 s: memory, refusals, and the time of those that got in.

A decode of the stand-in network takes 200 ms, so that the workers, not this machine's processors, are the limit; each
admits `--admitted` at a time (WSISAM_MAX_DECODES): whoever gets in waits for at most one decode less than that, so 2
cannot do better than twice the time of an idle cluster. Writes bench/results/overload.json, a report for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from cluster_load import REPOSITORY, SIDE, make_slide  # noqa: I001  # it finds the two below
from click_load import Box, boxes_of_views
from local_cluster import LocalCluster

DECODE_S, WORKERS = 0.2, 2
CAPACITY = WORKERS / DECODE_S
VIEWS = 12


@dataclass(frozen=True)
class Answer:
    began: float
    seconds: float
    status: int
    retry_after: str

    @property
    def ended(self) -> float:
        return self.began + self.seconds


async def ask(client: httpx.AsyncClient, url: str, box: Box) -> Answer:
    began = time.monotonic()
    answer = await client.post(url, json={"prompts": [{"box": box}]})
    return Answer(began, time.monotonic() - began, answer.status_code, answer.headers.get("retry-after", ""))


async def flood(client: httpx.AsyncClient, url: str, boxes: list[Box], rate: float, seconds: float) -> list[Answer]:
    """`rate` clicks a second, whether or not earlier ones have been answered."""
    began = time.monotonic()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(ask(client, url, boxes[number % len(boxes)])))
    return list(await asyncio.gather(*tasks))


def memory_mb(cluster: LocalCluster) -> dict[str, float]:
    """Resident memory of each part, in MB."""

    def resident(pid: int) -> float:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)

    parts = {"gateway": cluster.gateways[0], "envoy": cluster.envoy, "redis": cluster.redis}
    parts |= {f"worker {number}": worker for number, worker in enumerate(cluster.workers)}
    return {name: resident(part.pid) for name, part in parts.items()}


def p95(answers: list[Answer]) -> float:
    seconds = sorted(answer.seconds for answer in answers)
    return seconds[int(0.95 * len(seconds))]


async def run(cluster: LocalCluster, seconds: float, times: float) -> dict[str, object]:
    boxes = boxes_of_views(VIEWS, SIDE)
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        slides = (await client.get(f"{cluster.urls[0]}/v1/slides")).json()["slides"]
        url = f"{cluster.urls[0]}/v1/slides/{slides[0]['id']}/segment"
        for box in boxes:
            await ask(client, url, box)
        alone = [await ask(client, url, box) for box in boxes for _ in range(2)]
        await flood(client, url, boxes, times * CAPACITY, 3.0)  # so that memory has grown to what it needs
        await asyncio.sleep(2)
        before = memory_mb(cluster)
        answers = await flood(client, url, boxes, times * CAPACITY, seconds)
        ended, after = time.monotonic(), memory_mb(cluster)
        later = [await ask(client, url, boxes[number % len(boxes)]) for number in range(40)]
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status in (429, 503)]
    slow = [answer.ended - ended for answer in later if answer.seconds > 2 * p95(alone) or answer.status != 200]
    return {
        "offered_per_s": times * CAPACITY,
        "capacity_per_s": CAPACITY,
        "accepted_per_s": round(len(accepted) / seconds, 1),
        "refused": len(refused),
        "refused_with_retry_after": sum(answer.retry_after.isdigit() for answer in refused),
        "other_answers": sorted({answer.status for answer in answers} - {200, 429, 503}),
        "p95_alone_ms": round(1e3 * p95(alone), 1),
        "p95_accepted_ms": round(1e3 * p95(accepted), 1),
        "p95_ratio": round(p95(accepted) / p95(alone), 2),
        "p95_refused_ms": round(1e3 * p95(refused), 1),
        "back_to_normal_after_s": round(max(slow, default=0.0), 2),
        "memory_before_mb": before,
        "memory_after_mb": after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--times", type=float, default=4.0)
    parser.add_argument(
        "--admitted", type=int, nargs="+", default=[1, 2], help="decodes that a worker admits at a time"
    )
    options = parser.parse_args()
    reports = [measure(admitted, options) for admitted in options.admitted]
    print(text := json.dumps(reports, indent=1))
    (REPOSITORY / "bench" / "results" / "overload.json").write_text(text + "\n")


def measure(admitted: int, options: argparse.Namespace) -> dict[str, object]:
    folder = Path(tempfile.mkdtemp())
    make_slide(folder / "slides")
    limits = {"WSISAM_TEST_DECODE_S": str(DECODE_S), "WSISAM_MAX_DECODES": str(admitted)}
    cluster = LocalCluster(
        folder / "cluster", folder / "slides", workers=WORKERS, gateways=1, worker_environment=limits
    )
    try:
        report = asyncio.run(run(cluster, options.seconds, options.times))
    finally:
        cluster.close()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    report |= {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "commit": commit.stdout.strip()}
    return {"admitted": admitted} | report


if __name__ == "__main__":
    main()
