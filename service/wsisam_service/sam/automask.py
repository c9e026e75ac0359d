"""Everything in a picture, without prompts: a grid of them, decoded in large batches and thinned out.

Models trained for points get SAM's grid of points on one view of the whole picture. Models trained for boxes only get
boxes of several sizes, each in a view that it fills by a quarter to three eighths, and what comes out is asked again
with its own bounding box, so that a box need not fit an object to find it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.config import ModelConfig
from wsisam_model.prompts import Prompt
from wsisam_service.jobs import (
    DEFAULT_ADAPTERS,
    NO_ADAPTERS,
    DecodedMask,
    DecodeJob,
    DecodeResult,
    Executor,
    Timings,
)
from wsisam_service.masks import rle
from wsisam_service.masks.border import bounds_of
from wsisam_service.masks.rle import Mask
from wsisam_service.sam.outlines import clip_to_picture, feature
from wsisam_service.sam.requests import AutomaskBody
from wsisam_service.segmenting.offers import ModelOffer
from wsisam_service.segmenting.slide_views import SlideViews
from wsisam_service.slides.lanes import SENT_LANE
from wsisam_service.views import Box, View, snapped_view, step_for_extent, view_for_extent

BOX_SCALES = (4, 2, 1)
"""Sides of the boxes in cells of the grid, coarsest first: if the time runs out, the small ones are missing."""
ROOM = 4 / 3
"""A box is planned as if it were this much larger, so that it keeps away from the borders of a view on the lattice."""
CHUNK, CHUNK_VIEWS = 64, 8
"""Prompts asked for at once and the views they lie on: enough for full batches, few enough that a click behind them
does not wait long, and that little is lost where the time runs out.
"""
FIRST_ROUND = 0.8
"""Part of the time for boxes of the grid; the rest is for those that found something."""
MAX_FOUND = 512
"""Most masks that are asked again with their own box."""
STABILITY_SCALE = {"lite_medsam": 0.3}
"""What the offset of the stability score is multiplied with: LiteMedSAM's logits are flatter than SAM's, for which the
offset of 1 and the threshold of 0.95 were chosen. At 1 its best outlines reach 0.89, poor ones 0.7 to 0.85.
"""
IOU_SCALE = {"lite_medsam": 0.8}
"""What the quality threshold is multiplied with where adapters predict it: the window's 0.88 is meant for SAM's own
number, which flatters. Of masks in a box, those that theirs lets pass at 0.7 are truly 0.84 on average, those at 0.88
0.91, but a third as many (143 held-out objects).
"""
EDGE_PX = 2
"""What comes this near to the picture's border, in its own pixels or the view's, counts as cut by it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A prompt in picture pixels, pixel-edge frame, and the view it is decoded in. A box, or else a point."""

    view: View
    box: Box | None = None
    point: tuple[float, float] | None = None

    def prompt(self) -> Prompt:
        if self.box is not None:
            return Prompt(box=self.view.index_box_from_level0(self.box))
        assert self.point is not None
        return Prompt(points=(self.view.index_from_level0(*self.point),), labels=(1,))


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A mask in pixels of `view`, clipped to the picture; `box` is its bounding box in picture pixels."""

    view: View
    mask: Mask
    box: Box
    predicted_iou: float
    stability: float

    @property
    def area(self) -> int:
        """Pixels of the view."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture of `size` (width, height), its views, and the model that looks at them."""

    executor: Executor
    views: SlideViews
    offer: ModelOffer
    size: tuple[int, int]

    @property
    def trained_for_points(self) -> bool:
        """Whether the base is. Adapters that read a click as a box find less with a grid of clicks than of boxes."""
        return "points" in self.offer.config.trained_prompts


