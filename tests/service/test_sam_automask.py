"""Automask: which prompts it makes of a picture, and what it keeps of their masks."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from stand_ins import NumpyExecutor

from wsisam_model.config import MODELS
from wsisam_service.errors import Overloaded
from wsisam_service.jobs import DecodedMask, DecodeJob, DecodeResult, PixelSource, Timings
from wsisam_service.masks import rle
from wsisam_service.pictures.picture import Picture
from wsisam_service.pictures.picture_slide import slide_of_picture
from wsisam_service.sam import automask
from wsisam_service.sam.automask import (
    CHUNK,
    CHUNK_VIEWS,
    IOU_SCALE,
    Found,
    Scene,
    _passes,
    box_proposals,
    chunks,
    find_all,
    point_proposals,
    suppress,
    without_specks,
)
from wsisam_service.sam.requests import AutomaskBody
from wsisam_service.segmenting.offers import model_offer
from wsisam_service.segmenting.slide_views import SlideViews

SIZE = (400, 300)
Draw = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class Painted(NumpyExecutor):
    """Finds the object painted in the picture, whole, wherever a prompt lies on it: `pixels` is all it looks at.

    Objects are the picture's colours but white. Three masks are the object, the object shrunk and shrunk twice.
    """

    jobs: int = 0

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        self.jobs += len(jobs)
        await self.encode([job.hr for job in jobs], pixels, timings)
        return [self._paint(job, self.views[job.hr]) for job in jobs]

    def _paint(self, job: DecodeJob, view: np.ndarray[Any, Any]) -> DecodeResult:
        x, y = job.prompt.points[0] if job.prompt.points else np.reshape(job.prompt.box, (2, 2)).mean(axis=0)
        side = view.shape[0]
        colour = view[min(max(round(y), 0), side - 1), min(max(round(x), 0), side - 1)].astype(int)
        near = cv2.inRange(view, np.clip(colour - 24, 0, 255), np.clip(colour + 24, 0, 255))
        mask = near if colour.min() < 200 else np.zeros_like(near)
        masks = []
        for shrink in range(3 if job.multimask else 1):
            small = cv2.erode(mask, np.ones((1 + 12 * shrink,) * 2, np.uint8), borderValue=0)
            masks.append(DecodedMask(rle.encode(small), 0.9 + 0.03 * shrink, 0.97))
        return DecodeResult(masks, (False,) * 4, None, "", "l1", None, "none")


@pytest.fixture
def picture() -> Picture:
    """Two squares inside, one at the left border, all 80 px."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    for x, y, colour in ((100, 40, (200, 20, 20)), (240, 160, (20, 20, 200)), (0, 180, (20, 160, 20))):
        pixels[y : y + 80, x : x + 80] = colour
    return Picture(pixels, "c" * 64)


async def found_in(
    picture: Picture, model: str = "lite_medsam", budget_s: float = 60.0, **body: Any
) -> tuple[list[tuple[int, ...]], Painted]:
    """Bounding boxes of what is found, rounded, and the executor."""
    executor = Painted(model=model)
    offer = await model_offer(executor, None)
    views = SlideViews(slide_of_picture(picture, None), offer.key_prefix, None, asyncio.Semaphore(8))
    wanted = AutomaskBody(b64img="", **{"points_per_side": 8, "box_nms_thresh": 0.2} | body)
    found = await find_all(Scene(executor, views, offer, SIZE), wanted, budget_s=budget_s)
    return sorted(tuple(round(side) for side in one.box) for one in found), executor


def close(box: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 6 for a, b in zip(box, expected, strict=True))


@pytest.mark.parametrize("model", ["lite_medsam", "vit_tiny"])
async def test_whole_objects_are_found_once(picture: Picture, model: str) -> None:
    found, _ = await found_in(picture, model)
    assert len(found) == 2
    assert close(found[0], (100, 40, 180, 120))
    assert close(found[1], (240, 160, 320, 240))


async def test_what_decodes_show_is_worked_out_beside_the_event_loop(
    picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[int]] = {}

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return call(*args)

        return noting

    for name in ("_read", "suppress"):
        monkeypatch.setattr(automask, name, noted(name, getattr(automask, name)))
    await found_in(picture)
    assert threads.keys() == {"_read", "suppress"}
    assert threading.get_ident() not in set.union(*threads.values())


