"""`wsisam precompute`: encode every view of a slide's tissue before anybody clicks, through a running server.

Views that the server has already are skipped, so a run that was stopped goes on where it was when started again.
"""

from __future__ import annotations

import argparse
import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from wsisam_model.config import ModelConfig, model_config
from wsisam_service.commands.flags import UsageError, add_settings, settings_of
from wsisam_service.commands.slide_client import RemoteSlide, document_of
from wsisam_service.slides.tissue import tissue_centres
from wsisam_service.views import MAX_REQUEST_MPP, MIN_REQUEST_MPP, believable_mpp, nearest_step, step_mpp

THUMBNAIL = 2048
POINTS_AT_ONCE = 4
"""Centres in one request: eight encodes, done well within the server's time limit even on a slow device."""
LONGEST_WAIT_S = 30.0
BUSY = (429, 503, 504)
"""Answers after which the same request may be sent again."""
_GRID_CELLS, _EMBEDDING_CHANNELS = 64 * 64, 256

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to encode of a slide: level-0 `centres` of views at `mpp`, each with its wide view where `wide`."""

    centres: Sequence[Point]
    mpp: float
    wide: bool
    config: ModelConfig

    @property
    def bytes(self) -> int:
        """Most that the store will need; wide views of neighbours are partly the same."""
        embedding = 2 * _GRID_CELLS * (_EMBEDDING_CHANNELS + self.config.early_channels)
        return len(self.centres) * (2 if self.wide else 1) * embedding


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "precompute", help="encode a slide's tissue before anybody clicks", description=__doc__
    )
    parser.add_argument("slide", metavar="SLIDE", help="name or id of the server's slide")
    parser.add_argument("--url", required=True, help="the running server")
    parser.add_argument("--mpp", type=float, help="µm per view pixel [what the model has for clicks]")
    parser.add_argument("--concurrency", type=int, default=2, help="requests at once [%(default)s]")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be encoded")
    add_settings(parser, ("token",))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.concurrency < 1:
        raise UsageError("--concurrency is at least 1")
    if options.mpp is not None and not MIN_REQUEST_MPP <= options.mpp <= MAX_REQUEST_MPP:
        raise UsageError(f"--mpp is from {MIN_REQUEST_MPP:g} to {MAX_REQUEST_MPP:g}")
    token = settings_of(options).token.get_secret_value()
    with RemoteSlide(options.url, options.slide, token) as slide:
        plan = make_plan(slide, options.mpp)
        kinds = "views and as many wide ones" if plan.wide else "views"
        print(f"{len(plan.centres)} {kinds} at {plan.mpp:g} µm show tissue, up to {plan.bytes / 1e9:.2f} GB")
        if options.dry_run or not plan.centres:
            return 0
        encode(slide, plan, options.concurrency)
    return 0


def make_plan(slide: RemoteSlide, mpp: float | None) -> Plan:
    """The views of the slide's tissue, by its thumbnail, at the ladder step nearest to `mpp`."""
    facts, (first, *_) = slide.facts(), slide.server_info()["models"]
    config = model_config(first["name"])
    k = nearest_step(config.point_mpp if mpp is None else mpp)
    thumbnail = np.asarray(Image.open(io.BytesIO(slide.thumbnail(THUMBNAIL))).convert("RGB"), np.uint8)
    slide_mpp = facts["mpp"] if believable_mpp(facts["mpp"]) else config.default_mpp
    size = facts["width"], facts["height"]
    centres = list(tissue_centres(thumbnail, size, slide_mpp, side=config.image_size, k=k))
    return Plan(centres, step_mpp(k), first["adapters"] is not None, config)


def encode(slide: RemoteSlide, plan: Plan, concurrency: int) -> None:
    """Ask for the plan's views, `concurrency` requests at a time. The first one tells how long it will take."""
    groups = [plan.centres[start : start + POINTS_AT_ONCE] for start in range(0, len(plan.centres), POINTS_AT_ONCE)]
    stop = threading.Event()
    started = time.monotonic()
    new = _prewarm(slide, plan, groups[0], stop)
    if new:
        estimate = (time.monotonic() - started) * len(groups)
        print(f"about {estimate / 60:.0f} min with one request at a time")
    with ThreadPoolExecutor(concurrency) as pool, tqdm(total=len(plan.centres), unit="view") as bar:
        bar.update(len(groups[0]))
        try:
            waiting: set[Future[tuple[int, int]]] = set()
            for group in groups[1:]:
                if len(waiting) >= 2 * concurrency:
                    new += _collect(waiting, bar)
                waiting.add(pool.submit(lambda points: (len(points), _prewarm(slide, plan, points, stop)), group))
            while waiting:
                new += _collect(waiting, bar)
        finally:
            stop.set()
    print(f"{new} embeddings were new")


def _collect(waiting: set[Future[tuple[int, int]]], bar: Any) -> int:
    """Embeddings that were new in the requests that are done by now, of which there is at least one."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    waiting -= done
    new = 0
    for future in done:
        points, fresh = future.result()
        bar.update(points)
        new += fresh
    return new


def _prewarm(slide: RemoteSlide, plan: Plan, points: Sequence[Point], stop: threading.Event) -> int:
    """How many embeddings were new. Waits and asks again while the server is busy with others."""
    pause_s = 1.0
    while not stop.is_set():
        answer = slide.prewarm({"points": points, "mpp": plan.mpp, "wait": True})
        if answer.status_code not in BUSY:
            return int(document_of(answer)["new"])
        told = answer.headers.get("retry-after", "")
        stop.wait(float(told) if told.isdigit() else pause_s)
        pause_s = min(2 * pause_s, LONGEST_WAIT_S)
    return 0
