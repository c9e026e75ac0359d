"""The decoder for one prompt as graphs of tensors, in the form that compilers run fast.

The same arithmetic as `FastDecoder` on one HR row and at most one LR row, with three differences. No row is padded, so
there is no mask. HR and LR are inputs of their own, read where they lie. What follows the transformer stays in (1, C,
H, W): OpenVINO keeps convolutions, shuffles and products over channels in one memory layout, while every transpose
costs a copy of the map (together over a third of this part's time, measured).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsisam_model.adapters import Adapter
from wsisam_model.fast_decoder import FastDecoder, ViewTensors
from wsisam_model.mask_decoder import HF_ROW, IOU_ROW, MaskDecoder
from wsisam_model.prompt_encoder import GRID
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.transformer import WIDTH


class FusedGraph(nn.Module):
    """`FastDecoder.fuse_rows` in the HR branch: F (32, 4 r, 256) of positions (64 r, 256) and X (C, r, 64)."""

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, positions: Tensor, early: Tensor) -> Tensor:
        return self.decoder.fuse_rows("hr", positions, early)


class FrozenGraph(nn.Module):
    """SAM without adapters, mask 0: input tokens (1, 5 + N, 256) without an HF token, and a view's four tensors.

    Gives the SAM mask (1, 1, 256, 256) and the four IoU estimates (1, 4). Made for fewer than 16 tokens.
    """

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, *view: Tensor) -> tuple[Tensor, Tensor]:
        Q, K = self.decoder.two_layers(tokens, None, _row(*view), None)
        rows = [IOU_ROW, 1]
        read = self.decoder.final(Q[:, rows], tokens[:, rows], K)
        mask_decoder = self.decoder.network.mask_decoder
        sam, _ = _sam_mask(mask_decoder, K, read[:, 1:2])
        return sam, mask_decoder.predicted_iou(read[:, 0])


class AdaptedGraph(nn.Module):
    """A prompt on an HR view alone: input tokens (1, 6 + N, 256), F (32, 65536), the view's four tensors.

    Gives the adapters' logits (1, 256, 256), the SAM mask and IoU as `FrozenGraph`, and the token (1, 32).
    """

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        assert decoder.adapters is not None
        self.decoder = decoder
        self.adapters = decoder.adapters

    def forward(self, tokens: Tensor, fused: Tensor, *view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._decode(tokens, fused, view, None)

    def _decode(
        self, tokens: Tensor, fused: Tensor, view: Sequence[Tensor], t_lr: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        Q, K = self.decoder.two_layers(tokens, None, _row(*view), None)
        rows = [IOU_ROW, 1, HF_ROW]
        read = self.decoder.final(Q[:, rows], tokens[:, rows], K)
        t = self.adapters.hr.token(read[:, 2])
        t = t if t_lr is None else t + t_lr
        mask_decoder = self.decoder.network.mask_decoder
        sam, u = _sam_mask(mask_decoder, K, read[:, 1:2])
        return _token_logits(self.adapters.hr, t, u, fused), sam, mask_decoder.predicted_iou(read[:, 0]), t


class DualGraph(AdaptedGraph):
    """A prompt on a pair of views: HR's tokens, F and four tensors, then LR's tokens and four tensors.

    Gives what `AdaptedGraph` does, with the fused token.
    """

    def forward(self, tokens: Tensor, fused: Tensor, *views: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens_lr = views[4]
        Q, K = self.decoder.two_layers(tokens_lr, None, _row(*views[5:]), None)
        hf = self.decoder.final(Q[:, HF_ROW : HF_ROW + 1], tokens_lr[:, HF_ROW : HF_ROW + 1], K)
        return self._decode(tokens, fused, views[:4], self.adapters.lr.token(hf[:, 0]))


def _row(*view: Tensor) -> ViewTensors:
    return ViewTensors(*(tensor[None] for tensor in view))


def _sam_mask(decoder: MaskDecoder, K: Tensor, mask_token: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's mask 0 (1, 1, 256, 256) of image positions K (1, 4096, 256), and the upscaled features u it is made of."""
    expand, norm, activate, expand_again, activate_again = decoder.output_upscaling
    assert isinstance(expand, nn.ConvTranspose2d)
    assert isinstance(norm, nn.LayerNorm)
    assert expand.bias is not None
    image = K.reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    weight = expand.weight - expand.weight.mean(dim=1, keepdim=True)
    half = F.conv_transpose2d(image, weight, expand.bias - expand.bias.mean(), stride=2)
    u = activate_again(expand_again(activate(_scale(half, norm))))
    kernel = decoder.mask_weights(mask_token, range(1)).reshape(1, -1, 1, 1)
    return F.conv2d(u, kernel), u


def _token_logits(adapter: Adapter, t: Tensor, u: Tensor, fused: Tensor) -> Tensor:
    """<t, G> (1, 256, 256), the last convolution collapsed with the token (METHOD.md 6b) and made as nine products."""
    first, norm, activate, last = adapter.embedding_maskfeature
    assert isinstance(first, nn.Conv2d)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Conv2d)
    assert first.bias is not None
    assert last.bias is not None
    weight = first.weight - first.weight.mean(dim=0, keepdim=True)
    features = activate(_scale(F.conv2d(u, weight, first.bias - first.bias.mean(), padding=1), norm))
    kernels = torch.einsum("rk,kcyx->yxc", t, last.weight).reshape(9, -1, 1, 1)
    taps = F.pad(F.conv2d(features, kernels), (1, 1, 1, 1))
    logits = (t @ fused).reshape(1, MASK_SIDE, MASK_SIDE) + (t @ last.bias)[:, None, None]
    for tap in range(9):
        y, x = divmod(tap, 3)
        logits = logits + taps[:, tap, y : y + MASK_SIDE, x : x + MASK_SIDE]
    return logits


def _scale(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`LayerNorm2d` of a map (1, C, H, W) whose channels add up to zero at every pixel.

    A norm's first step, taking the mean away, is linear: it is done once, in the weights of the layer before.
    """
    inverse = torch.rsqrt((x * x).mean(dim=1, keepdim=True) + norm.eps)
    return x * inverse * norm.weight[:, None, None] + norm.bias[:, None, None]
