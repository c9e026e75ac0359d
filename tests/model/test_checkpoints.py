"""Weights files, good and bad, with the real LiteMedSAM base."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.checkpoints import (
    AdapterWeights,
    BaseWeights,
    file_sha256,
    load_adapters,
    load_base_weights,
    packaged_lite_medsam,
    save_adapters,
)
from wsisam_model.config import model_config
from wsisam_model.errors import CheckpointError

LITE, VIT_TINY = model_config("lite_medsam"), model_config("vit_tiny")
LITE_MEDSAM_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
PROVENANCE = {"model": "lite_medsam", "base_sha256": LITE_MEDSAM_SHA256, "data": "none, random", "licence": "CC0-1.0"}

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def base() -> BaseWeights:
    return load_base_weights(packaged_lite_medsam(), LITE)


@pytest.fixture(scope="module")
def branches() -> tuple[State, State]:
    """The state dicts of both branches, random."""
    torch.manual_seed(0)
    hr, lr = (Adapter(LITE.early_channels).state_dict() for _ in range(2))
    return hr, lr


def save_pair(folder: Path, hr: State, lr: State) -> tuple[Path, Path]:
    paths = folder / "net_high.pth", folder / "net_low.pth"
    for path, state in zip(paths, (hr, lr), strict=True):
        torch.save({"model": state, "epoch": 12}, path)
    return paths


def test_the_packaged_base_is_the_published_one_split_into_its_parts(base: BaseWeights) -> None:
    assert base.sha256 == LITE_MEDSAM_SHA256
    assert len(base.image_encoder) + len(base.prompt_encoder) + len(base.mask_decoder) == 435
    assert len(base.mask_decoder) == 120
    assert "patch_embed.seq.0.c.weight" in base.image_encoder


def test_mobile_sam_is_loaded_without_its_classifier(tmp_path: Path, base: BaseWeights) -> None:
    state = {f"{part}.{key}": tensor for part in PARTS for key, tensor in getattr(base, part).items()}
    state["image_encoder.patch_embed.seq.0.c.weight"] = torch.randn(32, 3, 3, 3)
    state["image_encoder.patch_embed.seq.2.c.weight"] = torch.randn(64, 32, 3, 3)
    state |= {"image_encoder.norm_head.weight": torch.ones(320), "image_encoder.head.weight": torch.ones(1000, 320)}
    torch.save(state, tmp_path / "mobile_sam.pt")
    loaded = load_base_weights(tmp_path / "mobile_sam.pt", VIT_TINY)
    assert len(loaded.image_encoder) == len(base.image_encoder)


@pytest.mark.parametrize("with_frozen", [False, True])
def test_the_authors_pair(tmp_path: Path, base: BaseWeights, branches: tuple[State, State], with_frozen: bool) -> None:
    frozen = base.mask_decoder if with_frozen else {}
    hr, lr = ({**branch, **frozen} for branch in branches)
    paths = save_pair(tmp_path, hr, lr)
    weights = load_adapters(paths, LITE, base)
    assert weights.name == "net_high+net_low"
    assert weights.sha256 == file_sha256(*paths)
    assert weights.licence is None
    for actual, expected in ((weights.hr, branches[0]), (weights.lr, branches[1])):
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_the_golden_adapters_load_as_a_pair(tmp_path: Path, shared: Path, base: BaseWeights) -> None:
    with np.load(shared / "parity" / "golden.npz") as golden:
        hr, lr = (
            {k.removeprefix(prefix): torch.from_numpy(golden[k]) for k in golden.files if k.startswith(prefix)}
            for prefix in ("adapter_high/", "adapter_low/")
        )
    weights = load_adapters(save_pair(tmp_path, hr, lr), LITE, base)
    Adapters.from_state(weights.state())
    assert torch.equal(weights.lr["hf_token.weight"], lr["hf_token.weight"])


def test_our_own_file_comes_back_as_it_was_saved(
    tmp_path: Path, base: BaseWeights, branches: tuple[State, State]
) -> None:
    state = AdapterWeights("x", "", {}, *branches, {"point_embeddings.1.weight": torch.randn(1, 256)}).state()
    path = tmp_path / "glands.safetensors"
    save_adapters(path, state, **PROVENANCE)
    weights = load_adapters(path, LITE, base)
    assert (weights.name, weights.sha256, weights.licence) == ("glands", file_sha256(path), "CC0-1.0")
    assert weights.metadata["data"] == "none, random"
    loaded = weights.state()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


class RunsCode:
    """A pickle of it creates a folder when it is loaded unsafely."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


