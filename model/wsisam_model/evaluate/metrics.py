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


def boundary_f(answer: Mask, truth: Mask, tolerance: int = BOUNDARY_TOLERANCE) -> float:
    """Harmonic mean of the parts of either border that lie within `tolerance` pixels of the other."""
    a, b = border(answer), border(truth)
    if not a.any() and not b.any():
        return float(np.array_equal(answer, truth))  # one may fill the view where the other is empty
    if not a.any() or not b.any():
        return 0.0
    size = 2 * tolerance + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    precision = float((a & (cv2.dilate(b.astype(np.uint8), disc) > 0)).sum()) / int(a.sum())
    recall = float((b & (cv2.dilate(a.astype(np.uint8), disc) > 0)).sum()) / int(b.sum())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def border(mask: Mask) -> Mask:
    """The mask's outermost pixels. Where it leaves the view there is no border."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    return np.asarray(mask & (inner == 0))
