"""Views: ladder, grid, keys and frames (DESIGN.md section 5)."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsisam_service.views import (
    BASE_MPP,
    EXTENT_FRACTION,
    FINEST_STEP,
    MAX_REQUEST_MPP,
    MIN_REQUEST_MPP,
    View,
    believable_mpp,
    nearest_step,
    snapped_view,
    step_for_extent,
    step_mpp,
    view_for_extent,
)

SIDES = st.sampled_from([256, 1024])
MPPS = st.floats(0.05, 20.0)
STEPS = st.integers(FINEST_STEP, 8)
POSITIONS = st.floats(-50.0, 200_000.0)
POINTS = st.tuples(POSITIONS, POSITIONS)
UNIT = st.floats(0.0, 1.0)


@st.composite
def extents(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x, y = draw(POSITIONS), draw(POSITIONS)
    return x, y, x + draw(st.floats(0.01, 40_000.0)), y + draw(st.floats(0.01, 40_000.0))


@given(side=SIDES, mpp=MPPS, k=STEPS, point=POINTS, lone=st.booleans())
def test_centres_are_whole_units_on_the_grid_of_their_step(
    side: int, mpp: float, k: int, point: tuple[float, float], lone: bool
) -> None:
    view = snapped_view(point, k, side, mpp, lone_point=lone)
    pitch_units = 2 ** (k - FINEST_STEP) * (2 if lone else 1)
    assert isinstance(view.cx, int)
    assert view.cx % pitch_units == 0
    assert view.cy % pitch_units == 0
    pitch_level0 = side / (2 if lone else 4) * view.scale
    assert abs(view.centre_level0[0] - point[0]) <= pitch_level0 / 2 * (1 + 1e-9)
    assert abs(view.centre_level0[1] - point[1]) <= pitch_level0 / 2 * (1 + 1e-9)


@given(side=SIDES, mpp=MPPS, extent=extents())
def test_prompt_stays_in_the_middle_three_quarters(
    side: int, mpp: float, extent: tuple[float, float, float, float]
) -> None:
    view = view_for_extent(extent, side, mpp)
    x0, y0 = view.origin_level0
    margin = view.size_level0 / 8 * (1 - 1e-9)
    assert x0 + margin <= extent[0]
    assert y0 + margin <= extent[1]
    assert extent[2] <= x0 + view.size_level0 - margin
    assert extent[3] <= y0 + view.size_level0 - margin


@given(side=SIDES, mpp=MPPS, extent=extents(), wish=st.floats(MIN_REQUEST_MPP, MAX_REQUEST_MPP))
def test_view_contains_its_prompt_at_whatever_mpp_is_asked(
    side: int, mpp: float, extent: tuple[float, float, float, float], wish: float
) -> None:
    view = view_for_extent(extent, side, mpp, mpp=wish)
    assert view.contains(extent)
    assert view.k >= nearest_step(wish)


@given(extent_um=st.floats(1e-3, 1e5), side=SIDES)
def test_step_is_the_finest_at_which_the_prompt_fills_half_the_view(extent_um: float, side: int) -> None:
    k = step_for_extent(extent_um, side)
    assert extent_um <= EXTENT_FRACTION * side * step_mpp(k) * (1 + 1e-6)
    assert k == FINEST_STEP or extent_um > EXTENT_FRACTION * side * step_mpp(k - 1) * (1 - 1e-6)


def test_rounding_makes_no_view_coarser() -> None:
    extent_um = ((1000 + 32 / 0.3) - 1000) * 0.3
    assert extent_um > 32, "half of a view of 256 pixels at step 0, but for the last bit"
    assert step_for_extent(extent_um, 256) == 0


def test_pixel_sizes_that_no_scanner_has_are_not_believed() -> None:
    assert believable_mpp(0.05)
    assert believable_mpp(20.0)
    assert not any(map(believable_mpp, (None, 0.049, 20.1, math.nan)))


@given(mpp=st.floats(MIN_REQUEST_MPP, MAX_REQUEST_MPP))
def test_nearest_step_is_nearest_in_log2(mpp: float) -> None:
    distance = abs(math.log2(mpp / step_mpp(nearest_step(mpp))))
    assert distance <= 0.5 + 1e-9


def test_ladder_has_the_request_limits_at_its_ends() -> None:
    assert step_mpp(nearest_step(MIN_REQUEST_MPP)) == MIN_REQUEST_MPP
    assert step_mpp(nearest_step(MAX_REQUEST_MPP)) == MAX_REQUEST_MPP
    assert step_mpp(0) == BASE_MPP


@given(side=SIDES, mpp=MPPS, k=STEPS, x=POSITIONS, y=POSITIONS)
def test_lr_view_is_concentric_and_twice_as_wide(side: int, mpp: float, k: int, x: float, y: float) -> None:
    hr = snapped_view((x, y), k, side, mpp, lone_point=False)
    lr = hr.coarser()
    assert (lr.cx, lr.cy, lr.k) == (hr.cx, hr.cy, hr.k + 1)
    assert lr.centre_level0 == hr.centre_level0
    assert lr.size_level0 == pytest.approx(2 * hr.size_level0)


@given(side=SIDES, mpp=MPPS, k=STEPS, point=POINTS, within=st.tuples(UNIT, UNIT))
def test_index_and_edge_frames_invert_each_other(
    side: int, mpp: float, k: int, point: tuple[float, float], within: tuple[float, float]
) -> None:
    view = snapped_view(point, k, side, mpp, lone_point=False)
    u, v = (side * part for part in within)
    assert view.index_from_level0(*view.level0_from_edge(u, v)) == pytest.approx((u - 0.5, v - 0.5), abs=1e-4)


def test_first_pixels_centre_has_index_zero() -> None:
    view = View(side=256, k=0, cx=8, cy=8, slide_mpp=0.25)
    assert view.origin_level0 == (128.0, 128.0)
    assert view.index_from_level0(128.5, 128.5) == (0.0, 0.0)


@given(side=SIDES, mpp=MPPS, k=st.integers(FINEST_STEP + 1, 6), x=POSITIONS, y=POSITIONS)
def test_lone_points_of_one_lattice_cell_share_a_view(side: int, mpp: float, k: int, x: float, y: float) -> None:
    view = view_for_extent((x, y, x, y), side, mpp, mpp=step_mpp(k))
    jitter = side * view.scale / 1000
    offset = (abs(x - view.centre_level0[0]), abs(y - view.centre_level0[1]))
    assume(max(offset) < side / 4 * view.scale - 2 * jitter)
    assert view_for_extent((x + jitter, y, x + jitter, y), side, mpp, mpp=step_mpp(k)) == view


def test_outside_fraction_counts_area() -> None:
    view = View(side=256, k=0, cx=0, cy=0, slide_mpp=0.25)  # a quarter of it lies on the slide
    assert view.outside_fraction(10_000, 10_000) == pytest.approx(0.75)
    assert view.outside_fraction(64, 10_000) == pytest.approx(0.875)


def test_a_view_beyond_a_corner_is_wholly_outside() -> None:
    view = View(side=256, k=0, cx=32, cy=32, slide_mpp=0.25)  # x and y 896..1152
    assert view.outside_fraction(500, 500) == 1.0
    assert view.outside_fraction(500, 2000) == view.outside_fraction(2000, 500) == 1.0


def test_a_view_contains_what_reaches_its_borders_and_nothing_beyond_any_of_them() -> None:
    view = View(side=256, k=0, cx=8, cy=8, slide_mpp=0.25)  # x and y 128..384
    assert view.contains((128, 128, 384, 384))
    for beyond in ((127, 128, 384, 384), (128, 127, 384, 384), (128, 128, 385, 384), (128, 128, 384, 385)):
        assert not view.contains(beyond)


def test_inner_borders_are_those_with_slide_beyond() -> None:
    view = View(side=256, k=0, cx=4, cy=8, slide_mpp=0.25)  # x 0..256, y 128..384
    assert view.origin_level0 == (0.0, 128.0)
    assert view.inner_borders(256, 1000) == (False, True, False, True)


def test_key_is_written_as_the_design_says() -> None:
    view = View(side=256, k=1, cx=12, cy=-4, slide_mpp=0.499)
    assert view.key("lite_medsam:79d8c9dc0000:1", "ab12") == "lite_medsam:79d8c9dc0000:1:ab12:1:12:-4"
