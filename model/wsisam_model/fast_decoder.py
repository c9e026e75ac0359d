"""The dual decoder as it is served: METHOD.md section 6, rewrites (a) to (e), equal to `network` in exact arithmetic.

Three steps, so that another engine can take the middle one: `decoder_batch.collate` makes tensors of requests,
`FastDecoder.forward` turns tensors into tensors, `decoder_batch.scatter` gives each request its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.input_tokens import InputTokens
from wsisam_model.mask_decoder import FEATURES, HF_ROW, IOU_ROW
from wsisam_model.network import WsiSam
from wsisam_model.prompt_encoder import GRID
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.short_attention import (
    image_to_token_logits,
    scaled_keys,
    scaled_queries,
    tokens_to_image,
    update_image,
)
from wsisam_model.transformer import HEADS, TwoWayBlock, join_heads, split_heads

Branch = Literal["hr", "lr"]

FUSED_ROWS = 16
"""F is made in strips of so many of the grid's rows on a CPU: no position looks at another, and a strip's 256 channels
stay in its caches. In OpenVINO a tenth faster than at once, with 60 MB less of work memory."""


class ViewTensors(NamedTuple):
    """What the transformer needs of a view; with a leading axis R, of the rows of a batch.

    The image positions K that enter layer 0, (4096, 256), with the no-mask embedding; and the image's side of that
    layer's attentions: `key` (8, 16, 4096) and `value` (8, 4096, 16) for the tokens that ask, `query` (8, 16, 4096)
    for the image that asks.
    """

    positions: Tensor
    key: Tensor
    value: Tensor
    query: Tensor


class DecoderView:
    """A view made ready for decoding, on the decoder's device; a branch's fused map F is made when first asked for.

    `view_size` is (height, width) of the view in pixels.
    """

    def __init__(self, tensors: ViewTensors, early: Tensor, view_size: tuple[int, int]) -> None:
        self.tensors = tensors
        self.early = early
        self.view_size = view_size
        self.fused: dict[Adapter, Tensor] = {}
        """F (32, 65536) of this view under each adapter that was asked."""
        self.own: str | None = None
        """Which of one's own adapters know this tissue (`Predictor`), None for those that are for all of it."""

    @property
    def nbytes(self) -> int:
        """Bytes held now; grows when an F is made."""
        return sum(tensor.nbytes for tensor in (*self.tensors, self.early, *self.fused.values()))


@dataclass(frozen=True, slots=True)
class Layout:
    """How many rows of a batch are what, in the order they come in.

    First the HR rows: `frozen` without adapters, `adapted` with. Then the LR rows of the first of those adapted:
    `lr_masks` whose mask is wanted, `lr_sam` whose SAM logits are, `lr_tokens` that only give their token.
    `masks` is how many SAM masks a row yields: 1, or 4 if any request wants several.
    """

    frozen: int
    adapted: int
    lr_masks: int
    lr_sam: int
    lr_tokens: int
    masks: int

    @property
    def mask_rows(self) -> int:
        """Rows, from the first, whose SAM masks are formed."""
        return self.frozen + self.adapted + self.lr_masks + self.lr_sam


class DecoderInputs(NamedTuple):
    """The tensors of a batch of R rows, in the order of its `Layout`."""

    tokens: Tensor
    """Input tokens (R, T, 256), padded to the longest row with anything finite."""
    key_mask: Tensor
    """(R, T), false where a row has no token."""
    views: Sequence[ViewTensors] | ViewTensors
    """Each row's view, for engines that read them where they lie; or all of them, with the leading axis R."""
    dense: Tensor | None
    """(R, 4096, 256): what a row's mask prompt adds beyond the no-mask embedding; None if no row has one."""
    fused_hr: Sequence[Tensor] | Tensor
    """F (32, 65536) of each adapted HR row, one by one or with a leading axis."""
    fused_lr: Sequence[Tensor] | Tensor
    """F of each LR row whose mask is wanted."""

    def to(self, dtype: torch.dtype) -> DecoderInputs:
        """With views and F that come one by one in `dtype`, whatever an engine keeps them in; those with a leading axis
        are as they were. A view of several rows stays one.
        """
        if isinstance(self.views, ViewTensors):
            return self
        exact = {id(view): ViewTensors(*(tensor.to(dtype) for tensor in view)) for view in self.views}
        return self._replace(
            views=[exact[id(view)] for view in self.views],
            fused_hr=[fused.to(dtype) for fused in self.fused_hr],
            fused_lr=[fused.to(dtype) for fused in self.fused_lr],
        )


