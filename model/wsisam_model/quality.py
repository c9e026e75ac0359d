"""How good a returned mask is likely to be. Torch-free.

SAM's own estimate is of its own mask and says nothing about the fused one (METHOD.md sections 4 and 9).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from wsisam_model.errors import CheckpointError

Floats = npt.NDArray[np.float32]
_OFFSET = 1.0


def stability(logits: Floats) -> Floats:
    """IoU (n,) of each mask (n, h, w) thresholded at +1 with itself thresholded at -1; 0 for a mask without a pixel."""
    inner = np.count_nonzero(logits > _OFFSET, axis=(1, 2))
    outer = np.count_nonzero(logits > -_OFFSET, axis=(1, 2))
    ratio: Floats = (inner / np.maximum(outer, 1)).astype(np.float32)
    return ratio


def fused_iou(logits: Floats, calibration: Mapping[str, npt.NDArray[np.float32]]) -> Floats:
    """Predicted IoU (n,) in 0..1 of fused masks, low-resolution logits (n, h, w) without padding.

    `calibration` holds the adapters' `iou.*` tensors; without them a mask's stability stands for its IoU.
    """
    if calibration:
        raise CheckpointError(f"no calibration of the predicted IoU is known with iou.{min(calibration)}")
    return stability(logits)
