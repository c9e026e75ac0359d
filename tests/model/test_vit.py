"""SAM's ViT encoders against golden vectors and against segment-anything's own forward pass with hooks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsisam_model.image_encoder.vit import VIT_SIZES, ViT, ViTSize, segment_anything_modeling

TOLERANCE = 1e-4


def test_segment_anything_is_loaded_without_torchvision() -> None:
    program = (
        "import sys; from wsisam_model.image_encoder.vit import segment_anything_modeling as load; "
        "load(); sys.exit('torchvision' in sys.modules or 'segment_anything' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_small_golden_encoder(shared: Path) -> None:
    with np.load(shared / "parity" / "vit_small_golden.npz") as golden:
        arrays = {key: torch.from_numpy(golden[key]) for key in golden.files}
    encoder = ViT(ViTSize(32, 3, 2, (1,), image_size=256, embedding_channels=32))
    encoder.load_state_dict({k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")})
    with torch.inference_mode():
        embedding, early = encoder(arrays["in/x"])
    assert float((embedding - arrays["out/embedding"]).abs().max()) <= TOLERANCE
    assert float((early - arrays["out/early"].permute(0, 3, 1, 2)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [("vit_b", 768, 89_670_912), ("vit_l", 1024, 308_278_272), ("vit_h", 1280, 637_026_048)],
)
def test_sizes_are_sams(name: str, width: int, parameters: int) -> None:
    with torch.device("meta"):
        encoder = ViT(VIT_SIZES[name])
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert VIT_SIZES[name].width == width
    windows = [block.window_size for block in encoder.blocks]
    assert [index for index, window in enumerate(windows) if window == 0] == list(VIT_SIZES[name].global_blocks)
    assert {window for window in windows if window} == {14}


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(replace(VIT_SIZES["vit_b"], image_size=256), id="vit_b on a quarter of the grid"),
        pytest.param(VIT_SIZES["vit_b"], marks=pytest.mark.slow, id="vit_b"),
    ],
)
def test_embedding_and_early_feature_equal_segment_anythings_own(size: ViTSize) -> None:
    encoder = ViT(size)
    randomise(encoder)
    reference = segment_anything_encoder(size)
    reference.load_state_dict(encoder.state_dict())
    outputs: dict[int, Tensor] = {}
    for index, block in enumerate(reference.blocks):
        block.register_forward_hook(lambda _module, _inputs, output, index=index: outputs.update({index: output}))
    image = torch.randn(1, 3, size.image_size, size.image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(image)
        embedding, early = encoder(image)
    assert len(outputs) == 12
    assert early.shape == (1, 768, size.image_size // 16, size.image_size // 16)
    assert float((early - outputs[2].permute(0, 3, 1, 2)).abs().max()) <= TOLERANCE
    assert float((embedding - expected).abs().max()) <= TOLERANCE


def segment_anything_encoder(size: ViTSize) -> nn.Module:
    """The encoder as segment-anything's `build_sam_vit_b` makes it, but for the image's size."""
    encoder: nn.Module = segment_anything_modeling().ImageEncoderViT(
        depth=12, embed_dim=768, img_size=size.image_size, mlp_ratio=4, num_heads=12, patch_size=16, qkv_bias=True,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6), use_rel_pos=True, window_size=14, out_chans=256,
        global_attn_indexes=[2, 5, 8, 11],
    )  # fmt: skip
    return encoder.eval()


def randomise(module: nn.Module) -> None:
    """Positions start at zero in segment-anything; random ones show if they are left out."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)
