"""Specks beside a mask and pinholes in it, which nobody pointed at. Torch-free."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.prompts import Prompt

Mask = npt.NDArray[np.bool_]
Place = tuple[int, int]
"""Row and column of a pixel."""

SPECK = 0.01
"""Pieces and holes smaller than this part of the mask are specks. Of 572 held-out answers 8.5 pieces and holes too many
on average become 1.2, and no kind of prompt loses Dice (docs/TRAINING.md)."""


def without_specks(mask: Mask, prompt: Prompt) -> Mask:
    """`mask` (h, w) without its specks: small pieces gone, small holes filled, as 4-connected neighbours see them.

    A piece under a positive point of `prompt` (in the mask's pixels, index frame) stays, and so does a hole under a
    negative one, the largest piece, and what the border cuts out of the mask.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    around = (slice(top, top + height), slice(left, left + width))
    part = np.pad(mask[around], 1)
    least = SPECK * np.count_nonzero(part)
    places = [(round(y) - top + 1, round(x) - left + 1) for x, y in prompt.points]
    inside = [
        (place, label)
        for place, label in zip(places, prompt.labels, strict=True)
        if 0 < place[0] <= height and 0 < place[1] <= width
    ]
    part &= ~_small(part, least, [place for place, label in inside if label])
    # The margin holds together what lies outside, gaps at the border among it: that is no hole.
    part |= _small(~part, least, [(0, 0), *(place for place, label in inside if not label)])
    clean = np.zeros_like(mask)
    clean[around] = part[1:-1, 1:-1]
    return clean


def _small(mask: Mask, least: float, places: list[Place]) -> Mask:
    """The pieces of `mask` under `least` pixels and under none of `places`; never the largest."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # what is not in the mask
    small = areas < least
    small[np.argmax(areas)] = False
    for place in places:
        small[pieces[place]] = False
    small[0] = False
    return np.asarray(small[pieces]) if small.any() else np.zeros_like(mask)