BAD_PICKLES: dict[str, tuple[Callable[[State], bytes], str]] = {
    "truncated": (lambda state: torch_bytes(state)[:-5000], "cannot|not a checkpoint"),
    "empty": (lambda state: b"", "not a checkpoint"),
    "a text": (lambda state: b"<html>not found</html>", "not a checkpoint"),
    "no state dict": (lambda state: torch_bytes([1, 2]), "no state dict"),
    "no tensor": (lambda state: torch_bytes({**state, "hf_token.weight": "x"}), "hf_token.weight is not a tensor"),
    "missing": (lambda state: torch_bytes(without(state, "hf_mlp.layers.1.bias")), "hf_mlp.layers.1.bias is missing"),
    "unexpected": (lambda state: torch_bytes({**state, "extra.bias": torch.ones(1)}), "extra.bias is unexpected"),
    "shape": (
        lambda state: torch_bytes({**state, "compress_vit_feat.0.weight": torch.ones(768, 256, 2, 2)}),
        r"compress_vit_feat.0.weight has shape \(768, 256, 2, 2\), but the model's is \(160, 256, 2, 2\)",
    ),
    "not finite": (
        lambda state: torch_bytes({**state, "hf_token.weight": torch.full((1, 256), torch.nan)}),
        "hf_token.weight holds numbers that are not finite",
    ),
    "whole numbers": (
        lambda state: torch_bytes({**state, "hf_token.weight": torch.ones(1, 256, dtype=torch.int64)}),
        "hf_token.weight is of type torch.int64",
    ),
    "other frozen tensor": (
        lambda state: torch_bytes({**state, "iou_token.weight": torch.ones(1, 256)}),
        "frozen tensor iou_token.weight differs",
    ),
}


def without(state: State, key: str) -> State:
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_a_wrong_pth_is_refused_with_its_name_and_key(
    tmp_path: Path, base: BaseWeights, branches: tuple[State, State], kind: str
) -> None:
    make, message = BAD_PICKLES[kind]
    high, low = save_pair(tmp_path, *branches)
    low.write_bytes(make(branches[1]))
    with pytest.raises(CheckpointError, match=f"^net_low.pth: .*({message})"):
        load_adapters((high, low), LITE, base)


@pytest.mark.parametrize("pack", [torch_bytes, partial(pickle.dumps, protocol=2)])
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, base: BaseWeights, branches: tuple[State, State], pack: Callable[[object], bytes]
) -> None:
    high, low = save_pair(tmp_path, *branches)
    high.write_bytes(pack({"model": RunsCode(tmp_path / "was run")}))
    with pytest.raises(CheckpointError, match=r"^net_high.pth: not a checkpoint that can be loaded safely"):
        load_adapters((high, low), LITE, base)
    assert not (tmp_path / "was run").exists()


def test_a_missing_file_is_named_without_its_folder(tmp_path: Path, base: BaseWeights) -> None:
    for load in (
        lambda: load_base_weights(tmp_path / "gone.pth", LITE),
        lambda: load_adapters(tmp_path / "gone.pth", LITE, base),
        lambda: load_adapters((tmp_path / "gone.pth", tmp_path / "net_low.pth"), LITE, base),
    ):
        with pytest.raises(CheckpointError, match=r"^gone.pth: cannot be read \(No such file or directory\)$"):
            load()


