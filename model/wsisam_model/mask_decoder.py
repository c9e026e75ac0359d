"""SAM's frozen mask decoder: its own tokens, upscaling, hypernetworks and IoU head (METHOD.md sections 2.3 and 2.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsisam_model.layers import LayerNorm2d
from wsisam_model.prompt_encoder import GRID
from wsisam_model.transformer import WIDTH, TwoWayTransformer

IOU_ROW = 0
MASK_ROWS = slice(1, 5)
HF_ROW = 5
"""Rows of the tokens: IoU, four masks, then the adapter's token where there is one, then the prompt."""
MASKS = 4
FEATURES = 32
"""Channels of the upscaled features u, of G and of the updated tokens."""


class ThreeLayerMlp(nn.Module):
    """Three linear layers with ReLU between and nothing at the end, no sigmoid either."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, width) for width in (WIDTH, WIDTH, out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., 256) -> (..., out)."""
        for layer in list(self.layers)[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class MaskDecoder(nn.Module):
    """Weights are the checkpoint's `mask_decoder.*`."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, WIDTH)
        self.mask_tokens = nn.Embedding(MASKS, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, 64, 2, stride=2),
            LayerNorm2d(64),
            nn.GELU(),
            nn.ConvTranspose2d(64, FEATURES, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(ThreeLayerMlp(FEATURES) for _ in range(MASKS))
        self.iou_prediction_head = ThreeLayerMlp(MASKS)

    def tokens(self, sparse: Tensor, hf_token: Tensor | None) -> Tensor:
        """The transformer's input (B, 5 or 6 + N, 256): own tokens, `hf_token` (1, 256), `sparse` (B, N, 256)."""
        own = [self.iou_token.weight, self.mask_tokens.weight]
        if hf_token is not None:
            own.append(hf_token)
        return torch.cat((torch.cat(own).expand(len(sparse), -1, -1), sparse), dim=1)

    def upscale(self, K: Tensor) -> Tensor:
        """u (B, 32, 256, 256) of the transformer's image positions (B, 4096, 256)."""
        u: Tensor = self.output_upscaling(K.transpose(1, 2).reshape(len(K), WIDTH, GRID, GRID))
        return u

    def mask_weights(self, Q: Tensor, masks: range = range(MASKS)) -> Tensor:
        """Hypernetwork outputs w (B, len(masks), 32) of the mask tokens `Q` (B, len(masks), 256)."""
        outputs = [self.output_hypernetworks_mlps[mask](Q[:, row]) for row, mask in enumerate(masks)]
        return torch.stack(outputs, dim=1)

    def predicted_iou(self, Q: Tensor) -> Tensor:
        """SAM's estimate (B, 4) of its own four masks' IoU, from the IoU token `Q` (B, 256)."""
        iou: Tensor = self.iou_prediction_head(Q)
        return iou
