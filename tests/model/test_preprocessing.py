"""Preprocessing against the golden vectors and against torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from wsisam_model.config import ModelConfig, model_config
from wsisam_model.preprocessing import (
    lr_from_hr,
    resize_to_model,
    to_model_frame,
    upscale_logits,
    write_input,
)

LITE, SAM = model_config("lite_medsam"), model_config("vit_b")
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "parity" / "golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files if "/in/" in key or key.endswith(("_view", "_input256"))}


def input_of(view: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The encoder's input, written over what another view has left there."""
    used = np.full((3, config.image_size, config.image_size), np.nan, np.float32)
    write_input(view, config, used)
    return used


def test_the_module_needs_no_torch() -> None:
    program = "import sys, wsisam_model.preprocessing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("role", ["hr", "lr"])
def test_resizing_is_the_golden_one_to_the_grey_level(golden: dict[str, np.ndarray], role: str) -> None:
    np.testing.assert_array_equal(resize_to_model(golden[f"B/{role}_view"], LITE), golden[f"B/{role}_input256"])


def test_a_view_of_the_model_size_is_not_resampled() -> None:
    view = RANDOM.integers(0, 256, (1024, 700, 3), np.uint8)
    np.testing.assert_array_equal(resize_to_model(view, SAM), view)


def test_minmax_spans_zero_to_one_and_pads_after_normalising(golden: dict[str, np.ndarray]) -> None:
    resized = golden["B/hr_input256"].astype(float)
    model_input = input_of(golden["B/hr_view"], LITE)
    expected = (resized - resized.min()) / (resized.max() - resized.min())
    assert model_input.dtype == np.float32
    np.testing.assert_allclose(model_input[:, :192], expected.transpose(2, 0, 1), atol=1e-7)
    assert not model_input[:, 192:].any()


@pytest.mark.parametrize("config", [LITE, SAM], ids=lambda config: str(config.name))
@pytest.mark.parametrize("size", [(700, 1024), (1024, 700), (256, 256)])
def test_an_input_written_over_another_one_is_all_its_own(config: ModelConfig, size: tuple[int, int]) -> None:
    view = RANDOM.integers(0, 256, (*size, 3), np.uint8)
    used = input_of(view, config)
    height, width = resize_to_model(view, config).shape[:2]
    assert used[:, :height, :width].std() > 0.05
    assert not used[:, height:].any()
    assert not used[:, :, width:].any()


def test_a_view_of_one_colour_gives_zeros() -> None:
    assert not input_of(np.full((256, 256, 3), 240, np.uint8), LITE).any()


def test_sam_normalises_each_channel_with_its_own_mean() -> None:
    view = np.zeros((1024, 512, 3), np.uint8)
    view[...] = (124, 116, 104)
    model_input = input_of(view, SAM)
    np.testing.assert_allclose(model_input[:, 0, 0], [0.325 / 58.395, -0.28 / 57.12, 0.47 / 57.375], rtol=1e-5)
    assert not model_input[:, :, 512:].any()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_what_is_no_view_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a view is uint8"):
        input_of(np.zeros(shape, np.uint8), LITE)


def test_prompts_reach_both_branches_as_in_the_golden_file(golden: dict[str, np.ndarray]) -> None:
    checked = 0
    for key, given in golden.items():
        view, case, *kind = key.split("/")
        if kind not in (["in", "boxes"], ["in", "points"]):
            continue
        name, model_name = kind[1], "boxes_model" if kind[1] == "boxes" else "point_coords_model"
        size, folder = golden[f"{view}/hr_view"].shape[:2], f"{view}/{case}/in"
        hr = given.reshape(-1, 2)
        lr = lr_from_hr(hr, size)
        np.testing.assert_array_equal(lr, golden[f"{folder}/lr_{name}"].reshape(-1, 2))
        for branch, xy in (("hr", hr), ("lr", lr)):
            expected = golden[f"{folder}/{branch}_{model_name}"].reshape(-1, 2)
            np.testing.assert_allclose(to_model_frame(xy, size, LITE), expected, atol=1e-5)
        checked += 1
    assert checked >= 8


def test_the_whole_hr_view_falls_into_the_middle_of_the_lr_view() -> None:
    np.testing.assert_array_equal(lr_from_hr([[0, 0], [1023, 767]], (768, 1024)), [[256, 192], [767, 575]])


def test_logits_of_a_square_lite_medsam_view_pass_through() -> None:
    logits = RANDOM.normal(size=(2, 256, 256)).astype(np.float32)
    assert np.shares_memory(upscale_logits(logits, LITE, (256, 256)), logits)


@pytest.mark.parametrize(
    ("config", "view_size", "inner"),
    [
        (LITE, (384, 512), (192, 256)),
        (LITE, (100, 60), (256, 154)),
        (SAM, (1024, 1024), (1024, 1024)),
        (SAM, (1500, 2000), (768, 1024)),
        (SAM, (500, 333), (1024, 682)),
    ],
)
def test_upscaling_equals_torch(config: ModelConfig, view_size: tuple[int, int], inner: tuple[int, int]) -> None:
    logits = (RANDOM.normal(size=(2, 256, 256)) * 10).astype(np.float32)
    # In float64: torch's float32 coordinates are off by up to 0.005 of these logits where the ratio is not exact.
    exact = torch.from_numpy(logits).double()[None]
    square = interpolate(exact, (config.image_size, config.image_size), mode="bilinear")
    expected = interpolate(square[..., : inner[0], : inner[1]], view_size, mode="bilinear")[0].numpy()
    result = upscale_logits(logits, config, view_size)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=5e-5)
