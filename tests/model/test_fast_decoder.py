"""The served form of the decoder against the plain one, in float64 on random weights: the same numbers to 1e-9."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from wsisam_model.adapters import Adapters
from wsisam_model.config import model_config
from wsisam_model.decoder_batch import DecoderBatch, DecodeRequest, collate
from wsisam_model.fast_decoder import DecoderOutput, DecoderView, FastDecoder
from wsisam_model.mask_decoder import HF_ROW
from wsisam_model.network import DualDecoded, ViewFeatures, WsiSam
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.prompts import Prompt

CONFIG = model_config("lite_medsam")
SIZE = (256, 256)
EXACT = 1e-9
Views = tuple[ViewFeatures, ViewFeatures]


def plain(network: WsiSam, adapters: Adapters, views: Views, prompt: Prompt) -> DualDecoded:
    hr, lr = views
    prompts = [branch_prompt([prompt], SIZE, CONFIG, lr=is_lr, like=hr.embedding) for is_lr in (False, True)]
    return network.dual_decode(adapters, hr, prompts[0], lr, prompts[1])


def prepared(decoder: FastDecoder, views: Views) -> list[DecoderView]:
    return [decoder.prepare(view.embedding, view.early, SIZE) for view in views]


def run(decoder: FastDecoder, requests: list[DecodeRequest]) -> tuple[DecoderBatch, DecoderOutput]:
    batch = collate(decoder, requests, CONFIG)
    return batch, decoder(batch.layout, batch.inputs)


def off(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    assert ours.shape == oracle.shape
    return float((ours - oracle).abs().max())


@pytest.fixture(scope="module")
def decoder(random_network: WsiSam, random_adapters: Adapters) -> FastDecoder:
    return FastDecoder(random_network, random_adapters).double()


@pytest.fixture(scope="module")
def oracle(
    random_network: WsiSam, random_adapters: Adapters, random_views: Views, prompts: Mapping[str, Prompt]
) -> dict[str, DualDecoded]:
    with torch.no_grad():
        return {kind: plain(random_network, random_adapters, random_views, p) for kind, p in prompts.items()}


@pytest.mark.parametrize("kind", ["box", "points", "points and box", "many points", "mask", "masks and point"])
def test_fast_form_equals_plain_form(
    decoder: FastDecoder,
    random_views: Views,
    prompts: Mapping[str, Prompt],
    oracle: Mapping[str, DualDecoded],
    kind: str,
) -> None:
    expected = oracle[kind]
    assert expected.lr is not None
    assert expected.logits_lr is not None
    with torch.no_grad():
        hr, lr = prepared(decoder, random_views)
        _, output = run(decoder, [DecodeRequest(hr, lr, prompts[kind], lr_mask=True)])
    assert off(output.tokens, expected.token) < EXACT
    assert off(output.iou, torch.cat((expected.hr.iou, expected.lr.iou))) < EXACT
    assert off(output.sam_masks[:1, 0], expected.hr.sam_masks[:, 0]) < EXACT
    assert off(output.token_logits, expected.ours_hr) < EXACT
    assert off(output.lr_token_logits + output.sam_masks[1:, 0], expected.logits_lr) < EXACT


def test_ragged_batch_of_all_kinds_equals_one_by_one(
    decoder: FastDecoder, random_views: Views, prompts: Mapping[str, Prompt], oracle: Mapping[str, DualDecoded]
) -> None:
    kinds = list(prompts)
    with torch.no_grad():
        hr, lr = prepared(decoder, random_views)
        # LR masks for some, so that rows change places on their way through the batch.
        requests = [DecodeRequest(hr, lr, prompts[kind], lr_mask=i % 2 == 1) for i, kind in enumerate(kinds)]
        batch, output = run(decoder, requests)
    for row, index in enumerate(batch.order):
        assert off(output.token_logits[row], oracle[kinds[index]].ours_hr[0]) < EXACT
        assert off(output.sam_masks[row, 0], oracle[kinds[index]].hr.sam_masks[0, 0]) < EXACT


def test_fillers_that_are_not_masked_change_the_result(
    decoder: FastDecoder, random_views: Views, prompts: Mapping[str, Prompt]
) -> None:
    with torch.no_grad():
        hr, lr = prepared(decoder, random_views)
        batch, output = run(decoder, [DecodeRequest(hr, lr, prompts[kind]) for kind in ("box", "many points")])
        unmasked = batch.inputs._replace(key_mask=torch.ones_like(batch.inputs.key_mask))
        assert off(decoder(batch.layout, unmasked).token_logits, output.token_logits) > 1e-3


def test_frozen_rows_beside_adapted_ones_are_plain_sam(
    decoder: FastDecoder, random_network: WsiSam, random_views: Views, prompts: Mapping[str, Prompt]
) -> None:
    prompt = prompts["points"]
    with torch.no_grad():
        hr, lr = prepared(decoder, random_views)
        requests = [DecodeRequest(hr, lr, prompts["box"]), DecodeRequest(lr, None, prompt, frozen=True, multimask=True)]
        batch, output = run(decoder, requests)
        alike = branch_prompt([prompt], SIZE, CONFIG, lr=False, like=hr.tensors.positions)
        masks, iou = random_network.sam_decode(random_views[1], alike, multimask=True)
    assert batch.order[0] == 1
    assert off(output.sam_masks[:1, 1:], masks) < EXACT
    assert off(output.iou[:1, 1:], iou) < EXACT


def test_without_lr_view_the_token_is_the_hr_one(
    decoder: FastDecoder, random_views: Views, prompts: Mapping[str, Prompt], oracle: Mapping[str, DualDecoded]
) -> None:
    with torch.no_grad():
        hr, _ = prepared(decoder, random_views)
        _, output = run(decoder, [DecodeRequest(hr, None, prompts["box"])])
    assert off(output.tokens, oracle["box"].token_hr) < EXACT
    assert off(output.token_logits, oracle["box"].own_hr) < EXACT


def test_adapters_get_the_same_gradient_through_both_forms(
    decoder: FastDecoder,
    random_network: WsiSam,
    random_adapters: Adapters,
    random_views: Views,
    prompts: Mapping[str, Prompt],
) -> None:
    parameters = [random_adapters.lr.hf_token.weight, *random_adapters.hr.parameters()]
    expected = torch.autograd.grad(
        plain(random_network, random_adapters, random_views, prompts["box"]).ours_hr.mean(), parameters
    )
    hr, lr = prepared(decoder, random_views)
    batch = collate(decoder, [DecodeRequest(hr, lr, prompts["box"])], CONFIG)
    tokens = batch.inputs.tokens.clone()  # made on the host, where no gradient passes
    tokens[:, HF_ROW] = torch.cat((random_adapters.hr.hf_token.weight, random_adapters.lr.hf_token.weight))
    output = decoder(batch.layout, batch.inputs._replace(tokens=tokens))
    for ours, oracle in zip(torch.autograd.grad(output.token_logits.mean(), parameters), expected, strict=True):
        assert off(ours, oracle) < EXACT * max(1.0, float(oracle.abs().max()))
