"""How good a returned mask is likely to be. Torch-free.

SAM's own estimate is of its own mask and says nothing about the fused one (METHOD.md sections 4 and 9).
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.errors import CheckpointError
from wsisam_model.prompts import Prompt

Floats = npt.NDArray[np.float32]
OFFSET = 1.0
"""Logits by which a mask's threshold is moved up and down to see how stable it is."""
NUMBERS = 8
"""Columns of `mask_numbers`."""
GIVEN, LONE, CLICKS = range(3)
"""Kinds of prompt, each with a calibration of its own: a box or mask, one click, and several. A steep edge around what
a box holds says more about the mask than around what one click may have meant."""


def stability(logits: Floats, offset: float = OFFSET) -> Floats:
    """IoU (n,) of each mask (n, h, w) thresholded at `offset` with itself thresholded at minus that; 0 for a mask
    without a pixel.
    """
    return np.array([_stability(mask, offset) for mask in logits], np.float32)


def mask_numbers(logits: Floats) -> Floats:
    """What the predicted IoU is made of, (n, 8) for low-resolution logits (n, h, w): stability at 1 and at 3, expected
    IoU and mean probability inside by the logits themselves, part of the area in the largest piece, roundness, part of
    the view's border taken, and the logarithm of the area.
    """
    return np.array([_numbers(mask) for mask in logits], np.float32).reshape(-1, NUMBERS)


def fused_iou(logits: Floats, prompt: Prompt, calibration: Mapping[str, npt.NDArray[np.float32]]) -> Floats:
    """Predicted IoU (n,) in 0..1 of the fused masks that `prompt` led to, as the user said it; low-resolution logits
    (n, h, w) without padding.

    `calibration` holds the adapters' `iou.*` tensors, `weight` (3, 9) and `bias` (3,): for each kind of prompt a
    logistic model of `mask_numbers` and 1 / clicks. Without them a mask's stability stands for its IoU. 0 for a mask
    without a pixel.
    """
    if not calibration:
        return stability(logits)
    check_calibration({name: tensor.shape for name, tensor in calibration.items()})
    kind, per_click = asked_as(prompt)
    weight, bias = calibration["weight"][kind], calibration["bias"][kind]
    numbers = mask_numbers(logits)
    score = numbers @ weight[:-1] + per_click * weight[-1] + bias
    # The logistic function as a tanh, which no score overflows. Of a mask without a pixel all numbers are 0.
    estimate: Floats = np.where(numbers.any(axis=1), (1 + np.tanh(score / 2)) / 2, np.float32(0))
    return estimate


def asked_as(prompt: Prompt) -> tuple[int, float]:
    """The kind of `prompt`, a row of the calibration, and 1 / the clicks it is made of, 0 for a box."""
    if prompt.box is not None or not prompt.points:
        return GIVEN, 0.0
    lone = sum(prompt.labels) == 1 and prompt.mask_hr is None
    return LONE if lone else CLICKS, 1 / len(prompt.points)


def check_calibration(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` unless `shapes` are those of the `iou.*` tensors, or empty."""
    expected = {"weight": (3, NUMBERS + 1), "bias": (3,)}
    if shapes and {name: tuple(shape) for name, shape in shapes.items()} != expected:
        raise CheckpointError("the calibration of the predicted IoU is iou.weight (3, 9) and iou.bias (3)")


def _stability(logits: Floats, offset: float) -> float:
    inner, outer = int(np.count_nonzero(logits > offset)), int(np.count_nonzero(logits > -offset))
    return inner / max(outer, 1)


def _numbers(logits: Floats) -> tuple[float, ...]:
    """`mask_numbers` of one mask (h, w). OpenCV's sums and exponentials cost a fifth of numpy's."""
    stable = _stability(logits, OFFSET), _stability(logits, 3 * OFFSET)
    mask = (logits > 0).view(np.uint8)
    area = cv2.countNonZero(mask)
    if area == 0:
        return *stable, *(0.0,) * (NUMBERS - 2)
    probability = np.negative(logits)
    cv2.exp(probability, probability)
    probability += 1
    np.reciprocal(probability, out=probability)
    inside = cv2.norm(probability, cv2.NORM_L1, mask)
    expected = inside / (area + cv2.sumElems(probability)[0] - inside)
    x, y, width, height = cv2.boundingRect(mask)
    on_border = sum(np.count_nonzero(side) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    around = mask[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    roundness = float(np.sqrt(area) * 4 / max(1, _steps(around) + on_border))
    border = on_border / (2 * sum(mask.shape))
    _, _, _, surest = cv2.minMaxLoc(logits, mask)
    piece = mask[y : y + height, x : x + width]
    largest = _largest(piece, area, (surest[0] - x, surest[1] - y))
    return *stable, expected, inside / area, largest / area, roundness, border, float(np.log(area / mask.size))


def _steps(mask: npt.NDArray[np.uint8]) -> int:
    """Neighbours, above or beside each other, of which one is in the mask."""
    return int(np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


def _largest(mask: npt.NDArray[np.uint8], area: int, inside: tuple[int, int]) -> int:
    """Pixels of the largest piece; `inside` is (x, y) of a pixel of the mask, by whose piece this is mostly known."""
    found, *_ = cv2.floodFill(mask.copy(), None, inside, 2, flags=8)
    if 2 * found >= area:
        return found
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_16U)
    return int(stats[1:, cv2.CC_STAT_AREA].max())
