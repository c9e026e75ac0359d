"""The predicted IoU of fused masks, learned from answers whose truth is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.evaluate.metrics import iou
from wsisam_model.evaluate.scores import HR, Answers
from wsisam_model.quality import CLICKS, GIVEN, LONE, NUMBERS, Floats, asked_as, mask_numbers
from wsisam_model.train.samples import Case

RIDGE = 1e-2
"""Penalty by answer, on numbers scaled to unit variance."""
OBJECTS = 60
"""Objects of a set that are asked about. Few say little: after 20 of one slide the error elsewhere is up to 1.8 times
as large."""
EXTREME = 0.03
"""IoUs are taken for this at least and one less this at most, where their logits would be infinite."""


def calibrate(answers: Answers, cases: Iterable[Case]) -> dict[str, Tensor]:
    """The tensors `iou.*` for the adapters of `answers`, from what they answer to `cases`, of which every kind of
    prompt is one or more. The LR view is left out.
    """
    kinds, numbers, ious = [], [], []
    for case in cases:
        asked, decoded, mask = answers.answer(case, HR)
        kind, per_click = asked_as(case.prompt)
        kinds.append(kind)
        numbers.append((*mask_numbers(decoded.logits[:1])[0], per_click))
        ious.append(iou(mask, asked.sample.mask))
    return fit_calibration(np.array(numbers, np.float32), kinds, ious)


def fit_calibration(numbers: Floats, kinds: Sequence[int], ious: Sequence[float]) -> dict[str, Tensor]:
    """For each of `kinds` (see `quality`) a ridge regression of the logits of true IoUs on `quality.mask_numbers` and
    1 / clicks, (n, 9) together: the adapters' tensors `weight` (3, 9) and `bias` (3,).
    """
    share = np.clip(np.asarray(ious, np.float64), EXTREME, 1 - EXTREME)
    logits = np.log(share / (1 - share))
    weight, bias = np.zeros((3, NUMBERS + 1)), np.zeros(3)
    for kind in (GIVEN, LONE, CLICKS):
        rows = np.asarray(kinds) == kind
        weight[kind], bias[kind] = _ridge(numbers[rows].astype(np.float64), logits[rows])
    return {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}


def _ridge(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Weights (k,) and bias of y (n,) on x (n, k)."""
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    z = (x - mean) / scale
    penalty = RIDGE * len(z) * np.eye(z.shape[1])
    weight = np.linalg.solve(z.T @ z + penalty, z.T @ (y - y.mean())) / scale
    return weight, float(y.mean() - mean @ weight)
