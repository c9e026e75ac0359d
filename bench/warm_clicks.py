"""Clicks on tissue, timed: in this process, over HTTP to a service in a process of its own, and of many clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from stages import Action

from wsisam_model.predictor import Predictor
from wsisam_service.assembly import build_executor
from wsisam_service.commands.click_costs import running_service
from wsisam_service.execution.backend import PredictorBackend
from wsisam_service.jobs import Timings
from wsisam_service.segmenting.prompts import PromptSpec
from wsisam_service.segmenting.segmenter import Segmenter, SegmentRequest
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.slide import Slide
from wsisam_service.slides.write import write_pyramid

CLICKED = (970.0, 960.0, 1070.0, 1110.0)
TISSUE_MPP = 0.5


@dataclass(frozen=True, slots=True)
class Clicks:
    """The same warm click both ways, from what is asked to the outline in the answer, and where it is asked."""

    in_process: Action
    over_http: Action
    client: httpx.Client
    slide: Slide
    slide_id: str


@contextmanager
def clicks(predictor: Predictor, folder: Path, flags: Sequence[str], tiles: int = 4) -> Iterator[Clicks]:
    """`flags` make `wsisam serve` load the same model; the slide is `tiles` × `tiles` pictures of tissue."""
    import skimage.data

    path = folder / "tissue.tif"
    write_pyramid(path, np.tile(skimage.data.immunohistochemistry(), (tiles, tiles, 1)), TISSUE_MPP)
    settings = Settings(slides=(str(path),))
    executor = build_executor(settings, PredictorBackend(predictor, settings.store_format))
    segmenter = Segmenter(executor, settings)
    (listed,) = Catalogue(settings.slides).list().slides
    slide, asked = listed.slide, SegmentRequest([PromptSpec(box=CLICKED)])
    assert slide is not None
    with (
        asyncio.Runner() as loop,
        running_service(path, list(flags)) as url,
        httpx.Client(base_url=url, timeout=300) as client,
    ):
        (known,) = client.get("/v1/slides").raise_for_status().json()["slides"]
        address, body = f"/v1/slides/{known['id']}/segment", {"prompts": [{"box": CLICKED}]}
        yield Clicks(
            lambda: loop.run(segmenter.segment(slide, asked, Timings())),
            lambda: client.post(address, json=body).raise_for_status(),
            client,
            slide,
            known["id"],
        )
        loop.run(executor.aclose())


def click_ms(client: httpx.Client, slide_id: str, box: Sequence[float]) -> float:
    """Milliseconds from a box to its outline over HTTP."""
    start = time.perf_counter()
    client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": [{"box": box}]}).raise_for_status()
    return (time.perf_counter() - start) * 1e3


def at_once(url: str, slide_id: str, boxes: Sequence[Sequence[float]], clicks: int) -> tuple[list[float], float]:
    """Milliseconds of all clicks, and clicks a second, of as many clients as `boxes`, each clicking on its own without
    a pause. Their views are to be warm.
    """

    def work(box: Sequence[float]) -> list[float]:
        with httpx.Client(base_url=url, timeout=120) as client:
            return [click_ms(client, slide_id, box) for _ in range(clicks)]

    start = time.perf_counter()
    with ThreadPoolExecutor(len(boxes)) as threads:
        times = [one for some in threads.map(work, boxes) for one in some]
    return times, len(times) / (time.perf_counter() - start)
