"""Which views of a slide show tissue, from a thumbnail: what precompute encodes."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_service.views import step_mpp

MIN_TISSUE = 0.02
"""Part of a view that must be tissue; a view that only touches some is hardly ever clicked."""
MIN_STAIN = 16
"""Spread of a pixel's colours, of 255, below which even the strongest stain of a slide is none."""
SHADE = 48
"""Darkness, of 255, that the slide's glass and uneven light make of the background."""

Thumbnail = npt.NDArray[np.uint8]


def tissue_mask(thumbnail: Thumbnail) -> npt.NDArray[np.bool_]:
    """Where RGB `thumbnail` (h, w, 3) is stained or dark: background is bright and grey on every scanner."""
    blurred = cv2.GaussianBlur(thumbnail, (5, 5), 0)
    stain = blurred.max(axis=2) - blurred.min(axis=2)
    darkness = np.maximum(255 - blurred.max(axis=2), SHADE) - SHADE
    seen = np.asarray(np.maximum(stain, darkness), np.uint8)
    threshold, _ = cv2.threshold(seen, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(seen > max(MIN_STAIN, threshold / 2), np.bool_)


def tissue_centres(
    thumbnail: Thumbnail, size: tuple[int, int], slide_mpp: float, *, side: int, k: int
) -> Iterator[tuple[float, float]]:
    """Level-0 centres of the lattice of lone-point views at step `k` on a slide of `size` (width, height) that show
    tissue. Row by row, so that neighbours, which share wide views, come one after the other.
    """
    width, height = size
    view = side * step_mpp(k) / slide_mpp
    mask = tissue_mask(thumbnail).astype(np.float32)
    sums = cv2.integral(mask)
    rows, columns = mask.shape

    def part(x: float, y: float) -> float:
        """Part of the view around (x, y) that is tissue."""
        left, right = (round(min(max(edge / width, 0), 1) * columns) for edge in (x - view / 2, x + view / 2))
        top, bottom = (round(min(max(edge / height, 0), 1) * rows) for edge in (y - view / 2, y + view / 2))
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        area: float = max(1.0, (view / width * columns) * (view / height * rows))
        return float(inside) / area

    for row in range(int(height / (view / 2)) + 1):
        for column in range(int(width / (view / 2)) + 1):
            x, y = column * view / 2, row * view / 2
            if part(x, y) >= MIN_TISSUE:
                yield x, y
