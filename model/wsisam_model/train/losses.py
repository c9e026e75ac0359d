"""What a mask's logits cost against the truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 − (2Σpg + 1) / (Σp + Σg + 1) with p = sigmoid(logits); both (H, W), `truth` in 0..1 (METHOD.md section 5)."""
    p = torch.sigmoid(logits)
    return 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels, plus Dice loss."""
    return F.binary_cross_entropy_with_logits(logits, truth) + dice_loss(logits, truth)
