"""How well a mask agrees with the ground truth. Torch-free."""

from __future__ import annotations

import cv2
import numpy as np

from wsisam_model.train.samples import Mask

BOUNDARY_TOLERANCE = 2
"""View pixels by which two borders may differ and still count as the same (boundary F-score)."""


def dice(answer: Mask, truth: Mask) -> float:
    """2|A∩B| / (|A|+|B|); 1 where both are empty."""
    total = int(answer.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((answer & truth).sum()) / total


def iou(answer: Mask, truth: Mask) -> float:
    """|A∩B| / |A∪B|; 1 where both are empty."""
    union = int((answer | truth).sum())
    return 1.0 if union == 0 else int((answer & truth).sum()) / union


def boundary_f(answer: Mask, truth: Mask) -> float:
    """Harmonic mean of the parts of either border that lie within `BOUNDARY_TOLERANCE` of the other."""
    a, b = border(answer), border(truth)
    if not a.any() and not b.any():
        return float(np.array_equal(answer, truth))  # one may fill the view where the other is empty
    if not a.any() or not b.any():
        return 0.0
    precision = float(_is_near(b)[a].mean())
    recall = float(_is_near(a)[b].mean())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _is_near(line: Mask) -> Mask:
    """Where the nearest pixel of `line` is within `BOUNDARY_TOLERANCE`, from centre to centre."""
    distance = cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance < BOUNDARY_TOLERANCE + 0.01)  # whole-numbered squares: the next one is at 2.24


def border(mask: Mask) -> Mask:
    """The mask's outermost pixels. Where it leaves the view there is no border."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    return np.asarray(mask & (inner == 0))