def test_a_base_of_another_model_is_refused() -> None:
    key = "image_encoder.patch_embed.seq.0.c.weight"
    with pytest.raises(CheckpointError, match=rf"^lite_medsam.pth: {key} has shape \(32, 3, 1, 1\)"):
        load_base_weights(packaged_lite_medsam(), VIT_TINY)
    with pytest.raises(CheckpointError, match=r"^lite_medsam.pth: image_encoder.blocks.0.attn.proj.bias is missing"):
        load_base_weights(packaged_lite_medsam(), model_config("vit_b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_sha256": "0" * 64}, "base_sha256 is '0"),
        ({"model": "vit_b"}, "model is 'vit_b', but here it is 'lite_medsam'"),
        ({"format": "other/9"}, "format is 'other/9'"),
        ({"licence": None}, "the metadata has no licence"),
    ],
)
def test_adapters_made_for_something_else_are_refused(
    tmp_path: Path, base: BaseWeights, branches: tuple[State, State], change: dict[str, str | None], message: str
) -> None:
    metadata = {"format": "wsisam-adapters/1", "date": "2026-01-01", **PROVENANCE, **change}
    state = AdapterWeights("x", "", {}, *branches).state()
    path = tmp_path / "a.safetensors"
    save_file(state, path, metadata={key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(CheckpointError, match=f"^a.safetensors: {message}"):
        load_adapters(path, LITE, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hr.hf_token.weight": None}, "hr.hf_token.weight is missing"),
        ({"hr.hf_token.weight": torch.ones(2, 256)}, "hr.hf_token.weight has shape"),
        ({"lr.more": torch.ones(1)}, "lr.more is unexpected"),
        ({"other.x": torch.ones(1)}, "other.x"),
        ({"prompt.no_mask_embed.weight": torch.ones(1, 256)}, "prompt.no_mask_embed.weight"),
        ({"iou.weight": torch.tensor([torch.inf])}, "iou.weight holds numbers that are not finite"),
        (
            {"iou.weight": torch.full((3, 9), 1e300, dtype=torch.float64)},
            "iou.weight holds numbers that are not finite",
        ),
        ({"prompt.point_box": torch.tensor([1e38, 0.5])}, r"prompt.point_box is a spread of .* not 1e\+38 and 0.5"),
        ({"prompt.point_box": torch.tensor([3.5, 1e38])}, r"prompt.point_box is a spread of .* not 3.5 and 1e\+38"),
        ({"prompt.point_box": torch.tensor([-3.5, 0.5])}, "prompt.point_box is a spread of .* not -3.5 and 0.5"),
        ({"prompt.point_box": torch.tensor([3.5, 0.0])}, "prompt.point_box is a spread of .* not 3.5 and 0"),
    ],
)
def test_a_safetensors_file_with_wrong_tensors_is_refused(
    tmp_path: Path, base: BaseWeights, branches: tuple[State, State], change: dict[str, Tensor | None], message: str
) -> None:
    iou = {"weight": torch.zeros(3, 9), "bias": torch.zeros(3)} if "iou.weight" in change else {}
    state = {**AdapterWeights("x", "", {}, *branches, iou=iou).state(), **change}
    path = tmp_path / "a.safetensors"
    metadata = {"format": "wsisam-adapters/1", "date": "2026-01-01", **PROVENANCE}
    save_file({key: tensor for key, tensor in state.items() if tensor is not None}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"^a.safetensors: .*{message}"):
        load_adapters(path, LITE, base)


@pytest.mark.parametrize("content", [b"", b"\x80\x05K\x01.", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, base: BaseWeights, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^a.safetensors: not a readable safetensors file"):
        load_adapters(path, LITE, base)


def test_ill_formed_adapters_are_not_saved(tmp_path: Path, branches: tuple[State, State]) -> None:
    state = without(AdapterWeights("x", "", {}, *branches).state(), "lr.hf_token.weight")
    with pytest.raises(CheckpointError, match=r"hf_token.weight"):
        save_adapters(tmp_path / "a.safetensors", state, **PROVENANCE)
    assert not (tmp_path / "a.safetensors").exists()
