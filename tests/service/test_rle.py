"""Run-length masks: what pycocotools writes and reads, and nothing a client sends breaks the decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from wsisam_service.errors import InvalidRequest
from wsisam_service.jobs import Rle
from wsisam_service.masks import rle

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(masks)
def test_decode_is_the_inverse_of_encode(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)


@given(masks)
def test_pycocotools_reads_the_same_mask(mask: np.ndarray) -> None:
    encoded = rle.encode(mask)
    theirs = coco.decode({"size": list(encoded.size), "counts": encoded.counts})
    np.testing.assert_array_equal(theirs.astype(bool), mask)


def test_long_runs_and_negative_differences_survive() -> None:
    mask = np.zeros((4096, 4096), bool)
    mask[:, 1:4000] = True
    mask[5, 4050] = True
    np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((0, 4), "4"),
        ((-4, -4), "`0"),
        ((100_000, 100_000), "0"),
        ((2**62, 2**62), "0"),
        ((4, 4), ""),
        ((4, 4), "5"),
        ((4, 4), "0" * 1000),
        ((4, 4), "ooooooooooooo0"),
        ((4, 4), "o"),
        ((4, 4), "O0"),
        ((4, 4), "O`01"),
        ((4, 4), "p`0"),
        ((4, 4), "\x00\x01"),
        ((4, 4), "µ"),
        ((4, 4), "\ud800"),
    ],
)
def test_hostile_counts_are_refused(size: tuple[int, int], counts: str) -> None:
    with pytest.raises(InvalidRequest):
        rle.decode(Rle(size, counts))


def test_a_mask_larger_than_any_picture_is_refused() -> None:
    counts = coco.encode(np.zeros((4096, 4097), np.uint8, order="F"))["counts"].decode()
    with pytest.raises(InvalidRequest, match="pixels"):
        rle.decode(Rle((4096, 4097), counts))


@given(st.tuples(st.integers(-2, 50), st.integers(-2, 50)), st.text(st.characters(min_codepoint=40, max_codepoint=120)))
def test_any_text_is_a_mask_or_refused(size: tuple[int, int], counts: str) -> None:
    try:
        mask = rle.decode(Rle(size, counts))
    except InvalidRequest:
        return
    assert mask.shape == size
