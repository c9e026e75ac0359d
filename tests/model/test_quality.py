"""The numbers of a mask against their definitions, spelt out."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsisam_model.quality import Floats, mask_numbers, stability

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(-2, 3, (256, 256)).astype(np.float32)


def blocks(*parts: tuple[int, int, int, int, float]) -> Floats:
    """Logits of -4 with rectangles (y0, y1, x0, x1) of a value each."""
    logits = np.full((256, 256), -4, np.float32)
    for y0, y1, x0, x1, value in parts:
        logits[y0:y1, x0:x1] = value
    return logits


MASKS = {
    "noise of many pieces": NOISE,
    "smooth": cv2.GaussianBlur(NOISE, (0, 0), 6) * 20 + 38,
    "steep": NOISE * 20,
    "all of the view": np.full((256, 256), 9, np.float32),
    "none of it": np.full((256, 256), -9, np.float32),
    "the surest piece is a small one": blocks((10, 20, 10, 20, 9), (100, 160, 80, 200, 2)),
    "a piece in the hole of another": blocks((50, 200, 50, 200, 2), (60, 190, 60, 190, -3), (100, 110, 90, 99, 5)),
    "pieces that touch at a corner": blocks((30, 60, 30, 60, 1), (60, 80, 60, 90, 3), (200, 256, 0, 30, 2)),
    "one pixel in a corner": blocks((255, 256, 255, 256, 0.5)),
}


def plainly(logits: Floats) -> list[float]:
    """The definition, in float64 and without regard to cost."""
    exact = logits.astype(float)
    mask = exact > 0
    stable = [(exact > offset).sum() / max((exact > -offset).sum(), 1) for offset in (1, 3)]
    if not mask.any():
        return [*stable, 0, 0, 0, 0, 0, 0]
    probability = 1 / (1 + np.exp(-exact))
    expected = probability[mask].sum() / (mask.sum() + probability[~mask].sum())
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]
    largest = np.bincount(pieces[mask]).max() / mask.sum()
    border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    steps = sum(np.count_nonzero(np.diff(mask, axis=axis)) for axis in (0, 1)) + border.sum()
    roundness = 4 * np.sqrt(mask.sum()) / steps
    return [*stable, expected, probability[mask].mean(), largest, roundness, border.mean(), np.log(mask.mean())]


@pytest.mark.parametrize("name", MASKS)
def test_each_number_is_what_it_is_said_to_be(name: str) -> None:
    np.testing.assert_allclose(mask_numbers(MASKS[name][None])[0], plainly(MASKS[name]), atol=1e-5)


def test_a_view_that_is_not_square_is_a_part_of_the_maps() -> None:
    logits = np.stack(list(MASKS.values()))[:, :192, :131]
    np.testing.assert_allclose(mask_numbers(logits), [plainly(mask) for mask in logits], atol=1e-5)


def test_the_logits_stay_as_they_are_and_extreme_ones_are_borne() -> None:
    logits = np.where(NOISE > 0, np.float32(1e4), np.float32(-1e4))[None]
    before = logits.copy()
    numbers = mask_numbers(logits)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_allclose(numbers[0, :4], 1, atol=1e-6)


def test_stability_counts_each_mask_by_itself() -> None:
    logits = blocks((0, 10, 0, 10, 2), (20, 30, 0, 10, 0.5))[None].repeat(2, 0)
    logits[1] -= 10
    np.testing.assert_allclose(stability(logits), [0.5, 0])


def test_pixels_that_are_no_numbers_are_not_in_the_mask_and_do_no_harm() -> None:
    logits = np.full((1, 256, 256), np.nan, np.float32)
    logits[0, 100:120, 100:120] = 4
    numbers = mask_numbers(logits)[0]
    assert numbers[4] == 1, "the largest piece is all of it"
    assert numbers[7] == pytest.approx(np.log(400 / 256**2))