async def find_all(scene: Scene, body: AutomaskBody, *, budget_s: float) -> list[Found]:
    """Every object found within `budget_s`, best first. Raises `Overloaded`."""
    start = time.monotonic()
    config = scene.offer.config
    if scene.trained_for_points:
        points = point_proposals(scene.size, config, body.points_per_side)
        found = await _decode(scene, points, body, start + budget_s)
    else:
        boxes = box_proposals(scene.size, config, body.points_per_side)
        first = await _decode(scene, boxes, body, start + FIRST_ROUND * budget_s)
        rough = (await SENT_LANE.run(suppress, first, body.box_nms_thresh))[:MAX_FOUND]
        again = [Proposal(one.view, box=one.box) for one in rough]
        found = rough + await _decode(scene, again, body, start + budget_s)
    least = body.pred_iou_thresh * (IOU_SCALE.get(config.name, 1.0) if scene.offer.adapters else 1.0)
    good = [one for one in found if one.predicted_iou >= least and _passes(one, scene.size, body)]
    return await SENT_LANE.run(suppress, good, body.box_nms_thresh)


def features(found: Sequence[Found], sam_model: str) -> list[dict[str, Any]]:
    """The Features of objects, without those that are empty at their outline's tolerance."""
    drawn = (
        feature(one.mask, one.view.origin_level0, one.view.scale, quality=one.predicted_iou, sam_model=sam_model)
        for one in found
    )
    return [one for one in drawn if one is not None]


def point_proposals(size: tuple[int, int], config: ModelConfig, points_per_side: int) -> list[Proposal]:
    """SAM's grid: `points_per_side` points along each side, in one view that holds the picture."""
    width, height = size
    slide_mpp = config.default_mpp
    mpp = max(size) * slide_mpp / config.image_size
    view = view_for_extent((0, 0, width, height), config.image_size, slide_mpp, mpp=mpp)
    ticks = (np.arange(points_per_side) + 0.5) / points_per_side
    return [Proposal(view, point=(float(x * width), float(y * height))) for y in ticks for x in ticks]


def box_proposals(size: tuple[int, int], config: ModelConfig, points_per_side: int) -> list[Proposal]:
    """Square boxes one, two and four cells wide, half overlapping; a cell is the longer side / `points_per_side`.

    Views lie on the lattice of half their side, which boxes share, and boxes of one view follow each other.
    """
    cell = max(size) / points_per_side
    proposals: list[Proposal] = []
    for scale in BOX_SCALES:
        side = scale * cell
        boxes = squares(*size, side, max(cell, side / 2))
        planned = [Proposal(_lattice_view(box, config), box=box) for box in boxes]
        proposals += sorted(planned, key=lambda one: (one.view.cy, one.view.cx))
    return proposals


def squares(width: float, height: float, side: float, pitch: float) -> list[Box]:
    """Squares that cover the picture evenly, at most `pitch` apart; smaller where the picture is."""
    spans = []
    for length in (width, height):
        used = min(side, length)
        count = int(np.ceil((length - used) / pitch - 1e-9)) + 1
        spans.append([(float(start), float(start + used)) for start in np.linspace(0, length - used, count)])
    return [(x0, y0, x1, y1) for y0, y1 in spans[1] for x0, x1 in spans[0]]


def _lattice_view(box: Box, config: ModelConfig) -> View:
    x0, y0, x1, y1 = box
    k = step_for_extent(max(x1 - x0, y1 - y0) * ROOM * config.default_mpp, config.image_size)
    return snapped_view(((x0 + x1) / 2, (y0 + y1) / 2), k, config.image_size, config.default_mpp, lone_point=True)


def suppress(found: Iterable[Found], threshold: float) -> list[Found]:
    """The best of those whose bounding boxes overlap by more than `threshold` (intersection over union)."""
    ranked = sorted(found, key=lambda one: one.predicted_iou, reverse=True)
    if not ranked:
        return []
    boxes = np.array([one.box for one in ranked])
    alive = np.ones(len(ranked), bool)
    kept = []
    for index, one in enumerate(ranked):
        if alive[index]:
            kept.append(one)
            alive &= _overlap(boxes[index], boxes) <= threshold
    return kept


