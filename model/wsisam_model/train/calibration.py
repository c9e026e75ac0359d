"""The predicted IoU of fused masks, learned from answers whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsisam_model.quality import Floats

RIDGE = 1e-3
"""Penalty by answer, on numbers scaled to unit variance."""


def fit_calibration(numbers: Floats, ious: Sequence[float]) -> dict[str, Tensor]:
    """Ridge regression of true IoUs on `quality.mask_numbers` (n, 8): the adapters' tensors `weight` and `bias`."""
    x, y = np.asarray(numbers, np.float64), np.asarray(ious, np.float64)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    z = (x - mean) / scale
    penalty = RIDGE * len(z) * np.eye(z.shape[1])
    weight = np.linalg.solve(z.T @ z + penalty, z.T @ (y - y.mean())) / scale
    bias = np.array([y.mean() - mean @ weight])
    return {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}
