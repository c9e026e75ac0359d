"""What a click costs on this machine, each figure beside what it is judged by (DESIGN.md section 11).

One run measures all of them in turn, round by round, so that a machine whose speed drifts slows them alike; quote the
ratios. The service runs as a process of its own, as its users have it.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from wsisam_model.prompts import Prompt
from wsisam_service.jobs import DEFAULT_ADAPTERS, NO_ADAPTERS, DecodeJob, Timings, ViewPixels
from wsisam_service.settings import Settings
from wsisam_service.slides.pixels import read_view
from wsisam_service.slides.slide import Slide
from wsisam_service.views import View, view_for_extent

if TYPE_CHECKING:
    from wsisam_model.predictor import Predictor

READY_TIMEOUT_S = 180.0
GRID_STEP_PX = 128
"""Distance of the boxes in level-0 pixels: far enough that each has views of its own."""
BOX_PX = (100.0, 150.0)
"""For slides of about 0.5 µm per pixel, where the box's view is 512 pixels wide and the grid 128."""

Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p95: float
    minimum: float

    @classmethod
    def of(cls, samples: list[float]) -> Quantiles:
        return cls(statistics.median(samples), float(np.quantile(samples, 0.95)), min(samples))


def boxes(slide: Slide) -> Iterator[tuple[float, float, float, float]]:
    """Boxes of one size over the slide, each with views that no other has."""
    half_w, half_h = BOX_PX[0] / 2, BOX_PX[1] / 2
    margin = 4 * GRID_STEP_PX
    for y in range(margin, slide.height - margin, GRID_STEP_PX):
        for x in range(margin, slide.width - margin, GRID_STEP_PX):
            yield x - half_w, y - half_h, x + half_w, y + half_h


