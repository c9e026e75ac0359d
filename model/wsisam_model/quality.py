"""How good a returned mask is likely to be. Torch-free.

SAM's own estimate is of its own mask and says nothing about the fused one (METHOD.md sections 4 and 9).
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.errors import CheckpointError

Floats = npt.NDArray[np.float32]
_OFFSET = 1.0
NUMBERS = 8
"""Columns of `mask_numbers`."""


def stability(logits: Floats, offset: float = _OFFSET) -> Floats:
    """IoU (n,) of each mask (n, h, w) thresholded at `offset` with itself thresholded at minus that; 0 for a mask
    without a pixel.
    """
    inner = np.count_nonzero(logits > offset, axis=(1, 2))
    outer = np.count_nonzero(logits > -offset, axis=(1, 2))
    ratio: Floats = (inner / np.maximum(outer, 1)).astype(np.float32)
    return ratio


def confidence(logits: Floats) -> float:
    """Mean probability inside a mask (h, w) by its own logits; 0 for a mask without a pixel."""
    inside = logits[logits > 0]
    return float((1 / (1 + np.exp(-inside))).mean()) if inside.size else 0.0


def mask_numbers(logits: Floats) -> Floats:
    """What the predicted IoU is made of, (n, 8) for low-resolution logits (n, h, w): stability at 1 and at 3, expected
    IoU and mean probability inside by the logits themselves, part of the area in the largest piece, roundness, part of
    the view's border taken, and the logarithm of the area.
    """
    rows = [_numbers(mask) for mask in logits]
    inner = np.stack((stability(logits), stability(logits, 3 * _OFFSET)), axis=1)
    numbers: Floats = np.concatenate((inner, np.array(rows, np.float32).reshape(-1, NUMBERS - 2)), axis=1)
    return numbers


def fused_iou(logits: Floats, calibration: Mapping[str, npt.NDArray[np.float32]]) -> Floats:
    """Predicted IoU (n,) in 0..1 of fused masks, low-resolution logits (n, h, w) without padding.

    `calibration` holds the adapters' `iou.*` tensors: `weight` (8,) of `mask_numbers`, `bias` (1,), and `lone` (1,) for
    `lone_iou`. Without them a mask's stability stands for its IoU.
    """
    if not calibration:
        return stability(logits)
    check_calibration({name: tensor.shape for name, tensor in calibration.items()})
    estimate: Floats = mask_numbers(logits) @ calibration["weight"] + calibration["bias"]
    return np.clip(estimate, 0, 1)


def lone_iou(predicted: Floats, calibration: Mapping[str, npt.NDArray[np.float32]]) -> Floats:
    """What `fused_iou` predicted (n,) for masks that one click led to: which size was meant, no mask says."""
    return np.clip(predicted + calibration["lone"], 0, 1) if calibration else predicted


def check_calibration(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` unless `shapes` are those of the `iou.*` tensors, or empty."""
    expected = {"weight": (NUMBERS,), "bias": (1,), "lone": (1,)}
    if shapes and {name: tuple(shape) for name, shape in shapes.items()} != expected:
        raise CheckpointError("the calibration of the predicted IoU is iou.weight (8), iou.bias (1) and iou.lone (1)")


def _numbers(logits: Floats) -> tuple[float, ...]:
    """All but the stabilities, of one mask (h, w)."""
    mask = logits > 0
    area = int(mask.sum())
    if area == 0:
        return (0.0,) * (NUMBERS - 2)
    probability = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    inside = float(probability[mask].sum())
    expected = inside / (area + float(probability.sum()) - inside)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = int(stats[1:, cv2.CC_STAT_AREA].max())
    steps = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    on_border = int(mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum())
    roundness = float(np.sqrt(area) * 4 / max(1, steps + on_border))
    border = on_border / (2 * sum(mask.shape))
    return expected, inside / area, largest / area, roundness, border, float(np.log(area / mask.size))
