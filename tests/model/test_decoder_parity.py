"""The network against the golden vectors of the authors' code, and that the usual mistakes would show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsisam_model.checkpoints import AdapterWeights, load_base_weights
from wsisam_model.config import model_config
from wsisam_model.golden import Golden
from wsisam_model.parity import LOGITS, ViewParity
from wsisam_model.predictor import Predictor
from wsisam_model.prompt_encoder import PromptEncoder
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.registry import base_weights_path
from wsisam_model.transformer import TwoWayBlock

CASES = {
    "A": ["box", "box_multi", "boxes", "mask_only", "mask_point", "point", "point_multi", "points_box", "posneg"],
    "B": ["box", "point"],
}
CONFIG = model_config("lite_medsam")


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "parity" / "golden.npz")


@pytest.fixture(scope="module")
def views(golden: Golden) -> dict[str, ViewParity]:
    base = load_base_weights(base_weights_path(CONFIG), CONFIG)
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    predictor = Predictor(CONFIG, base, adapters, device="cpu", engine="torch")
    return {view: ViewParity(predictor, golden, view) for view in golden.views()}


def test_every_case_of_the_file_is_found(golden: Golden) -> None:
    assert {view: [case.split("/")[1] for case in golden.cases(view)] for view in golden.views()} == CASES


@pytest.mark.parametrize("view", CASES)
def test_encoder_and_fused_maps_match_golden(views: dict[str, ViewParity], view: str) -> None:
    assert [row for row in views[view].view_rows() if not row.passed] == []


@pytest.mark.parametrize("case", [f"{view}/{case}" for view, cases in CASES.items() for case in cases])
def test_plain_form_matches_golden(views: dict[str, ViewParity], case: str) -> None:
    assert [row for row in views[case[0]].plain_rows(case) if not row.passed] == []


@pytest.mark.parametrize("case", [f"{view}/{case}" for view, cases in CASES.items() for case in cases])
def test_fast_form_matches_golden(views: dict[str, ViewParity], case: str) -> None:
    assert [row for row in views[case[0]].fast_rows(case) if not row.passed] == []


def no_half_pixel(encoder: PromptEncoder, coordinates: Tensor) -> Tensor:
    places: Tensor = encoder.pe_layer(coordinates / encoder.image_size)
    return places


def no_padding_token(encoder: PromptEncoder, points: Tensor, labels: Tensor, boxes: None, kinds: Tensor) -> Tensor:
    return encoder._encode(points) + kinds[labels.long()]


def residual_in_first_block(block: TwoWayBlock, Q: Tensor, Q0: Tensor, key_mask: None) -> Tensor:
    normed: Tensor = block.norm1(Q + block.self_attn(Q, Q, Q))
    return normed


def loose_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    channels_last = x.permute(0, 2, 3, 1)
    return F.layer_norm(channels_last, norm.normalized_shape, norm.weight, norm.bias, 1e-5).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("target", "mistake"),
    [
        ("wsisam_model.prompt_encoder.PromptEncoder._encode", no_half_pixel),
        ("wsisam_model.prompt_encoder.PromptEncoder.sparse", no_padding_token),
        ("wsisam_model.transformer.TwoWayBlock.self_attend", residual_in_first_block),
        ("wsisam_model.layers.LayerNorm2d.forward", loose_norm),
        ("torch.nn.GELU.forward", lambda _, x: F.gelu(x, approximate="tanh")),
        ("wsisam_model.prompt_tensors.lr_from_hr", lambda xy, size: xy / 2 + 64),
    ],
    ids=["half pixel", "padding token", "first residual", "norm eps", "tanh gelu", "floor"],
)
def test_a_usual_mistake_shows_in_the_logits(
    views: dict[str, ViewParity],
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    mistake: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr(target, mistake)
    parity = views["A"]
    like = parity.features_hr.embedding
    hr, lr = (
        branch_prompt(golden.prompts("A/posneg"), parity.size, CONFIG, lr=is_lr, like=like) for is_lr in (False, True)
    )
    with torch.inference_mode():
        dual = parity.network.dual_decode(parity.adapters, parity.features_hr, hr, parity.features_lr, lr)
    assert golden.error("A/posneg/out/hr_final", dual.logits_hr) > LOGITS