@contextmanager
def running_service(
    slides: Path | str, flags: list[str], program: Sequence[str] = ("-m", "wsisam_service.cli")
) -> Iterator[str]:
    """`wsisam serve` on a free port as a process of its own; yields its URL once it is ready. `program` is what Python
    runs for it.
    """
    command = [sys.executable, *program, "serve", "--slides", str(slides), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603  # our own command
        try:
            url = announced_url(process)
            wait_ready(url)
            yield url
        finally:
            process.terminate()
            process.communicate()


def measure(
    predictor: Predictor, peer: Predictor, slide: Slide, url: str, *, rounds: int, settings: Settings
) -> Figures:
    """Milliseconds of each figure, one for each round.

    `predictor` is the service's model in this process, `peer` the same in eager float32 torch. The service at `url`
    has `slide` as its only one.
    """
    figures: Figures = {}
    with httpx.Client(base_url=url, timeout=120) as client, asyncio.Runner() as loop:
        slide_id = client.get("/v1/slides").raise_for_status().json()["slides"][0]["id"]
        executor = _InProcess(predictor, settings, loop)
        for number, box in zip(range(-1, rounds), boxes(slide), strict=False):
            views = _views(slide, box, predictor)
            pixels = [read_view(slide, view) for view in views]
            prompt = Prompt(box=views[0].index_box_from_level0(box))
            body = {"prompts": [{"box": box}]}
            timed: dict[str, Callable[[], object]] = {
                "cold click": partial(_click, client, slide_id, body),
                "warm click": partial(_click, client, slide_id, body),
                "two encodes": partial(predictor.encode, pixels),
                "decode in process": executor.decoding(views, pixels, prompt),
                **_peers(peer, pixels, prompt),
            }
            if number < 0:
                # The first round warms up: memory pools, connections, engines' shapes.
                for action in timed.values():
                    action()
                continue
            for name, action in timed.items():
                figures.setdefault(name, []).append(_milliseconds(action))
        loop.run(executor.close())
    if not figures:
        raise ValueError("the slide is too small for these boxes; it needs 1200 pixels a side at 0.5 µm")
    return figures


def ratios(figures: Mapping[str, Quantiles]) -> dict[str, tuple[float, float]]:
    """Each promise as (what was measured, the most it may be), of medians."""
    p50 = {name: quantiles.p50 for name, quantiles in figures.items()}
    return {
        "warm click / decode in process": (p50["warm click"] / p50["decode in process"], 1.25),
        "decode in process / SAM decode": (p50["decode in process"] / p50["SAM decode"], 2.0),
        "warm click / plain dual form": (p50["warm click"] / p50["plain dual form"], 1 / 25),
        "cold click / two encodes": (p50["cold click"] / p50["two encodes"], 1.15),
    }


class _InProcess:
    """The executor of a service without the service around it."""

    def __init__(self, predictor: Predictor, settings: Settings, loop: asyncio.Runner) -> None:
        from wsisam_service.assembly import build_executor
        from wsisam_service.execution.backend import PredictorBackend

        self._loop = loop
        self._predictor = predictor
        self._executor = build_executor(settings, PredictorBackend(predictor, settings.store_format))

    def decoding(self, views: tuple[View, View], pixels: list[ViewPixels], prompt: Prompt) -> Callable[[], object]:
        """A warm decode of `prompt`: its views are encoded before this returns."""
        keys = [view.key(self._predictor.key_prefix, "bench") for view in views]
        of_key = dict(zip(keys, pixels, strict=True))

        async def read(key: str) -> ViewPixels:
            return of_key[key]

        frozen = self._predictor.adapters is None
        adapters = NO_ADAPTERS if frozen else DEFAULT_ADAPTERS
        job = DecodeJob(keys[0], None if frozen else keys[1], prompt, adapters=adapters)

        async def decode() -> None:
            (result,) = await self._executor.decode([job], read, Timings())
            if isinstance(result, Exception):
                raise result

        self._loop.run(decode())
        return lambda: self._loop.run(decode())

    async def close(self) -> None:
        await self._executor.aclose()


def _peers(peer: Predictor, pixels: list[ViewPixels], prompt: Prompt) -> dict[str, Callable[[], object]]:
    """The plain ways of doing it, in eager float32 torch on the same weights: SAM's decode, the whole dual form."""
    import torch

    from wsisam_model.network import ViewFeatures
    from wsisam_model.prompt_tensors import branch_prompt

    network, adapters = peer.decoder.network, peer.decoder.adapters

    def encode() -> list[ViewFeatures]:
        return [ViewFeatures(one.embedding, one.early) for one in peer.encode(pixels)]

    hr, _ = encode()
    size = pixels[0].shape[:2]
    prompt_hr, prompt_lr = (
        branch_prompt([prompt], size, peer.config, lr=is_lr, like=hr.embedding) for is_lr in (False, True)
    )

    def sam_decode() -> None:
        with torch.inference_mode():
            network.sam_decode(hr, prompt_hr)

    def plain_dual_form() -> None:
        hr, lr = encode()
        with torch.inference_mode():
            if adapters is None:
                network.sam_decode(hr, prompt_hr)
                network.sam_decode(lr, prompt_lr)
            else:
                network.dual_decode(adapters, hr, prompt_hr, lr, prompt_lr)

    return {"SAM decode": sam_decode, "plain dual form": plain_dual_form}


def _views(slide: Slide, box: tuple[float, float, float, float], predictor: Predictor) -> tuple[View, View]:
    slide_mpp, _ = slide.slide_mpp(predictor.config.default_mpp)
    view = view_for_extent(box, predictor.config.image_size, slide_mpp)
    return view, view.coarser()


def _click(client: httpx.Client, slide_id: str, body: Mapping[str, Any]) -> None:
    client.post(f"/v1/slides/{slide_id}/segment", json=body).raise_for_status()


def _milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def announced_url(process: subprocess.Popen[str]) -> str:
    """Where `wsisam serve` says that it listens; its standard output is a pipe."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.split()[2]
    raise RuntimeError("the service ended before it listened")


def wait_ready(url: str) -> None:
    """Return once `/readyz` says yes. Raises `RuntimeError` after three minutes."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").is_success:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the service at {url} was not ready within {READY_TIMEOUT_S} s")