async def test_what_the_border_cuts_is_found_where_it_is_wanted(picture: Picture) -> None:
    found, _ = await found_in(picture, include_image_edge=True)
    assert len(found) == 3
    assert close(found[0], (0, 180, 80, 260))


@pytest.mark.parametrize(
    ("model", "threshold", "least"),
    [
        ("vit_tiny", "pred_iou_thresh", 0.91),
        ("lite_medsam", "pred_iou_thresh", 0.91 / IOU_SCALE["lite_medsam"]),
        ("lite_medsam", "stability_score_thresh", 0.98),
    ],
)
async def test_masks_below_a_threshold_are_left_out(picture: Picture, model: str, threshold: str, least: float) -> None:
    found, _ = await found_in(picture, model, **{threshold: least})
    assert found == []


@pytest.mark.parametrize(
    ("output_type", "side"),
    [
        ("Single mask", 80),
        ("Multi-mask (largest)", 80),
        ("Multi-mask (smallest)", 56),
        ("Multi-mask (best quality)", 56),
    ],
)
async def test_the_output_type_picks_among_three_masks(picture: Picture, output_type: str, side: int) -> None:
    found, _ = await found_in(picture, "vit_tiny", output_type=output_type, include_image_edge=True)
    assert len(found) == 3
    assert all(abs(x1 - x0 - side) <= 13 for x0, _, x1, _ in found)


async def test_without_time_nothing_is_asked(picture: Picture) -> None:
    found, executor = await found_in(picture, budget_s=-1.0)
    assert (found, executor.jobs) == ([], 0)


def test_boxes_of_three_sizes_cover_the_picture() -> None:
    size = (1500, 1100)
    proposals = box_proposals(size, MODELS["lite_medsam"], 16)
    sides = {round(one.box[2] - one.box[0], 2) for one in proposals if one.box}
    assert sides == {375.0, 187.5, 93.75}
    for side in sides:
        boxes = [one.box for one in proposals if one.box and round(one.box[2] - one.box[0], 2) == side]
        covered = np.zeros((size[1], size[0]), bool)
        for x0, y0, x1, y1 in boxes:
            covered[round(y0) : round(y1), round(x0) : round(x1)] = True
        assert covered.all()


def test_a_box_lies_inside_its_view_and_fills_at_most_three_eighths_of_it() -> None:
    for one in box_proposals((1500, 1100), MODELS["lite_medsam"], 16):
        assert one.box is not None
        assert one.view.contains(one.box)
        assert (one.box[2] - one.box[0]) / one.view.size_level0 <= 0.375 + 1e-9


def test_the_work_on_a_screenful_is_bounded() -> None:
    """QuPath's defaults on 1500 x 1100 pixels: what PERFORMANCE.md times."""
    proposals = box_proposals((1500, 1100), MODELS["lite_medsam"], 16)
    views = {one.view for one in proposals}
    assert len(proposals) < 450
    assert len(views | {view.coarser() for view in views}) < 300


def test_points_share_one_view_of_the_whole_picture() -> None:
    proposals = point_proposals((1500, 1100), MODELS["vit_b"], 4)
    assert len(proposals) == 16
    (view,) = {one.view for one in proposals}
    assert view.contains((0, 0, 1500, 1100))


@pytest.mark.parametrize(
    ("model", "per_side", "sizes"), [("vit_tiny", 12, {CHUNK, 144 - 2 * CHUNK}), ("lite_medsam", 16, None)]
)
def test_prompts_are_asked_in_order_and_few_of_them_and_of_their_views_at_once(
    model: str, per_side: int, sizes: set[int] | None
) -> None:
    proposals = (box_proposals if sizes is None else point_proposals)((1500, 1100), MODELS[model], per_side)
    parts = list(chunks(proposals))
    assert [one for part in parts for one in part] == proposals
    assert sizes is None or {len(part) for part in parts} == sizes
    for part, following in itertools.pairwise(parts):
        views = {one.view for one in part}
        assert len(part) <= CHUNK
        assert len(views) <= CHUNK_VIEWS
        assert len(part) == CHUNK or len(views | {following[0].view}) > CHUNK_VIEWS


