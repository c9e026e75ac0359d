"""What a mask's logits cost against the truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 − (2Σpg + 1) / (Σp + Σg + 1) with p = sigmoid(logits), (n,) of (n, H, W) each; `truth` in 0..1 (METHOD.md
    section 5).
    """
    p = torch.sigmoid(logits)
    both = (p * truth).sum(dim=(1, 2))
    return 1 - (2 * both + 1) / (p.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 1)


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels, plus Dice loss: (n,) of (n, H, W) each."""
    pixels = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return pixels.mean(dim=(1, 2)) + dice_loss(logits, truth)
