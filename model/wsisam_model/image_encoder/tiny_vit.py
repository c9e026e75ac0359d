"""TinyViT, the image encoder of LiteMedSAM and of MobileSAM (METHOD.md section 2.1).

Module names are the checkpoints' key names without the prefix `image_encoder.`. Both variants leave a grid of 64×64;
they differ in the stem only: LiteMedSAM keeps its 256 pixels, MobileSAM reduces its 1024 by four.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsisam_model.layers import LayerNorm2d

STEM_SIDE = 256
"""Side of the map that the stem leaves, whatever the input's size."""
HEAD_SIZE = 32
EXACT_MODULES = ("patch_embed.seq.0", "layers.0.downsample", "layers.1.downsample", "layers.2.downsample")
"""What an engine that rounds to eight bits (bfloat16) leaves in float32: two fifths of the error of E come from here,
and a twentieth of the time (docs/PERFORMANCE.md). View keys do not name them: with another choice goes another
`ModelConfig.preprocessing`."""
EMBEDDING_CHANNELS = 256


class ConvBN(nn.Sequential):
    """A convolution without bias and its batch norm; `fold` makes one convolution of the two (METHOD.md 6f)."""

    c: nn.Conv2d
    bn: nn.Module

    def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", convolution)
        self.add_module("bn", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """A convolution; on CUDA a product where it is one, as cuDNN adds a bias in a pass of its own."""
        if x.is_cuda and self.c.kernel_size == (1, 1) and self.c.stride == (1, 1) and self.c.in_channels % 8 == 0:
            x = F.linear(x.permute(0, 2, 3, 1), self.c.weight.flatten(1), self.c.bias).permute(0, 3, 1, 2)
        else:
            x = self.c(x)
        return cast(Tensor, self.bn(x))

    def fold(self) -> None:
        """Replace the pair by one convolution with bias. Only in eval mode, and only once."""
        self.c = fuse_conv_bn_eval(self.c, cast(nn.BatchNorm2d, self.bn))
        self.bn = nn.Identity()


class PatchEmbed(nn.Module):
    """The stem: (B, 3, S, S) to (B, 64, 256, 256)."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        kernel, stride = (1, 1) if image_size == STEM_SIDE else (3, 2)
        self.seq = nn.Sequential(ConvBN(3, 32, kernel, stride), nn.GELU(), ConvBN(32, 64, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.seq(x))


class MBConv(nn.Module):
    """Inverted bottleneck with residual, (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.conv1 = ConvBN(channels, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(hidden))


class PatchMerging(nn.Module):
    """To the next stage's channels: (B, C, H, W) to (B, C', H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(channels_in, channels)
        self.conv2 = ConvBN(channels, channels, 3, stride, groups=channels)
        self.conv3 = ConvBN(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Attention(nn.Module):
    """Self-attention inside windows of w × w, with a learned bias per head and offset. A map (B, side, side, C) to the
    same shape.

    The map is padded with zeros below and on the right to whole windows. The padding is attended to like any other
    position, as the weights were trained: masking it would move the logits by up to 9. `prepare` comes before the
    first call.
    """

    offset_index: Tensor
    bias: Tensor | None

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window, self.heads = window, channels // HEAD_SIZE
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, window * window))
        self.register_buffer("offset_index", _offset_index(window), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    @torch.no_grad()
    def prepare(self) -> None:
        """Look the bias of every pair of positions up once, and make the padding's keys and values zeros.

        The norm makes its shift of zeros, so all padding has one key and one value. Taken from every key, that key
        takes the same from all logits of a query, which softmax does not see. Taken from every value, that value is
        missing once from each answer, and goes into the bias of `proj`. So nothing is projected for the padding,
        which was 3.5 % of the encoder's multiply-adds.
        """
        self.bias = self.attention_biases[:, self.offset_index]
        padding = self.qkv(self.norm.bias).view(self.heads, 3, HEAD_SIZE)
        self.proj.bias.add_(self.proj.weight @ padding[:, 2].flatten())
        self.qkv.bias.view_as(padding)[:, 1:].sub_(padding[:, 1:])

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        batch, side, _, channels = x.shape
        window, padding = self.window, -side % self.window
        padded, count = side + padding, -(-side // window)
        qkv = F.pad(self.qkv(self.norm(x)), (0, 0, 0, padding, 0, padding))
        # The 3C outputs lie head by head: q, k and v of head 0, then of head 1, ... Windows and heads are taken apart
        # in one go, and put together in one.
        qkv = qkv.view(batch, count, window, count, window, self.heads, 3, HEAD_SIZE)
        q, k, v = qkv.permute(6, 0, 1, 3, 5, 2, 4, 7).reshape(3, -1, self.heads, window * window, HEAD_SIZE)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0))
        attended = attended.view(batch, count, count, self.heads, window, window, HEAD_SIZE)
        attended = attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, padded, padded, channels)
        return cast(Tensor, self.proj(attended[:, :side, :side]))


def _offset_index(window: int) -> Tensor:
    """Column of the bias table for each pair of window positions: |Δrow|·w + |Δcolumn|, int64 (w·w, w·w)."""
    # In numpy: on the meta device, where checkpoints are checked, torch's arithmetic would import its compiler.
    row, column = np.divmod(np.arange(window * window), window)
    return torch.from_numpy(np.abs(row[:, None] - row) * window + np.abs(column[:, None] - column))


class Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(self.norm(x)))))


class WindowBlock(nn.Module):
    """Window attention, depthwise convolution and MLP on a map (B, C, side, side), to the same shape."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.attn = Attention(channels, window)
        self.local_conv = ConvBN(channels, channels, 3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, side, _ = x.shape
        # Sums are of tokens (B, side², C), so that no engine moves them into the convolution's order and back.
        x = _tokens(x)
        x = x + self.attn(x.view(batch, side, side, channels)).reshape(x.shape)
        x = _tokens(self.local_conv(_map(x, side)))
        return _map(x + self.mlp(x), side)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, side, side) to (B, side², C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _map(x: Tensor, side: int) -> Tensor:
    """(B, side², C) to (B, C, side, side)."""
    return x.view(-1, side, side, x.shape[-1]).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks at one resolution, then the merge to the next stage, if there is one."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """The encoder, in eval mode. `image_size` S is 256 (LiteMedSAM) or 1024 (MobileSAM)."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        if image_size not in (STEM_SIDE, 4 * STEM_SIDE):
            raise ValueError(f"TinyViT takes 256 or 1024 pixels, not {image_size}")
        self.patch_embed = PatchEmbed(image_size)
        self.layers = nn.ModuleList(
            (
                Stage([MBConv(64) for _ in range(2)], PatchMerging(64, 128, stride=2)),
                Stage([WindowBlock(128, 7) for _ in range(2)], PatchMerging(128, 160, stride=2)),
                Stage([WindowBlock(160, 14) for _ in range(6)], PatchMerging(160, 320, stride=1)),
                Stage([WindowBlock(320, 7) for _ in range(2)], None),
            )
        )
        self.neck = nn.Sequential(
            nn.Conv2d(320, EMBEDDING_CHANNELS, 1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, S, S) to the embedding E (B, 256, 64, 64) and the early feature X (B, 160, 64, 64).

        X is the output of the second stage, its merge included.
        """
        early = self.layers[1](self.layers[0](self.patch_embed(x)))
        embedding = self.neck(self.layers[3](self.layers[2](early)))
        return embedding, early

    def prepare_for_inference(self) -> None:
        """Fold the batch norms and prepare the attentions, after the weights are loaded and before the first call."""
        for module in list(self.modules()):
            if isinstance(module, ConvBN):
                module.fold()
            elif isinstance(module, Attention):
                module.prepare()
