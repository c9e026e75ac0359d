"""The dual decoder as training needs it: differentiable, ragged prompts in one batch, masks in a window only.

The same numbers as `network.WsiSam.dual_decode` (a test compares them), cheaper where only a part of the mask carries
a loss: the transposed convolutions of the upscaling do not overlap, so a window of image positions can be upscaled
alone, and the 3×3 convolutions see one pixel of margin more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.config import ModelConfig
from wsisam_model.embedding import Embedding
from wsisam_model.fast_decoder import add_taps
from wsisam_model.mask_decoder import HF_ROW, MASK_ROWS
from wsisam_model.network import WsiSam
from wsisam_model.prompt_encoder import GRID
from wsisam_model.prompt_tensors import FILLER_KIND, pad_prompts, prompt_numbers
from wsisam_model.prompts import Prompt
from wsisam_model.short_attention import image_to_token_logits, tokens_to_image, update_image
from wsisam_model.transformer import WIDTH, TwoWayBlock, TwoWayTransformer

CELL = 4
"""Low-resolution mask pixels to one cell of the image embedding, along each axis."""


@dataclass(frozen=True, slots=True)
class Window:
    """A square part of the view in cells of the 64×64 grid: its upper left corner and side."""

    row: int
    column: int
    side: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """The window in the 256×256 mask."""
        y, x, side = self.row * CELL, self.column * CELL, self.side * CELL
        return slice(y, y + side), slice(x, x + side)


WHOLE = Window(0, 0, GRID)


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt, as the network is to see it, on one pair of views, HR view pixels. `window` is the wanted part of the
    HR mask.
    """

    hr: Embedding
    lr: Embedding | None
    prompt: Prompt
    window: Window = WHOLE
    hr_token_weight: float = 1.0
    """0 leaves t_H out of the sum, so that the LR token has to carry the answer."""
    lr_token_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Logits of one query inside its window, (side·4, side·4): the mask, and SAM's part of it."""

    logits: Tensor
    sam: Tensor


