"""SAM's frozen two-way transformer: prompt tokens and image positions attend to each other (METHOD.md section 2.3).

Tokens Q are (B, T, 256), image positions K (B, 4096, 256), row-major over the 64×64 grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 8
WIDTH = 256
"""Channels of tokens, image embedding and dense prompt."""
CROSS_WIDTH = 128
"""Inner width of the attentions between tokens and image."""
MLP_WIDTH = 2048


class Attention(nn.Module):
    """Multi-head attention with an inner width that may be smaller than the tokens'."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, inner)
        self.k_proj = nn.Linear(WIDTH, inner)
        self.v_proj = nn.Linear(WIDTH, inner)
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attend from `q` (B, Tq, 256) to `k`, `v` (B, Tk, 256). `key_mask` (B, 1, 1, Tk) is false where no key is."""
        heads = (split_heads(self.q_proj(q)), split_heads(self.k_proj(k)), split_heads(self.v_proj(v)))
        attended = F.scaled_dot_product_attention(*heads, attn_mask=key_mask)
        joined: Tensor = self.out_proj(join_heads(attended))
        return joined


def split_heads(x: Tensor) -> Tensor:
    """(B, T, inner) -> (B, 8, T, inner / 8)."""
    return x.reshape(*x.shape[:2], HEADS, x.shape[-1] // HEADS).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, 8, T, head) -> (B, T, 8 · head)."""
    return x.transpose(1, 2).flatten(2)


class TokenMlp(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, MLP_WIDTH)
        self.lin2 = nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image; the image attends to the tokens."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross_attn_token_to_image = Attention(CROSS_WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = TokenMlp()
        self.norm3 = nn.LayerNorm(WIDTH)
        self.norm4 = nn.LayerNorm(WIDTH)
        self.cross_attn_image_to_token = Attention(CROSS_WIDTH)

    def forward(self, Q: Tensor, Q0: Tensor, K: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        """`Q0` are the input tokens, which serve as the tokens' positions; `P` the image's. Returns Q and K."""
        Q = self.self_attend(Q, Q0, None)
        Q = self.norm2(Q + self.cross_attn_token_to_image(Q + Q0, K + P, K))
        Q = self.norm3(Q + self.mlp(Q))
        K = self.norm4(K + self.cross_attn_image_to_token(K + P, Q + Q0, Q))
        return Q, K

    def self_attend(self, Q: Tensor, Q0: Tensor, key_mask: Tensor | None) -> Tensor:
        """The first step. The first block has neither a position nor a residual here."""
        if self.first:
            attended: Tensor = self.norm1(self.self_attn(Q, Q, Q, key_mask))
        else:
            attended = self.norm1(Q + self.self_attn(Q + Q0, Q + Q0, Q, key_mask))
        return attended


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first=index == 0) for index in range(2))
        self.final_attn_token_to_image = Attention(CROSS_WIDTH)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(self, Q0: Tensor, K: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output tokens Q (B, T, 256) and image positions K (B, 4096, 256)."""
        Q = Q0
        for block in self.layers:
            Q, K = block(Q, Q0, K, P)
        Q = self.norm_final_attn(Q + self.final_attn_token_to_image(Q + Q0, K + P, K))
        return Q, K
