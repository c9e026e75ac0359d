"""SAM's ViT image encoders, with the early feature that WSI-SAM reads (METHOD.md section 2.1).

The blocks are those of the package segment-anything; only the loop over them is ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

_MODELING = "_wsisam_segment_anything_modeling"


@dataclass(frozen=True, slots=True)
class ViTSize:
    """The numbers in which the ViT variants differ."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    """Blocks that attend over the whole grid, counted from 0; the first one's output is the early feature."""
    image_size: int = 1024
    embedding_channels: int = 256


VIT_SIZES = {
    "vit_b": ViTSize(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": ViTSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": ViTSize(1280, 32, 16, (7, 15, 23, 31)),
}


class _ImageEncoder(Protocol):
    """What is used of segment-anything's ImageEncoderViT."""

    patch_embed: nn.Module
    pos_embed: nn.Parameter
    blocks: nn.ModuleList
    neck: nn.Module


def segment_anything_modeling() -> ModuleType:
    """The subpackage `segment_anything.modeling`, loaded without running `segment_anything/__init__.py`.

    That file imports torchvision, which the modules of the network do not need and which does not import beside a
    torch of another build (CPU torch with torchvision for CUDA). The subpackage goes under a name of its own into
    `sys.modules`, so a later ordinary import of segment_anything is not disturbed.
    """
    if _MODELING in sys.modules:
        return sys.modules[_MODELING]
    package = importlib.util.find_spec("segment_anything")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the ViT encoders need the package segment-anything", name="segment_anything")
    folder = Path(package.origin).parent / "modeling"
    spec = importlib.util.spec_from_file_location(
        _MODELING, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODELING] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_MODELING]
        raise
    module.image_encoder.get_rel_pos = _relative_positions
    return module


def _relative_positions(queries: int, keys: int, table: Tensor) -> Tensor:
    """segment-anything's `get_rel_pos` (n, n, C) for n queries and as many keys, from a table (2n - 1, C).

    Its own looks the table up by an index on the CPU, which a CUDA graph cannot capture.
    """
    assert queries == keys
    assert len(table) == 2 * keys - 1
    place = torch.arange(keys, device=table.device)
    return table[place[:, None] - place + keys - 1]


class ViT(nn.Module):
    """The encoder, in eval mode. Its state dict has SAM's key names without the prefix `image_encoder.`."""

    patch_embed: nn.Module
    pos_embed: nn.Parameter
    blocks: nn.ModuleList
    neck: nn.Module

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        encoder = cast(
            _ImageEncoder,
            segment_anything_modeling().ImageEncoderViT(
                img_size=size.image_size,
                embed_dim=size.width,
                depth=size.depth,
                num_heads=size.heads,
                out_chans=size.embedding_channels,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=14,
                global_attn_indexes=size.global_blocks,
            ),
        )
        # Held one by one rather than as one module, so that no further prefix enters the state dict.
        self.patch_embed, self.pos_embed = encoder.patch_embed, encoder.pos_embed
        self.blocks, self.neck = encoder.blocks, encoder.neck
        self.early_block = size.global_blocks[0]
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, S, S) to the embedding E (B, 256, 64, 64) and the early feature X (B, C, 64, 64)."""
        tokens = self.patch_embed(x) + self.pos_embed  # (B, 64, 64, C)
        early = tokens
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index == self.early_block:
                early = tokens
        return self.neck(tokens.permute(0, 3, 1, 2)), early.permute(0, 3, 1, 2)

    def prepare_for_inference(self) -> None:
        """Nothing to fold: a ViT has no batch norm."""