class DecoderOutput(NamedTuple):
    """Low-resolution logits of a batch, rows in the order of its `Layout`."""

    token_logits: Tensor
    """<t, G_H> (adapted, 256, 256): the adapters' part, to which SAM's mask is added."""
    sam_masks: Tensor
    """Z_i (mask_rows, masks, 256, 256)."""
    iou: Tensor
    """SAM's estimates for its masks (mask_rows, 4)."""
    lr_token_logits: Tensor
    """<t, G_L> (lr_masks, 256, 256)."""
    tokens: Tensor
    """The fused tokens t (adapted, 32)."""


class FastDecoder(nn.Module):
    """Decodes any mixture of rows in one pass. Shares the parameters of `network` and `adapters`; trainable through."""

    def __init__(self, network: WsiSam, adapters: Adapters | None) -> None:
        super().__init__()
        self.network = network
        self.adapters = adapters
        with torch.no_grad():
            position = network.prompt_encoder.pe_layer.grid().flatten(1).T.contiguous()
        self.register_buffer("position", position, persistent=False)
        self.position: Tensor

    @cached_property
    def input_tokens(self) -> InputTokens:
        """What makes its input tokens; of the weights as they are when first asked for."""
        return InputTokens(self.network, self.adapters)

    def adapter(self, branch: Branch) -> Adapter:
        """The adapter of a branch; there are adapters."""
        assert self.adapters is not None
        return self.adapters.hr if branch == "hr" else self.adapters.lr

    def decoding_modules(self) -> list[nn.Module]:
        """What `prepare` and `forward` multiply with; a view's F is made with others."""
        modules: list[nn.Module] = [self.network.mask_decoder]
        for adapter in () if self.adapters is None else (self.adapters.hr, self.adapters.lr):
            modules += (adapter.hf_mlp, adapter.embedding_maskfeature)
        return modules

    def prepare(
        self, embedding: Tensor, early: Tensor, view_size: tuple[int, int], dtype: torch.dtype | None = None
    ) -> DecoderView:
        """Make a view of E (256, 64, 64) and X (C, 64, 64) ready: layer 0's projections (6a), as `dtype` or that of E.

        Fresh memory costs more than the arithmetic here, half a millisecond a megabyte, so nothing is copied twice.
        """
        first = self._block(0)
        K = torch.empty_like(self.position, dtype=dtype or embedding.dtype).copy_(embedding.flatten(1).T)
        K += self.network.prompt_encoder.no_mask_embed.weight.to(K)
        positioned = self.position.to(K, copy=True)
        positioned += K
        asked, asking = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        key, query = _transposed_heads(asked.k_proj, positioned), _transposed_heads(asking.q_proj, positioned)
        value = _heads(asked.v_proj(K)).contiguous()
        return DecoderView(ViewTensors(K, key, value, query), early, view_size)

    def fuse(self, view: DecoderView, branch: Branch) -> Tensor:
        """F (32, 65536) of the view under one branch's adapter."""
        positions, early = view.tensors.positions.to(self.position), view.early.to(self.position)
        rows = GRID if positions.is_cuda else FUSED_ROWS
        strips = zip(torch.split(positions, rows * GRID), torch.split(early, rows, dim=1), strict=True)
        return torch.cat([self.fuse_rows(branch, *strip) for strip in strips], dim=1).flatten(1)

    def fuse_rows(self, branch: Branch, positions: Tensor, early: Tensor) -> Tensor:
        """F (32, 4 r, 256) of r of the grid's rows: of `ViewTensors.positions` (64 r, 256) and X (C, r, 64)."""
        adapter = self.adapter(branch)
        E = positions - self.network.prompt_encoder.no_mask_embed.weight
        cells = _upscale(adapter.embedding_encoder, E[None])
        cells = cells + _upscale(adapter.compress_vit_feat, early.flatten(1).T[None])
        return _to_grid(cells)[0].permute(2, 0, 1)

    def forward(self, layout: Layout, inputs: DecoderInputs) -> DecoderOutput:
        """Decode the rows of a batch."""
        tokens, key_mask, views, dense, fused_hr, fused_lr = inputs
        Q, K = self.two_layers(tokens, key_mask, _stack(views), dense)
        read, hf = self._last_look(layout, Q, tokens, K)
        decoder = self.network.mask_decoder
        iou = decoder.predicted_iou(read[:, IOU_ROW])
        upscaled = decoder.output_upscaling[4](_upscale(decoder.output_upscaling, K[: layout.mask_rows]))
        weights = decoder.mask_weights(read[:, 1 : 1 + layout.masks], range(layout.masks))
        sam_masks = _to_grid(upscaled @ weights.transpose(1, 2)).permute(0, 3, 1, 2)
        if self.adapters is None:
            empty = sam_masks.new_zeros(0, MASK_SIDE, MASK_SIDE)
            return DecoderOutput(empty, sam_masks, iou, empty, sam_masks.new_zeros(0, FEATURES))
        t = self._fused_tokens(layout, hf)
        hr_end = layout.frozen + layout.adapted
        u_hr, u_lr = upscaled[layout.frozen : hr_end], upscaled[hr_end : hr_end + layout.lr_masks]
        token_logits = _token_logits(self.adapters.hr, t, u_hr, fused_hr)
        lr_token_logits = _token_logits(self.adapters.lr, t[: layout.lr_masks], u_lr, fused_lr)
        return DecoderOutput(token_logits, sam_masks, iou, lr_token_logits, t)

    def _block(self, index: int) -> TwoWayBlock:
        block = self.network.mask_decoder.transformer.layers[index]
        assert isinstance(block, TwoWayBlock)
        return block

    def two_layers(
        self, Q0: Tensor, key_mask: Tensor | None, views: ViewTensors, dense: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens and image positions after both layers, of the rows' input tokens `Q0` (R, T, 256).

        Four attentions have tokens as keys and need `key_mask` (R, T) (6d), unless no row is padded.
        """
        first, second = self._block(0), self._block(1)
        self_mask = None if key_mask is None else key_mask[:, None, None, :]
        K, key, value, query = _with_dense(first, views, dense)

        Q = first.self_attend(Q0, Q0, self_mask)
        weights = (scaled_queries(first.cross_attn_token_to_image, Q + Q0) @ key).softmax(dim=-1)
        Q = first.norm2(Q + first.cross_attn_token_to_image.out_proj(join_heads(weights @ value)))
        Q = first.norm3(Q + first.mlp(Q))
        asking = first.cross_attn_image_to_token
        logits = scaled_keys(asking, Q + Q0) @ query
        K = first.norm4(update_image(asking, K, logits, Q, key_mask))

        Q = second.self_attend(Q, Q0, self_mask)
        positioned = K + self.position
        Q = second.norm2(Q + tokens_to_image(second.cross_attn_token_to_image, Q + Q0, positioned, K))
        Q = second.norm3(Q + second.mlp(Q))
        asking = second.cross_attn_image_to_token
        logits = image_to_token_logits(asking, positioned, Q + Q0)
        return Q, second.norm4(update_image(asking, K, logits, Q, key_mask))

    def _last_look(self, layout: Layout, Q: Tensor, Q0: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        """The final attention for the tokens that are read: IoU, masks and HF of the mask rows, HF of the others.

        Returns the mask rows' tokens (mask_rows, 2 + masks, 256) and every row's HF token (R, 256).
        """
        count = layout.mask_rows

        def rows(tokens: Tensor) -> Tensor:
            # Slices, since a list of rows would be copied to the device, which a CUDA graph cannot capture.
            return torch.cat((tokens[:count, : 1 + layout.masks], tokens[:count, HF_ROW : HF_ROW + 1]), dim=1)

        read = self.final(rows(Q), rows(Q0), K[:count])
        rest = self.final(Q[count:, HF_ROW : HF_ROW + 1], Q0[count:, HF_ROW : HF_ROW + 1], K[count:])
        return read, torch.cat((read[:, -1], rest[:, 0]))

    def final(self, Q: Tensor, Q0: Tensor, K: Tensor) -> Tensor:
        """The final attention of some of the tokens, each of which could be asked alone."""
        transformer = self.network.mask_decoder.transformer
        attended = tokens_to_image(transformer.final_attn_token_to_image, Q + Q0, K + self.position, K)
        normed: Tensor = transformer.norm_final_attn(Q + attended)
        return normed

    def _fused_tokens(self, layout: Layout, hf: Tensor) -> Tensor:
        """t (adapted, 32): the HR rows' updated tokens, plus those of their LR rows where they have one."""
        assert self.adapters is not None
        hr_end = layout.frozen + layout.adapted
        t_hr = self.adapters.hr.token(hf[layout.frozen : hr_end])
        t_lr = self.adapters.lr.token(hf[hr_end:])
        return torch.cat((t_hr[: len(t_lr)] + t_lr, t_hr[len(t_lr) :]))


def _stack(views: Sequence[ViewTensors] | ViewTensors) -> ViewTensors:
    """With a leading axis R; not copied where all rows have one view."""
    if isinstance(views, ViewTensors):
        return views
    first = views[0]
    if all(view is first for view in views):
        return ViewTensors(*(tensor.expand(len(views), *tensor.shape) for tensor in first))
    return ViewTensors(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def _heads(x: Tensor) -> Tensor:
    """(4096, 128) -> (8, 4096, 16)."""
    return split_heads(x[None])[0]


def _transposed_heads(projection: nn.Linear, x: Tensor) -> Tensor:
    """A projection of (4096, 256) as (8, 16, 4096), which is how it is read."""
    return torch.addmm(projection.bias[:, None], projection.weight, x.T).view(HEADS, -1, len(x))


def _with_dense(first: TwoWayBlock, views: ViewTensors, dense: Tensor | None) -> ViewTensors:
    """The rows' views with their mask prompts added; layer 0 is linear in them."""
    if dense is None:
        return views
    asked, asking = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    return ViewTensors(
        views.positions + dense,
        views.key + split_heads(F.linear(dense, asked.k_proj.weight)).transpose(2, 3),
        views.value + split_heads(F.linear(dense, asked.v_proj.weight)),
        views.query + split_heads(F.linear(dense, asking.q_proj.weight)).transpose(2, 3),
    )


def _upscale(upscaling: nn.Sequential, x: Tensor) -> Tensor:
    """Positions (R, n, in) through the first four layers of an upscaling: (R, 16 n, 32), in the order of `_to_grid`.

    Transposed 2x2 convolutions of stride 2 do not overlap: each is a product of every position with its four cells.
    """
    expand, norm, activate, expand_again = list(upscaling)[:4]
    assert isinstance(expand, nn.ConvTranspose2d)
    assert isinstance(expand_again, nn.ConvTranspose2d)
    assert isinstance(norm, nn.LayerNorm)
    return _expand_cells(expand_again, activate(_normed(norm, _expand_cells(expand, x))))


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """In the format of `x`: autocast would cast maps of megabytes to float32 and back."""
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x), norm.bias.to(x), norm.eps)