@pytest.mark.parametrize(("now_s", "asked_again"), [(79.0, True), (81.0, True), (101.0, False)])
async def test_what_was_found_when_the_time_for_the_grid_ran_out_is_kept_and_asked_again_in_the_rest(
    picture: Picture, monkeypatch: pytest.MonkeyPatch, *, now_s: float, asked_again: bool
) -> None:
    """Four fifths of 100 s are for the grid's boxes."""
    passed = itertools.chain([0.0, 0.0], itertools.repeat(now_s))  # the first chunk begins in time
    monkeypatch.setattr(automask, "time", SimpleNamespace(monotonic=lambda: next(passed)))
    found, executor = await found_in(picture, budget_s=100.0)
    assert found
    grid = box_proposals(SIZE, MODELS["lite_medsam"], 8)
    (first, *more) = chunks(grid)
    assert more
    of_grid = len(grid) if now_s < 80 else len(first)
    assert (executor.jobs > of_grid) == asked_again
    assert executor.jobs < of_grid + len(first)


def test_of_boxes_that_overlap_by_more_than_the_threshold_the_best_is_kept() -> None:
    view = point_proposals(SIZE, MODELS["vit_tiny"], 1)[0].view
    whole, half, apart = (
        Found(view, np.ones((1, 1), bool), box, iou, 1.0)
        for box, iou in (((0, 0, 10, 10), 0.8), ((0, 5, 10, 10), 0.9), ((10, 10, 30, 20), 0.7))
    )
    assert suppress([apart, whole, half], 0.5) == [half, whole, apart]
    assert suppress([apart, whole, half], 0.49) == [half, apart]


@pytest.mark.parametrize("size", [SIZE, (4000, 3000)])
def test_what_comes_within_two_pixels_of_a_border_counts_as_cut_by_it(size: tuple[int, int]) -> None:
    """Of the picture's pixels or the view's, whichever are larger."""
    view = point_proposals(size, MODELS["vit_tiny"], 1)[0].view
    margin = 2 * max(1.0, view.scale)
    inside = np.array([margin, margin, size[0] - margin, size[1] - margin])

    def passes(box: Sequence[float], **body: Any) -> bool:
        found = Found(view, np.ones((1, 1), bool), tuple(box), 0.9, 1.0)  # type: ignore[arg-type]
        return _passes(found, size, AutomaskBody(b64img="", **body))

    assert passes(inside)
    for nearer in np.diag([-0.1, -0.1, 0.1, 0.1]):
        assert not passes(inside + nearer)
        assert passes(inside + nearer, include_image_edge=True)


async def test_boxes_that_found_most_are_asked_again_and_no_further_ones(
    picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automask, "MAX_FOUND", 1)
    _, executor = await found_in(picture)
    assert executor.jobs == len(box_proposals(SIZE, MODELS["lite_medsam"], 8)) + 1


async def test_a_decode_that_fails_is_the_answer(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_: Painted, jobs: Sequence[DecodeJob], *__: Any) -> list[DecodeResult | Exception]:
        return [Overloaded("later", retry_after_s=1) for _ in jobs]

    monkeypatch.setattr(Painted, "decode", full)
    with pytest.raises(Overloaded):
        await found_in(picture)


@pytest.mark.parametrize(("least_px", "count"), [(0, 2), (5600, 2), (7300, 0)])
async def test_the_least_area_is_in_pixels_of_the_picture(picture: Picture, least_px: int, count: int) -> None:
    """Objects have 6400."""
    found, _ = await found_in(picture, min_mask_region_area=least_px)
    assert len(found) == count


async def test_without_suppression_objects_are_found_again_and_again(picture: Picture) -> None:
    found, _ = await found_in(picture, box_nms_thresh=1.0)
    assert len(found) > 2
    assert suppress([], 0.5) == []


def test_specks_and_pinholes_go() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    mask[10, 10] = False
    mask[35, 35] = True
    cleaned = without_specks(mask, 4)
    assert cleaned[10, 10]
    assert not cleaned[35, 35]
    assert np.count_nonzero(cleaned) == 25 * 25
