"""SAM's frozen prompt encoder: points, boxes and masks to tokens and a dense map (METHOD.md section 2.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsisam_model.layers import LayerNorm2d
from wsisam_model.transformer import WIDTH

GRID = 64
"""Side of the image embedding, for every backbone."""
PADDING_KIND = 4
"""Row of `kind_table` that follows points without a box; the first row that has no place."""


class PositionalEncoding(nn.Module):
    """Random Fourier features of a place in the unit square."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))

    def forward(self, places: Tensor) -> Tensor:
        """Encode `places` (..., 2), (x, y) in 0..1, as (..., 256)."""
        angles = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def grid(self) -> Tensor:
        """The encoding P (256, 64, 64) of the centres of the image embedding's cells."""
        gamma = self.positional_encoding_gaussian_matrix
        centres = (torch.arange(GRID, device=gamma.device, dtype=gamma.dtype) + 0.5) / GRID
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        encoded: Tensor = self(torch.stack((x, y), dim=-1))
        return encoded.permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Prompts of one branch in the model frame: pixel indices of the S×S input, padding included.

    `image_size` is S. Weights are the checkpoint's `prompt_encoder.*`.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.pe_layer = PositionalEncoding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, WIDTH) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, WIDTH, 1),
        )
        self.no_mask_embed = nn.Embedding(1, WIDTH)

    def kind_table(self) -> Tensor:
        """The learned vectors (5, 256): background point, object point, first and second box corner, padding."""
        embeddings = [self.point_embeddings.get_parameter(f"{kind}.weight") for kind in range(4)]
        return torch.cat([*embeddings, self.not_a_point_embed.weight])

    def sparse(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, kinds: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, N, 256) of `points` (B, n, 2) with `labels` (B, n) of 1 and 0, and `boxes` (B, 4) as x0 y0 x1 y1.

        Points without a box are followed by one padding token, which is a real token that later layers attend to.
        N is n + 1, 2, n + 2, or 0 for a mask alone (then B is 1 and broadcasts). `kinds` replaces `kind_table()`.
        """
        kinds = self.kind_table() if kinds is None else kinds
        tokens = []
        if points is not None and labels is not None:
            tokens.append(self._encode(points) + kinds[labels.long()])
            if boxes is None:
                tokens.append(kinds[PADDING_KIND].expand(len(points), 1, WIDTH))
        if boxes is not None:
            tokens.append(self._encode(boxes.reshape(-1, 2, 2)) + kinds[2:4])
        return torch.cat(tokens, dim=1) if tokens else kinds.new_zeros(1, 0, WIDTH)

    def positions(self, places: Tensor, kinds: Tensor) -> Tensor:
        """The encoding (B, N, 256) of `places` (B, N, 2); zero where the kind, a row of `kind_table`, has no place."""
        return self._encode(places) * (kinds < PADDING_KIND).unsqueeze(-1)

    def dense(self, mask: Tensor | None) -> Tensor:
        """The map D (B, 256, 64, 64) of mask logits (B, 1, 256, 256); (1, 256, 1, 1), to broadcast, without a mask."""
        if mask is None:
            return self.no_mask_embed.weight.reshape(1, WIDTH, 1, 1)
        downscaled: Tensor = self.mask_downscaling(mask)
        return downscaled

    def _encode(self, coordinates: Tensor) -> Tensor:
        places: Tensor = self.pe_layer((coordinates + 0.5) / self.image_size)
        return places