def _expand_cells(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """(R, n, in) -> (R, 4n, out): each position's cells (0,0), (0,1), (1,0), (1,1) one after the other."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    assert convolution.bias is not None
    cells: Tensor = x @ weight + convolution.bias.repeat(4)
    return cells.reshape(len(x), 4 * x.shape[1], -1)


def _to_grid(x: Tensor) -> Tensor:
    """r of the grid's rows (R, 1024 r, C), ordered by position, cell and cell's cell, to (R, 4 r, 256, C)."""
    cells = x.reshape(len(x), -1, GRID, 2, 2, 2, 2, x.shape[-1])
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(len(x), -1, MASK_SIDE, x.shape[-1])


def _token_logits(adapter: Adapter, t: Tensor, upscaled: Tensor, fused: Sequence[Tensor] | Tensor) -> Tensor:
    """<t, G> (R, 256, 256) without forming G: the last convolution is collapsed with the token (6b)."""
    if not len(t):
        return t.new_zeros(0, MASK_SIDE, MASK_SIDE)
    first, norm, activate, last = adapter.embedding_maskfeature
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    features = first(_to_grid(upscaled).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    features = activate(_normed(norm, features))
    kernels = torch.einsum("rk,kcyx->ryxc", t, last.weight).flatten(1, 2)
    taps = (kernels @ features.flatten(1, 2).transpose(1, 2)).reshape(len(t), 3, 3, MASK_SIDE, MASK_SIDE)
    if isinstance(fused, Tensor):
        image = t.unsqueeze(1) @ fused
    else:
        image = torch.stack([token @ F_view for token, F_view in zip(t, fused, strict=True)])
    return image.reshape(-1, MASK_SIDE, MASK_SIDE) + add_taps(taps) + (t @ last.bias)[:, None, None]


def add_taps(taps: Tensor) -> Tensor:
    """A 3x3 convolution's nine products (R, 3, 3, H, W), each at its own pixel, summed where they belong: (R, H, W)."""
    height, width = taps.shape[-2:]
    padded = F.pad(taps, (1, 1, 1, 1))
    shifted = [padded[:, y, x, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted).sum(dim=0)
