"""Reasons to leave an annotated image out of training: what never reaches the network properly teaches it nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_service.annotated.annotations import Labels
from wsisam_service.masks.border import bounds_of
from wsisam_service.views import MAX_SLIDE_MPP, MIN_SLIDE_MPP, believable_mpp

Pixels = npt.NDArray[np.uint8]
Shifts = npt.NDArray[np.float32]

BLACK_LEVEL = 10
"""Grey level below which a pixel is ink or padding; the darkest haematoxylin stays above it."""
BLACK_BORDER = 0.02
"""Part of an image that may lie in black rows or columns at its border."""
CHECK_MPP = 2.0
SHIFT_REACH = 24
"""Largest shift tried, in pixels of CHECK_MPP, so 48 µm."""
SHIFT_MIN_UM = 10.0
PEAK_SIGMAS, PLACE_SIGMAS = 4.5, 1.0
"""Masks count as shifted when edges fit better than this at some other place and worse than this at their own, in
standard deviations over all shifts. No shared set is refused; `glas` and `breast_bcss` are when moved by 38 µm, the
small or softly outlined `glomeruli_pas` and `camelyon` are not: the check finds clear cases only."""


def pixel_size_problem(mpp: float | None) -> str | None:
    if believable_mpp(mpp):
        return None
    return f"its pixel size is {mpp} µm; {MIN_SLIDE_MPP} to {MAX_SLIDE_MPP} is believed"


def label_size_problem(labels: Labels, width: int, height: int) -> str | None:
    if labels.shape == (height, width):
        return None
    return f"its mask has {labels.shape[1]} x {labels.shape[0]} pixels, the image {width} x {height}"


def black_border_problem(pixels: Pixels) -> str | None:
    """Padding with black: rows or columns at the border in which no pixel is lighter than `BLACK_LEVEL`. Outside a
    slide views are white, so black is something that the network never sees.
    """
    light = pixels.max(axis=2) > BLACK_LEVEL
    bounds = bounds_of(light)
    if bounds is None:
        return "it is black all over"
    left, top, right, bottom = bounds
    part = 1 - (right - left) * (bottom - top) / light.size
    return f"{part:.0%} of it is black border" if part > BLACK_BORDER else None


def edge_fit(pixels: Pixels, labels: Labels, mpp: float) -> Shifts:
    """How well the labels' borders lie on edges of the image, for every shift up to `SHIFT_REACH`, standardised:
    float32 (2R+1, 2R+1), the middle being the labels' own place.
    """
    scale = mpp / CHECK_MPP
    size = (max(8, round(labels.shape[1] * scale)), max(8, round(labels.shape[0] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    lab = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 1.5)
    gradient = np.hypot(cv2.Sobel(lab, cv2.CV_32F, 1, 0), cv2.Sobel(lab, cv2.CV_32F, 0, 1)).sum(axis=2)
    areas = cv2.resize(labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    kernel = np.ones((3, 3), np.uint8)
    border = (cv2.dilate(areas, kernel) != cv2.erode(areas, kernel)).astype(np.float32)
    border[:2] = border[-2:] = 0
    border[:, :2] = border[:, -2:] = 0
    padded = np.pad(gradient, SHIFT_REACH, mode="symmetric").astype(np.float32)
    fit = cv2.matchTemplate(padded, border, cv2.TM_CCORR)
    return np.asarray((fit - fit.mean()) / max(1e-6, float(fit.std())), np.float32)


def shift_problem(fits: Sequence[Shifts]) -> str | None:
    """Judges the summed `edge_fit` of all images of one source: exports go wrong for a whole set at a time, and one
    image alone says little.
    """
    total = np.sum(fits, axis=0)
    total = (total - total.mean()) / max(1e-6, float(total.std()))
    row, column = np.unravel_index(int(np.argmax(total)), total.shape)
    dx, dy = ((int(i) - SHIFT_REACH) * CHECK_MPP for i in (column, row))
    shifted = np.hypot(dx, dy) >= SHIFT_MIN_UM
    if shifted and total[row, column] >= PEAK_SIGMAS and total[SHIFT_REACH, SHIFT_REACH] < PLACE_SIGMAS:
        return f"its masks look shifted: their borders fit the tissue {dx:+.0f}, {dy:+.0f} µm (x, y) away"
    return None
