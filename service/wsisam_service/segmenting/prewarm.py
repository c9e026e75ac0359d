"""Which views a prewarm means: those that segment would use for prompts to come (DESIGN sections 5 and 7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wsisam_model.config import ModelConfig
from wsisam_service.errors import EmptyPrompt, InvalidNumber, Overloaded, RateLimited, ServiceError
from wsisam_service.jobs import Executor, PixelSource, Timings
from wsisam_service.segmenting.prompts import Frame, PromptSpec, Units, judge, plan_view, request_frame
from wsisam_service.slides.slide import Slide
from wsisam_service.views import MAX_OUTSIDE, Box, View, nearest_step, snapped_view, step_mpp

MAX_VIEWS = 4096
"""HR views in one prewarm; a whole slide is `precompute`'s work, in many requests."""
MAX_BACKGROUND = 8
"""Prewarms under way behind answers that have been given."""
MAX_BACKGROUND_EACH = 2
"""Of one caller, where callers are told apart."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrewarmRequest:
    """`region` is (x, y, width, height). Numbers are in the request's frame and units, `mpp` in µm per view pixel."""

    region: tuple[float, float, float, float] | None = None
    boxes: Sequence[Box] = ()
    points: Sequence[tuple[float, float]] = ()
    mpp: float | None = None
    units: Units = "px"
    frame: Frame | None = None
    image_size: tuple[int, int] | None = None


def views_to_prewarm(request: PrewarmRequest, slide: Slide, config: ModelConfig) -> list[View]:
    """The HR views, each once. Raises what `judge` and `plan_view` raise, and `EmptyPrompt` where nothing is named."""
    if request.region is None and not request.boxes and not request.points:
        raise EmptyPrompt("a prewarm names a region, boxes or points")
    size, (slide_mpp, _) = (slide.width, slide.height), slide.slide_mpp(config.default_mpp)
    frame = request_frame(
        size,
        slide.info.bounds,
        slide_mpp,
        units=request.units,
        frame=request.frame,
        image_size=request.image_size,
    )
    prompts = [PromptSpec(box=box) for box in request.boxes]
    prompts += [PromptSpec(points=((x, y, 1),)) for x, y in request.points]
    targets = [judge(prompt, frame, size) for prompt in prompts]
    views = [plan_view(target, size, slide_mpp, config, mpp=request.mpp) for target in targets]
    if request.region is not None:
        x, y, width, height = request.region
        region = judge(PromptSpec(box=(x, y, x + width, y + height)), frame, size).box
        assert region is not None
        views += _lattice(region, size, slide_mpp, config, request.mpp)
    return list(dict.fromkeys(views))


def _lattice(
    region: Box, size: tuple[int, int], slide_mpp: float, config: ModelConfig, mpp: float | None
) -> Iterator[View]:
    """The views of lone points anywhere in `region` of a slide of `size` (width, height)."""
    k = nearest_step(config.point_mpp if mpp is None else mpp)
    side = config.image_size
    pitch = side / 2 * step_mpp(k) / slide_mpp
    x0, y0, x1, y1 = max(region[0], 0.0), max(region[1], 0.0), min(region[2], size[0]), min(region[3], size[1])
    columns = range(round(x0 / pitch), round(x1 / pitch) + 1)
    rows = range(round(y0 / pitch), round(y1 / pitch) + 1)
    if len(columns) * len(rows) > MAX_VIEWS:
        raise InvalidNumber(f"the region means {len(columns) * len(rows)} views; at most {MAX_VIEWS} go in one request")
    for row in rows:
        for column in columns:
            view = snapped_view((column * pitch, row * pitch), k, side, slide_mpp, lone_point=True)
            if view.outside_fraction(*size) <= MAX_OUTSIDE:
                yield view


class BackgroundEncodes:
    """Encodes that nobody waits for. What still runs when the service ends is dropped."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._tasks: dict[asyncio.Task[None], str | None] = {}

    def start(self, keys: Sequence[str], pixels: PixelSource, caller: str | None) -> None:
        """Encode the views `keys` by and by. Raises `Overloaded` where too many such calls are under way, `RateLimited`
        where too many are `caller`'s (None: one of many).
        """
        if caller is not None and list(self._tasks.values()).count(caller) >= MAX_BACKGROUND_EACH:
            raise RateLimited(f"at most {MAX_BACKGROUND_EACH} prewarms at a time", retry_after_s=5)
        if len(self._tasks) >= MAX_BACKGROUND:
            raise Overloaded("too many prewarms are under way", retry_after_s=5)
        task = asyncio.create_task(self._encode(keys, pixels))
        self._tasks[task] = caller
        task.add_done_callback(self._tasks.pop)

    async def aclose(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _encode(self, keys: Sequence[str], pixels: PixelSource) -> None:
        try:
            await self._executor.encode(keys, pixels, Timings())
        except ServiceError as error:
            logger.warning("a prewarm ended early: %s", error)
        except Exception:
            logger.exception("a prewarm failed")
