"""Specks: what goes, and what stays because somebody pointed at it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsisam_model.prompts import Prompt
from wsisam_model.specks import SPECK, Mask, without_specks

BOX = Prompt(box=(10.0, 10.0, 110.0, 110.0))
SPECK_AT, HOLE_AT = (5.0, 120.0), (50.0, 60.0)


def object_with(*, speck: bool = False, hole: bool = False) -> Mask:
    """A square of 10,000 pixels, with 9 pixels beside it or missing in it."""
    mask = np.zeros((128, 128), bool)
    mask[10:110, 10:110] = True
    for wanted, (x, y), value in ((speck, SPECK_AT, True), (hole, HOLE_AT, False)):
        if wanted:
            mask[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = value
    return mask


def test_specks_go_and_pinholes_are_filled() -> None:
    assert (without_specks(object_with(speck=True, hole=True), BOX) == object_with()).all()


def test_what_a_click_lies_on_stays() -> None:
    marked = object_with(speck=True, hole=True)
    kept = Prompt(points=(SPECK_AT, HOLE_AT), labels=(1, 0))
    assert (without_specks(marked, kept) == marked).all()
    swapped = Prompt(points=(SPECK_AT, HOLE_AT), labels=(0, 1))
    assert (without_specks(marked, swapped) == object_with()).all()


@pytest.mark.parametrize("place", [(-9.0, 400.0), (50.0, 400.0), (400.0, 50.0)])
def test_a_click_beyond_the_view_is_harmless(place: tuple[float, float]) -> None:
    assert (without_specks(object_with(speck=True), Prompt(points=(place,), labels=(1,))) == object_with()).all()


def test_pieces_and_holes_of_a_hundredth_stay() -> None:
    mask = object_with()
    mask[112:124, 112:124] = True
    mask[50:62, 50:62] = False
    assert (without_specks(mask, BOX) == mask).all()


@pytest.mark.parametrize("side", [128, 1024])
def test_what_the_border_cuts_out_is_no_hole(side: int) -> None:
    mask = np.ones((side, side), bool)
    mask[40:43, :3] = mask[:2, 70:72] = False
    assert (without_specks(mask, BOX) == mask).all()


@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything_stay(value: bool) -> None:
    mask = np.full((16, 16), value)
    assert (without_specks(mask, BOX) == mask).all()


@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_the_largest_piece_stays_and_none_is_a_speck(mask: Mask) -> None:
    before = mask.copy()
    clean = without_specks(mask, BOX)
    assert (mask == before).all(), "the mask given is not changed"
    assert clean.any() == mask.any()
    if not mask.any():
        return
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    assert clean[pieces == 1 + np.argmax(areas)].all()
    gone = np.unique(pieces[mask & ~clean])
    assert all(areas[piece - 1] < SPECK * mask.sum() for piece in gone)
