"""Prompts drawn from an object's mask, as a user might give them. Torch-free.

Coordinates are (x, y) in the index frame of the mask they are drawn from: the centre of pixel i is at i, so the
tight box of a single pixel i is (i - 0.5, i + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.prompts import MASK_SIDE
from wsisam_model.train.samples import Mask

Box = tuple[float, float, float, float]
Point = tuple[float, float]

NEGATIVE_REACH = 0.5
"""Negative points lie within the tight box grown by this part of its sides: near misses, not far background."""


def tight_box(mask: Mask) -> Box:
    """Smallest box (x0, y0, x1, y1) around the object's pixels; raises ValueError for an empty mask."""
    ys, xs = np.nonzero(mask)
    if not xs.size:
        raise ValueError("an empty mask has no box")
    return float(xs.min()) - 0.5, float(ys.min()) - 0.5, float(xs.max()) + 0.5, float(ys.max()) + 0.5


def noisy_box(box: Box, noise: float, rng: np.random.Generator) -> Box:
    """`box` with its centre moved by up to noise/2 of its sides and its sides changed by up to `noise` (METHOD 5)."""
    x0, y0, x1, y1 = box
    sides = np.array((x1 - x0, y1 - y0))
    centre = np.array((x0 + x1, y0 + y1)) / 2 + rng.uniform(-noise / 2, noise / 2, 2) * sides
    half = sides * (1 + rng.uniform(-noise, noise, 2)) / 2
    (left, top), (right, bottom) = centre - half, centre + half
    return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the prompts of one object may lie: its tight box, the pixels of the object and those beside it, int16
    (n, 2) each.
    """

    box: Box
    inside: npt.NDArray[np.int16]
    beside: npt.NDArray[np.int16]


def places(mask: Mask) -> Places:
    """The places of an object; those beside it lie in its tight box grown by `NEGATIVE_REACH`. ValueError for an empty
    mask.
    """
    x0, y0, x1, y1 = box = tight_box(mask)
    reach_x, reach_y = NEGATIVE_REACH * (x1 - x0), NEGATIVE_REACH * (y1 - y0)
    near = np.zeros_like(mask)
    near[max(0, int(y0 - reach_y)) : int(y1 + reach_y) + 1, max(0, int(x0 - reach_x)) : int(x1 + reach_x) + 1] = True
    return Places(box, _pixels(mask), _pixels(near & ~mask))


def some(pixels: npt.NDArray[np.int16], count: int, rng: np.random.Generator) -> tuple[Point, ...]:
    """`count` different ones of `pixels` (n, 2), uniformly; fewer where there are fewer."""
    chosen = pixels[rng.permutation(len(pixels))[:count]]
    return tuple((float(x), float(y)) for x, y in chosen)


def next_click(mask: Mask, answer: Mask) -> tuple[Point, int] | None:
    """The click a careful user would add: the innermost pixel of the largest region where `answer` is wrong, with
    label 1 where the object was missed and 0 where too much was taken. None when the answer is right.
    """
    wrong = mask != answer
    count, labels, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=4)
    if count == 1:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    region = np.pad((labels == largest).astype(np.uint8), 1)
    depth = cv2.distanceTransform(region, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return (float(x), float(y)), int(mask[y, x])


def low_resolution(mask: Mask) -> Mask:
    """A square view's mask in the decoder's 256×256 pixels: those that it covers by half or more."""
    if len(mask) == MASK_SIDE:
        return mask
    covered = cv2.resize(mask.astype(np.float32), (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(covered >= 0.5)


def _pixels(mask: Mask) -> npt.NDArray[np.int16]:
    return np.argwhere(mask)[:, ::-1].astype(np.int16)
