"""COCO run-length masks: column-major runs, the first of background, as pycocotools' compressed text.

Decoding is done here and not by pycocotools, whose C code trusts the counts: text from a client could make it write
beyond the mask. The text is 5 bits a character, least significant first, with a continuation bit (32) and the sign in
the last character (16); from the fourth run on each number is the difference to the run two before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from wsisam_service.errors import InvalidRequest
from wsisam_service.jobs import Rle

Mask = npt.NDArray[np.bool_]

MAX_MASK_PIXELS = 4096 * 4096
"""Largest mask taken from a client; a view has at most 1024 x 1024."""
_FIRST_CHARACTER, _LAST_CHARACTER = 48, 111
_CONTINUES, _NEGATIVE, _BITS = 32, 16, 5
_LONGEST_NUMBER = 6
"""Characters of the longest number: 30 bits hold any difference of runs within MAX_MASK_PIXELS."""


def encode(mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> Rle:
    """The run-length form of a mask (h, w), non-zero where the object is."""
    height, width = mask.shape
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle((height, width), encoded["counts"].decode("ascii"))


def decode(rle: Rle) -> Mask:
    """The mask (h, w). Raises `InvalidRequest` where size and counts do not fit, before anything large is made."""
    height, width = rle.size
    if height < 1 or width < 1 or height * width > MAX_MASK_PIXELS:
        raise InvalidRequest(f"a mask has at least 1 x 1 and at most {MAX_MASK_PIXELS} pixels")
    runs = _runs(rle.counts, height * width)
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape((width, height)).T


def _runs(counts: str, pixels: int) -> npt.NDArray[np.int64]:
    """The run lengths that `counts` spells: none negative, `pixels` in all."""
    if not counts or len(counts) > _LONGEST_NUMBER * (pixels + 1):
        raise InvalidRequest("the mask's counts are empty or longer than its size allows")
    try:
        characters = np.frombuffer(counts.encode("ascii"), dtype=np.uint8)
    except UnicodeEncodeError as error:
        raise InvalidRequest("the mask's counts are not COCO run-length text") from error
    if characters.min() < _FIRST_CHARACTER or characters.max() > _LAST_CHARACTER:
        raise InvalidRequest("the mask's counts are not COCO run-length text")
    runs = _undo_differences(_numbers(characters - _FIRST_CHARACTER))
    if runs.min() < 0 or runs.max() > pixels or int(runs.sum()) != pixels:
        raise InvalidRequest("the mask's counts do not add up to its size")
    return runs


def _numbers(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Signed numbers from 6-bit codes."""
    ends = np.flatnonzero(codes & _CONTINUES == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise InvalidRequest("the mask's counts end within a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise InvalidRequest("the mask's counts hold a number that is too large")
    position = np.arange(codes.size) - np.repeat(starts, lengths)
    bits = (codes & (_CONTINUES - 1)).astype(np.int64) << (_BITS * position)
    numbers = np.add.reduceat(bits, starts)
    negative = codes[ends] & _NEGATIVE != 0
    result: npt.NDArray[np.int64] = np.where(negative, numbers - (np.int64(1) << (_BITS * lengths)), numbers)
    return result


def _undo_differences(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs
