"""Prompts: every mistake has its own error, and what is right lands where the client meant."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsisam_model.config import model_config
from wsisam_model.prompts import MAX_POINTS
from wsisam_service.errors import (
    EmptyPrompt,
    FrameMismatch,
    InvalidBox,
    InvalidLabel,
    InvalidNumber,
    InvalidRequest,
    NoPositivePoint,
    PromptOutsideSlide,
    ServiceError,
)
from wsisam_service.masks import rle
from wsisam_service.segmenting.prompts import (
    MaskSpec,
    PromptSpec,
    RequestFrame,
    check_inside,
    judge,
    plan_view,
    request_frame,
)
from wsisam_service.views import FINEST_STEP, MAX_OUTSIDE, View, step_mpp

SIZE = (20_000, 10_000)
LEVEL0 = RequestFrame(1.0, 0.0, 0.0)
CONFIG = model_config("lite_medsam")
NAN, INF = math.nan, math.inf


def mask_spec(mask: np.ndarray, x: float, y: float, width: float, height: float) -> MaskSpec:
    encoded = rle.encode(mask)
    return MaskSpec(encoded.size, encoded.counts, x, y, width, height)


FULL = np.ones((4, 4), bool)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (PromptSpec(), EmptyPrompt),
        (PromptSpec(box=(30, 30, 10, 40)), InvalidBox),
        (PromptSpec(box=(30, 30, 30, 40)), InvalidBox),
        (PromptSpec(box=(10, 40, 30, 40)), InvalidBox),
        (PromptSpec(box=(NAN, 0, 10, 10)), InvalidNumber),
        (PromptSpec(box=(0, 0, INF, 10)), InvalidNumber),
        (PromptSpec(box=(-1e308, 0, 1e308, 10)), InvalidNumber),
        (PromptSpec(box=(-20_001, 0, 10, 10)), InvalidNumber),
        (PromptSpec(box=(-19_000, 0, -5, 10)), PromptOutsideSlide),
        (PromptSpec(box=(0, 0, 40_001, 10)), InvalidNumber),
        (PromptSpec(box=(20_000, 0, 20_010, 10)), PromptOutsideSlide),
        (PromptSpec(box=(0, 10_000, 10, 10_010)), PromptOutsideSlide),
        (PromptSpec(box=(-10, 0, 0, 10)), PromptOutsideSlide),
        (PromptSpec(box=(0, -10, 10, 0)), PromptOutsideSlide),
        (PromptSpec(points=((5, 5, 2),)), InvalidLabel),
        (PromptSpec(points=((5, 5, NAN),)), InvalidLabel),
        (PromptSpec(points=((NAN, 5, 1),)), InvalidNumber),
        (PromptSpec(points=((5, 5, 0),)), NoPositivePoint),
        (PromptSpec(points=((-5, 5, 1), (5, 5, 0))), PromptOutsideSlide),
        (PromptSpec(points=((5, 5, 1),) * (MAX_POINTS + 1)), InvalidRequest),
        (PromptSpec(mask=mask_spec(~FULL, 0, 0, 9, 9)), EmptyPrompt),
        (PromptSpec(mask=mask_spec(FULL, 0, 0, 0, 9)), InvalidBox),
        (PromptSpec(mask=mask_spec(FULL, 0, 0, -4, 9)), InvalidBox),
        (PromptSpec(mask=mask_spec(FULL, 0, 0, 1e308, 9)), InvalidNumber),
        (PromptSpec(mask=mask_spec(FULL, -INF, 0, INF, 9)), InvalidNumber),
        (PromptSpec(mask=mask_spec(FULL, 0, NAN, 9, 9)), InvalidNumber),
        (PromptSpec(mask=mask_spec(FULL, 0, 0, 9, NAN)), InvalidNumber),
        (PromptSpec(mask=mask_spec(FULL, -100, 0, 90, 9)), PromptOutsideSlide),
        (PromptSpec(mask=MaskSpec((4, 4), "junk", 0, 0, 9, 9)), InvalidRequest),
    ],
)
def test_each_mistake_has_its_error(spec: PromptSpec, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        judge(spec, LEVEL0, SIZE)


@pytest.mark.parametrize("beyond", [(20_001, 5), (5, 10_001), (-1, 5), (5, -1)])
def test_one_point_of_the_object_on_the_slide_is_enough(beyond: tuple[float, float]) -> None:
    outside, corner = (*beyond, 1.0), (20_000.0, 10_000.0, 1.0)
    with pytest.raises(PromptOutsideSlide):
        judge(PromptSpec(points=(outside,)), LEVEL0, SIZE)
    assert len(judge(PromptSpec(points=(outside, corner)), LEVEL0, SIZE).positive) == 2


def test_points_are_clicks_only_where_they_are_all_that_is_said() -> None:
    points = ((5.0, 5.0, 1.0), (9.0, 9.0, 1.0), (5.0, 9.0, 0.0))
    assert judge(PromptSpec(points=points), LEVEL0, SIZE).clicks == 2
    assert judge(PromptSpec(points=points, box=(0, 0, 9, 9)), LEVEL0, SIZE).clicks == 0
    assert judge(PromptSpec(points=points, mask=mask_spec(FULL, 0, 0, 9, 9)), LEVEL0, SIZE).clicks == 0


def test_a_box_may_reach_as_far_beyond_the_slide_as_that_is_large() -> None:
    assert judge(PromptSpec(box=(-20_000, -10_000, 40_000, 20_000)), LEVEL0, SIZE).box is not None


def test_as_many_points_as_a_prompt_may_have_are_taken() -> None:
    assert len(judge(PromptSpec(points=((5, 5, 1),) * MAX_POINTS), LEVEL0, SIZE).positive) == MAX_POINTS


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-100, 30_000)


@given(
    st.none() | st.tuples(numbers, numbers, numbers, numbers),
    st.lists(st.tuples(numbers, numbers, st.sampled_from((0, 1))), max_size=3),
    st.sampled_from((0.05, 0.25, 1.0, 20.0)),
    st.sampled_from(("px", "um")),
)
def test_any_numbers_give_a_view_around_the_prompt_or_an_error(box, points, slide_mpp, units) -> None:  # type: ignore[no-untyped-def]
    frame = request_frame(SIZE, None, slide_mpp, units=units, frame=None, image_size=None)
    try:
        target = judge(PromptSpec(box=box, points=tuple(points)), frame, SIZE)
        view = plan_view(target, SIZE, slide_mpp, CONFIG, mpp=None)
    except ServiceError:
        return
    prompt = target.prompt(view)
    positions = [*prompt.points, *([prompt.box[:2], prompt.box[2:]] if prompt.box else [])]
    assert all(-0.51 <= value <= 255.51 for position in positions for value in position)


def test_frames_and_units_put_the_same_spot_in_the_same_place() -> None:
    bounds = (1000, 500, 8000, 4000)

    def spot(x: float, y: float, **options: object) -> tuple[float, float]:
        defaults = {"units": "px", "frame": None, "image_size": None}
        frame = request_frame(SIZE, bounds, 0.5, **(defaults | options))  # type: ignore[arg-type]
        return frame.to_level0(x, y)

    assert spot(1010, 520) == (1010, 520)
    assert spot(10, 20, frame="bounds") == (1010, 520)
    assert spot(5, 10, frame="bounds", units="um") == (1010, 520)
    assert spot(1010, 520, image_size=SIZE) == (1010, 520)
    assert spot(10, 20, image_size=(8000, 4000)) == (1010, 520)
    for other in ((8001, 4000), (8000, 4001), (20_000, 10_001)):
        with pytest.raises(FrameMismatch):
            spot(10, 20, image_size=other)
    with pytest.raises(InvalidRequest):
        spot(10, 20, image_size=SIZE, frame="level0")


def test_bounds_of_a_slide_without_any_are_the_slide() -> None:
    frame = request_frame(SIZE, None, 0.5, units="px", frame="bounds", image_size=None)
    assert frame.to_level0(3, 4) == (3, 4)


def test_a_box_and_its_points_land_in_view_index_pixels() -> None:
    view = View(256, 1, 40, 40, 0.25)
    x0, y0 = view.origin_level0
    target = judge(PromptSpec(box=(x0 + 20, y0 + 40, x0 + 60, y0 + 80), points=((x0 + 22, y0 + 42, 1),)), LEVEL0, SIZE)
    prompt = target.prompt(view)
    assert prompt.box == (9.5, 19.5, 29.5, 39.5)
    assert prompt.points == ((10.5, 20.5),)
    assert prompt.labels == (1,)


def test_far_negative_points_neither_widen_the_view_nor_reach_the_network() -> None:
    box = (5000.0, 5000.0, 5100.0, 5100.0)
    alone = judge(PromptSpec(box=box), LEVEL0, SIZE)
    among = judge(PromptSpec(box=box, points=((19_000, 9000, 0), (5001, 5001, 0))), LEVEL0, SIZE)
    view = plan_view(among, SIZE, 0.5, CONFIG, mpp=None)
    assert view == plan_view(alone, SIZE, 0.5, CONFIG, mpp=None)
    assert among.prompt(view).labels == (0,)


def test_points_alone_are_seen_at_the_mpp_of_points() -> None:
    point = judge(PromptSpec(points=((5000, 5000, 1),)), LEVEL0, SIZE)
    assert plan_view(point, SIZE, 0.5, CONFIG, mpp=None).mpp == CONFIG.point_mpp
    assert plan_view(point, SIZE, 0.5, CONFIG, mpp=4.1).mpp == 4.0


def test_a_point_in_a_mask_or_a_box_leaves_them_their_finer_view() -> None:
    point = ((5002.0, 5002.0, 1.0),)
    for spec in (PromptSpec(mask=mask_spec(FULL, 5000, 5000, 8, 8)), PromptSpec(box=(5000, 5000, 5008, 5008))):
        view = plan_view(judge(spec, LEVEL0, SIZE), SIZE, 0.5, CONFIG, mpp=None)
        assert view.mpp < CONFIG.point_mpp
        assert view == plan_view(judge(replace(spec, points=point), LEVEL0, SIZE), SIZE, 0.5, CONFIG, mpp=None)


def test_a_view_almost_wholly_outside_is_refused() -> None:
    stamp = (100, 100)
    point = judge(PromptSpec(points=((50, 50, 1),)), LEVEL0, stamp)
    with pytest.raises(PromptOutsideSlide):
        plan_view(point, stamp, 0.5, CONFIG, mpp=64)


@pytest.mark.parametrize(("row", "column"), [(5, 2), (0, 0)])
def test_a_mask_lands_on_the_view_where_it_was_drawn(row: int, column: int) -> None:
    view = View(256, 1, 400, 400, 0.5)
    x0, y0 = view.origin_level0
    mask = np.zeros((20, 10), bool)
    mask[row:15, column:8] = True
    spec = PromptSpec(mask=mask_spec(mask, x0 + 64, y0 + 32, 100, 100))
    target = judge(spec, LEVEL0, SIZE)
    logits = target.prompt(view).mask_hr
    assert logits is not None
    assert logits.dtype == np.float32
    assert set(np.unique(logits)) == {-10.0, 10.0}
    # one view pixel is one level-0 pixel here, of the mask 10 x 5: columns up to 64 + 80, rows up to 32 + 75
    expected = np.zeros((256, 256), bool)
    top, left = 32 + 5 * row, 64 + 10 * column
    expected[top:107, left:144] = True
    np.testing.assert_array_equal(logits > 0, expected)
    assert target.extent() == (x0 + left, y0 + top, x0 + 144, y0 + 107)


@pytest.mark.parametrize(("left", "right", "columns"), [(0.5, 0.5, (64, 73)), (0.7, 0.3, (65, 72))])
def test_a_pixel_of_the_view_is_set_where_at_least_half_of_it_is(
    left: float, right: float, columns: tuple[int, int]
) -> None:
    view = View(256, 1, 400, 400, 0.5)  # one view pixel is one level-0 pixel
    x0, y0 = view.origin_level0
    spec = PromptSpec(mask=mask_spec(FULL, x0 + 64 + left, y0 + 32, 8 + right - left, 16))
    logits = judge(spec, LEVEL0, SIZE).prompt(view).mask_hr
    assert logits is not None
    set_columns = np.flatnonzero((logits > 0).any(axis=0))
    assert (set_columns[0], set_columns[-1] + 1) == columns


def test_a_judged_mask_takes_no_more_memory_than_its_text() -> None:
    spec = PromptSpec(mask=mask_spec(np.ones((4096, 4096), bool), 0, 0, 100, 100))
    tracemalloc.start()
    try:
        judged = [judge(spec, LEVEL0, SIZE) for _ in range(4)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(judged) == 4
    assert held < 100_000


@pytest.mark.parametrize(("side", "mpp"), [(100, CONFIG.point_mpp / 2), (20, step_mpp(FINEST_STEP))])
def test_a_click_on_a_small_picture_takes_a_finer_view(side: int, mpp: float) -> None:
    stamp = (side, side)
    point = judge(PromptSpec(points=((side / 2, side / 2, 1),)), LEVEL0, stamp)
    view = plan_view(point, stamp, 0.25, CONFIG, mpp=None)
    assert view.mpp == mpp
    assert view.outside_fraction(*stamp) <= MAX_OUTSIDE


def test_a_correction_must_stay_on_its_view() -> None:
    view = View(256, 1, 400, 400, 0.5)
    x, y = view.centre_level0
    check_inside(judge(PromptSpec(refine="t", points=((x, y, 1),)), LEVEL0, SIZE), view)
    check_inside(judge(PromptSpec(refine="t", points=((x, y, 0),)), LEVEL0, SIZE), view)
    with pytest.raises(InvalidRequest):
        check_inside(judge(PromptSpec(refine="t", points=((x + 500, y, 1),)), LEVEL0, SIZE), view)


def test_a_prompt_says_what_it_is_without_numbers() -> None:
    spec = PromptSpec(box=(1, 2, 3, 4), points=((1, 2, 1), (3, 4, 0)), refine="t")
    assert spec.described() == "box, 2 points, correction"
    assert spec.kinds() == {"box", "points"}
    assert PromptSpec(points=((1, 2, 1),)).described() == "1 point"