def _overlap(box: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of `box` (4,) with each of `boxes` (n, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    overlap: npt.NDArray[np.float64] = shared / (np.prod(box[2:] - box[:2]) + areas - shared)
    return overlap


async def _decode(scene: Scene, proposals: Sequence[Proposal], body: AutomaskBody, end: float) -> list[Found]:
    views, frozen = scene.views, scene.offer.adapters is None
    config = scene.offer.config
    multimask = config.multimask and body.output_type != "Single mask"
    offset = body.stability_score_offset * STABILITY_SCALE.get(config.name, 1.0)
    found: list[Found] = []
    for chunk in chunks(proposals):
        jobs = [
            DecodeJob(
                views.key(one.view),
                None if frozen else views.key(one.view.coarser()),
                one.prompt(),
                adapters=NO_ADAPTERS if frozen else DEFAULT_ADAPTERS,
                multimask=multimask,
                stability_offset=offset,
                refinable=False,
            )
            for one in chunk
        ]
        try:
            async with asyncio.timeout(end - time.monotonic()):
                await asyncio.sleep(0)  # no work is started that has no time
                results = await scene.executor.decode(jobs, views.pixels, Timings())
        except TimeoutError:
            _log.warning("automask out of time", extra={"proposals": len(proposals)})
            break
        found += await SENT_LANE.run(_read_all, chunk, results, scene.size, body)
    return found


def chunks(proposals: Sequence[Proposal]) -> Iterator[list[Proposal]]:
    """Up to `CHUNK` proposals on up to `CHUNK_VIEWS` views, in order."""
    chunk: list[Proposal] = []
    views: set[View] = set()
    for one in proposals:
        if len(chunk) == CHUNK or len(views | {one.view}) > CHUNK_VIEWS:
            yield chunk
            chunk, views = [], set()
        chunk.append(one)
        views.add(one.view)
    if chunk:
        yield chunk


def _read_all(
    proposals: Sequence[Proposal],
    results: Sequence[DecodeResult | Exception],
    size: tuple[int, int],
    body: AutomaskBody,
) -> list[Found]:
    """What the answers to `proposals` show. Raises the first failure among them."""
    found: list[Found] = []
    for proposal, result in zip(proposals, results, strict=True):
        if isinstance(result, Exception):
            raise result
        found += _read(proposal.view, result, size, body)
    return found


def _read(view: View, result: DecodeResult, size: tuple[int, int], body: AutomaskBody) -> list[Found]:
    """What a decode shows of whole objects: those that the view cuts are left to a coarser one."""
    candidates = [one for mask in result.masks if (one := _found(view, mask, size, body.min_mask_region_area))]
    if not candidates:
        return []
    match body.output_type:
        case "Multi-mask (largest)":
            candidates = [max(candidates, key=lambda one: one.area)]
        case "Multi-mask (smallest)":
            candidates = [min(candidates, key=lambda one: one.area)]
        case "Multi-mask (best quality)":
            candidates = [max(candidates, key=lambda one: one.predicted_iou)]
    return candidates


def _found(view: View, decoded: DecodedMask, size: tuple[int, int], min_area_px: int) -> Found | None:
    mask = clip_to_picture(rle.decode(decoded.mask), view.origin_level0, view.scale, *size)
    if min_area_px > 0:
        mask = without_specks(mask, min_area_px / view.scale**2)
    bounds = bounds_of(mask)
    if bounds is None:
        return None
    left, top, right, bottom = bounds
    reached = left == 0, top == 0, right == view.side, bottom == view.side
    if any(inner and there for inner, there in zip(view.inner_borders(*size), reached, strict=True)):
        return None
    x0, y0 = view.level0_from_edge(left, top)
    x1, y1 = view.level0_from_edge(right, bottom)
    box = (max(x0, 0.0), max(y0, 0.0), min(x1, size[0]), min(y1, size[1]))
    stability = 1.0 if decoded.stability is None else decoded.stability
    return Found(view, mask, box, decoded.predicted_iou, stability)


def without_specks(mask: Mask, min_area: float) -> Mask:
    """`mask` without parts and without holes smaller than `min_area`, in its own pixels."""
    cleaned = mask.copy()
    for value in (True, False):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((cleaned == value).astype(np.uint8), connectivity=8)
        small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < min_area)
        cleaned[np.isin(labels, small[small > 0])] = not value
    return cleaned


def _passes(one: Found, size: tuple[int, int], body: AutomaskBody) -> bool:
    if one.stability < body.stability_score_thresh:
        return False
    if body.include_image_edge:
        return True
    x0, y0, x1, y1 = one.box
    margin = EDGE_PX * max(one.view.scale, 1.0)
    return x0 >= margin and y0 >= margin and x1 <= size[0] - margin and y1 <= size[1] - margin
