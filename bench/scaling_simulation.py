"""Views, clicks and a ring of workers: how often a click finds its view, and how evenly the work falls.

Readers walk over slides as pathologists do: some views of a slide, a few clicks on each, then the next slide; a part of
the slides is read by several. Costs of encodes and decodes are arguments, so that one simulation serves any device.
Prints a table for a hospital, an archive and internet scale, and writes bench/results/scaling.json.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import heapq
import json
import math
import random
from collections import Counter, OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CLICKS_EACH = 25
"""Simulated clicks for each reader, of 2,000 readers at most."""
RING_POINTS = 256
"""Places of a worker on the ring."""
VIEW_MB = 3.41
"""LiteMedSAM's embedding in the store, fp16."""
PIXELS_MB = 0.2
"""Two new views sent to a worker, HR and LR, take twice this."""
CLICK_KB = 4.0
"""A warm click's call and answer between gateway and worker."""


@dataclass(frozen=True)
class Scene:
    """Who clicks, and how. `shared` is the part of slides that readers take from a common pool."""

    name: str
    readers: int
    clicks_per_min: float
    views_per_slide: int = 40
    clicks_per_view: float = 4.0
    shared: float = 0.3
    pool: int = 200


@dataclass(frozen=True)
class Costs:
    """Seconds of one worker, and what it holds."""

    encode_s: float
    decode_s: float
    l1_views: int


@dataclass
class Worker:
    """A worker's memory of views, and the seconds of work given to it."""

    views: OrderedDict[str, None]
    busy_s: float = 0.0


class Ring:
    """Consistent hashing of view keys on workers."""

    def __init__(self, workers: int) -> None:
        places = [(_hash(f"{worker}/{point}"), worker) for worker in range(workers) for point in range(RING_POINTS)]
        self._places = sorted(places)
        self._hashes = [place for place, _ in self._places]

    def worker_of(self, key: str) -> int:
        place = bisect.bisect(self._hashes, _hash(key)) % len(self._hashes)
        return self._places[place][1]