class TrainingDecoder(nn.Module):
    """A frozen base and the adapters being trained."""

    position: Tensor

    def __init__(self, base: WsiSam, adapters: Adapters, config: ModelConfig) -> None:
        super().__init__()
        self.base, self.adapters, self.config = base, adapters, config
        position = base.prompt_encoder.pe_layer.grid().flatten(1).transpose(0, 1)
        self.register_buffer("position", position, persistent=False)

    def forward(self, queries: Sequence[Query]) -> list[Answer]:
        """Decode `queries`; prompts may be of different kinds and on different views."""
        Q, K = self._transform(queries, self.adapters.hr, lr=False)
        t = self.adapters.hr.token(Q[:, HF_ROW])
        t = t * t.new_tensor([query.hr_token_weight for query in queries])[:, None]
        with_lr = [row for row, query in enumerate(queries) if query.lr is not None and query.lr_token_weight]
        if with_lr:
            wide = [queries[row] for row in with_lr]
            Q_lr, _ = self._transform(wide, self.adapters.lr, lr=True)
            weights = t.new_tensor([query.lr_token_weight for query in wide])[:, None]
            t = t.index_add(
                0, torch.tensor(with_lr, device=t.device), self.adapters.lr.token(Q_lr[:, HF_ROW]) * weights
            )
        sam_weights = self.base.mask_decoder.mask_weights(Q[:, MASK_ROWS], range(1))[:, 0]
        answers: dict[int, Answer] = {}
        for window, rows in _grouped(query.window for query in queries).items():
            views = [queries[row].hr for row in rows]
            pairs = self._masks(K[rows], self._fused(views, window), t[rows], sam_weights[rows], window)
            answers |= {row: Answer(*pair) for row, pair in zip(rows, zip(*pairs, strict=True), strict=True)}
        return [answers[row] for row in range(len(queries))]

    def _transform(self, queries: Sequence[Query], adapter: Adapter, *, lr: bool) -> tuple[Tensor, Tensor]:
        """Output tokens (B, T, 256) and image positions (B, 4096, 256) of one branch, rows padded to the longest."""
        decoder, encoder = self.base.mask_decoder, self.base.prompt_encoder
        frozen = encoder.kind_table()
        table = torch.cat((self.adapters.prompt.kind_table(frozen), frozen.new_zeros(1, WIDTH)))
        size = (self.config.image_size, self.config.image_size)
        coordinates, kinds = pad_prompts([prompt_numbers(query.prompt, size, self.config, lr=lr) for query in queries])
        kind = torch.as_tensor(kinds, device=self.position.device)
        sparse = encoder.positions(torch.as_tensor(coordinates).to(self.position), kind) + table[kind]
        Q0 = decoder.tokens(sparse, adapter.hf_token.weight)
        own = Q0.shape[1] - sparse.shape[1]
        real = torch.cat((kind.new_ones(len(kind), own).bool(), kind != FILLER_KIND), dim=1)
        return _two_way(decoder.transformer, Q0, self._images(queries, lr=lr), self.position, real)

    def _images(self, queries: Sequence[Query], *, lr: bool) -> Tensor:
        """Image positions (B, 4096, 256) with the dense prompts."""
        encoder = self.base.prompt_encoder
        views = [query.lr if lr else query.hr for query in queries]
        images = torch.stack([view.embedding for view in views if view is not None]).to(self.position)
        images += encoder.dense(None)
        for row, query in enumerate(queries):
            mask = query.prompt.mask_lr if lr else query.prompt.mask_hr
            if mask is not None:
                dense = encoder.dense(torch.as_tensor(mask)[None, None].to(self.position))
                images[row] += (dense - encoder.dense(None))[0]
        return images.flatten(2).transpose(1, 2)

    def _fused(self, views: Sequence[Embedding], window: Window) -> Tensor:
        """F inside the window, (n, 32, h, w), made once for each different view."""
        cells = _cells(window)
        different = {id(view): view for view in views}
        parts = zip(*((view.embedding[:, *cells], view.early[:, *cells]) for view in different.values()), strict=True)
        fused = self.adapters.hr.fuse(*(torch.stack(part).to(self.position) for part in parts))
        place = {key: row for row, key in enumerate(different)}
        return fused[[place[id(view)] for view in views]]

    def _masks(self, K: Tensor, fused: Tensor, t: Tensor, sam_weights: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Both logits (n, side·4, side·4) of one window's rows; K (n, 4096, 256), `t` and `sam_weights` (n, 32)."""
        top, left, bottom, right = _margin(window)
        image = K.transpose(1, 2).reshape(len(K), -1, GRID, GRID)[:, :, top:bottom, left:right]
        u = self.base.mask_decoder.output_upscaling(image)
        y, x = (window.row - top) * CELL, (window.column - left) * CELL
        side = window.side * CELL
        inside = (slice(None), slice(y, y + side), slice(x, x + side))
        first, norm, activate, last = self.adapters.hr.embedding_maskfeature
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        kernels = torch.einsum("nc,cihw->nhwi", t, last.weight).flatten(1, 2)
        features = activate(norm(first(u)))
        taps = (kernels @ features.flatten(2)).reshape(len(t), 3, 3, *features.shape[2:])
        own = add_taps(taps) + (t @ last.bias)[:, None, None]
        sam = torch.einsum("nc,nchw->nhw", sam_weights, u)[inside]
        return own[inside] + torch.einsum("nc,nchw->nhw", t, fused) + sam, sam


def _grouped(windows: Iterable[Window]) -> dict[Window, list[int]]:
    """The rows of each window."""
    rows: dict[Window, list[int]] = {}
    for row, window in enumerate(windows):
        rows.setdefault(window, []).append(row)
    return rows


def _two_way(transformer: TwoWayTransformer, Q0: Tensor, K: Tensor, P: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The frozen transformer on padded rows; `real` (B, T) is false where a token is padding.

    No gradient flows through the image positions K: they hear of the trained tokens only faintly, and without their
    part a step costs less than half.
    """
    Q = Q0
    for block in transformer.layers:
        assert isinstance(block, TwoWayBlock)
        Q = block.self_attend(Q, Q0, real[:, None, None])
        Q = block.norm2(Q + tokens_to_image(block.cross_attn_token_to_image, Q + Q0, K + P, K))
        Q = block.norm3(Q + block.mlp(Q))
        with torch.no_grad():
            asking = block.cross_attn_image_to_token
            logits = image_to_token_logits(asking, K + P, Q + Q0)
            K = block.norm4(update_image(asking, K, logits, Q, real))
    Q = transformer.norm_final_attn(Q + tokens_to_image(transformer.final_attn_token_to_image, Q + Q0, K + P, K))
    return Q, K


def _cells(window: Window) -> tuple[slice, slice]:
    return slice(window.row, window.row + window.side), slice(window.column, window.column + window.side)


def _margin(window: Window) -> tuple[int, int, int, int]:
    """Top, left, bottom, right cells to upscale: one cell more than the window where the view has one."""
    return (
        max(0, window.row - 1),
        max(0, window.column - 1),
        min(GRID, window.row + window.side + 1),
        min(GRID, window.column + window.side + 1),
    )
