"""Layers that the image encoders and the mask decoder share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Normalises each pixel of a map (B, C, H, W) over its channels, with one weight and bias per channel.

    Biased variance and eps 1e-6: 1e-5, torch's default, moves the logits by 0.01 (METHOD.md section 8).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1)
        return F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