class Simulation:
    """`clicks` clicks of a scene on a cluster; the store keeps the `store_views` views used last."""

    def __init__(self, scene: Scene, costs: Costs, workers: int, store_views: int, seed: int = 0) -> None:
        self.scene, self.costs = scene, costs
        self.ring = Ring(workers)
        self.workers = [Worker(OrderedDict()) for _ in range(workers)]
        self.store: OrderedDict[str, None] = OrderedDict()
        self.store_views = store_views
        self.random = random.Random(seed)
        self.found: Counter[str] = Counter()
        self.store_reads = 0

    def run(self, clicks: int) -> None:
        readers = [(self._pause(), reader) for reader in range(self.scene.readers)]
        heapq.heapify(readers)
        state = {reader: self._next_slide(reader) for reader in range(self.scene.readers)}
        self.seconds = 0.0
        for _ in range(clicks):
            self.seconds, reader = heapq.heappop(readers)
            slide, view = state[reader]
            self._click(f"{slide}/{view}")
            if self.random.random() < 1 / self.scene.clicks_per_view:
                view += 1
                state[reader] = (slide, view) if view < self.scene.views_per_slide else self._next_slide(reader)
            heapq.heappush(readers, (self.seconds + self._pause(), reader))

    def _pause(self) -> float:
        return self.random.expovariate(self.scene.clicks_per_min / 60)

    def _next_slide(self, reader: int) -> tuple[str, int]:
        if self.random.random() < self.scene.shared:
            return f"pool{self.random.randrange(self.scene.pool)}", 0
        return f"own{reader}-{self.random.getrandbits(32)}", 0

    def _click(self, view: str) -> None:
        worker = self.workers[self.ring.worker_of(view)]
        worker.busy_s += self.costs.decode_s
        for key in (f"{view}/hr", f"{view}/lr"):
            if key in worker.views:
                self.found["l1"] += 1
                worker.views.move_to_end(key)
                continue
            if key in self.store:
                self.found["redis"] += 1
                self.store.move_to_end(key)
            else:
                self.found["encoded"] += 1
                worker.busy_s += self.costs.encode_s
                self.store[key] = None
                if len(self.store) > self.store_views:
                    self.store.popitem(last=False)
            worker.views[key] = None
            if len(worker.views) > self.costs.l1_views:
                worker.views.popitem(last=False)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def report(scene: Scene, costs: Costs, clicks: int, store_gb: float, target: float) -> dict[str, object]:
    """What the scene needs: workers so that none is busy more than `target` of the time."""
    per_s = scene.readers * scene.clicks_per_min / 60
    new_views = 2 / scene.clicks_per_view  # HR and LR, before any sharing
    workers = max(1, math.ceil(per_s * (costs.decode_s + new_views * costs.encode_s) / target))
    store_views = int(store_gb * 1000 / VIEW_MB)
    while True:
        simulation = Simulation(scene, costs, workers, store_views)
        simulation.run(clicks)
        busiest = max(worker.busy_s for worker in simulation.workers) / simulation.seconds
        if busiest <= target:
            break
        workers = max(workers + 1, math.ceil(workers * min(busiest / target, 1.5)))
    found, views = simulation.found, sum(simulation.found.values())
    mean = sum(worker.busy_s for worker in simulation.workers) / workers / simulation.seconds
    encoded_per_s, redis_per_s = found["encoded"] / simulation.seconds, found["redis"] / simulation.seconds
    return {
        "scene": asdict(scene),
        "clicks_per_s": round(per_s, 1),
        "workers": workers,
        "busiest_worker": round(busiest, 3),
        "mean_worker": round(mean, 3),
        "l1": round(found["l1"] / views, 4),
        "redis": round(found["redis"] / views, 4),
        "encoded": round(found["encoded"] / views, 4),
        "views_in_store": len(simulation.store),
        "redis_gb": round(len(simulation.store) * VIEW_MB / 1000, 2),
        "redis_gb_per_day": round(encoded_per_s * 8 * 3600 * VIEW_MB / 1000, 1),
        "redis_mbit_per_s": round((encoded_per_s + redis_per_s) * VIEW_MB * 8, 1),
        "gateway_to_worker_mbit_per_s": round((per_s * CLICK_KB / 1000 + encoded_per_s * PIXELS_MB) * 8, 1),
    }


def moved_by_one_more(workers: int, views: int = 4000) -> float:
    """Part of views that another worker gets when one joins."""
    before, after = Ring(workers), Ring(workers + 1)
    return sum(before.worker_of(str(view)) != after.worker_of(str(view)) for view in range(views)) / views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encode-ms", type=float, required=True, help="of a worker, one view")
    parser.add_argument("--decode-ms", type=float, required=True, help="of a worker, one prompt on both branches")
    parser.add_argument("--l1-gb", type=float, default=8.0)
    parser.add_argument("--l1-view-mb", type=float, default=8.0, help="a decoder-ready view in device memory")
    parser.add_argument("--store-gb", type=float, nargs=3, default=(12.0, 256.0, 2048.0))
    parser.add_argument("--busy", type=float, default=0.5, help="most that a worker may be busy")
    parser.add_argument("--name", default="scaling", help="of the file in bench/results")
    options = parser.parse_args()
    costs = Costs(options.encode_ms / 1e3, options.decode_ms / 1e3, int(options.l1_gb * 1000 / options.l1_view_mb))
    scenes = [
        Scene("hospital", readers=50, clicks_per_min=6),
        Scene("archive", readers=2000, clicks_per_min=6, pool=2000),
        Scene("internet", readers=20_000, clicks_per_min=6, pool=20_000),
    ]
    reports = []
    for scene, store_gb in zip(scenes, options.store_gb, strict=True):
        found = report(scene, costs, CLICKS_EACH * min(scene.readers, 2000), store_gb, options.busy)
        reports.append(found)
        print(json.dumps(found), flush=True)
    moved = {str(workers): round(moved_by_one_more(workers), 4) for workers in (1, 3, 10)}
    result = {"costs": asdict(costs), "scenes": reports, "views_moved_by_one_more_worker": moved}
    (REPOSITORY / "bench" / "results" / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
