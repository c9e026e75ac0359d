"""The predictor on random weights: what goes in and comes out, batches, blobs, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from wsisam_model import decoder_batch
from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.checkpoints import AdapterWeights, BaseWeights
from wsisam_model.config import model_config
from wsisam_model.engines.precision import Precision
from wsisam_model.errors import CheckpointError, ModelError, PromptError
from wsisam_model.image_encoder import build_image_encoder
from wsisam_model.int8_embedding import Int8Embedding
from wsisam_model.network import WsiSam
from wsisam_model.point_box import readings
from wsisam_model.predictor import Decoded, DecodeRequest, DecoderView, Embedding, Predictor
from wsisam_model.prompts import MAX_POINTS, Prompt
from wsisam_model.quality import stability

CONFIG = model_config("lite_medsam")


@pytest.fixture(scope="module")
def base() -> BaseWeights:
    torch.manual_seed(5)
    network = WsiSam(256)
    encoder = build_image_encoder(CONFIG)
    parts = (encoder, network.prompt_encoder, network.mask_decoder)
    return BaseWeights("ab" * 32, *(dict(part.state_dict()) for part in parts))


@pytest.fixture(scope="module")
def predictor(base: BaseWeights) -> Predictor:
    torch.manual_seed(6)
    hr, lr = Adapter(160).state_dict(), Adapter(160).state_dict()
    weights = AdapterWeights("random", "cd" * 32, {}, dict(hr), dict(lr))
    return Predictor(CONFIG, base, weights, device="cpu", engine="torch")


@pytest.fixture(scope="module")
def views(predictor: Predictor) -> tuple[DecoderView, DecoderView]:
    generator = torch.Generator().manual_seed(7)
    E, X = torch.randn(2, 256, 64, 64, generator=generator), torch.randn(2, 160, 64, 64, generator=generator)
    hr, lr = (predictor.prepare(Embedding(E[i], X[i], (256, 256))) for i in range(2))
    return hr, lr


def assert_alike(ours: Decoded, alone: Decoded) -> None:
    for name in ("logits", "predicted_iou", "sam_logits_hr", "sam_logits_lr", "lr_logits"):
        value, expected = getattr(ours, name), getattr(alone, name)
        if expected is None:
            assert value is None
        else:
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected, atol=1e-4)


def test_a_mixed_call_answers_each_request_as_if_alone(
    predictor: Predictor,
    views: tuple[DecoderView, DecoderView],
    prompts: Mapping[str, Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hr, lr = views
    requests = [
        DecodeRequest(hr, lr, prompts["masks and point"], lr_sam=True),
        DecodeRequest(lr, None, prompts["box"], frozen=True),
        DecodeRequest(hr, lr, prompts["points"], lr_mask=True, multimask=True),
        DecodeRequest(lr, None, prompts["points and box"]),
        DecodeRequest(lr, hr, prompts["many points"]),
        DecodeRequest(hr, None, prompts["mask"], frozen=True, multimask=True),
    ]
    alone = [predictor.decode([request])[0] for request in requests]
    monkeypatch.setattr(predictor._everywhere, "max_batch", 4)
    for ours, expected in zip(predictor.decode(requests), alone, strict=True):
        assert_alike(ours, expected)
    assert [answer.logits.shape[0] for answer in alone] == [1, 1, 3, 1, 1, 3]
    assert [answer.sam_logits_lr is not None for answer in alone] == [True, False, True, False, False, False]
    assert [answer.lr_logits is not None for answer in alone] == [False, False, True, False, False, False]


def test_the_next_batch_is_begun_before_the_last_is_waited_for(
    predictor: Predictor,
    views: tuple[DecoderView, DecoderView],
    prompts: Mapping[str, Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the one after it only then: outputs of two batches are alive at most."""
    steps: list[str] = []

    def collate(*arguments: Any) -> Any:
        steps.append("begin")
        return decoder_batch.collate(*arguments)

    def scatter(*arguments: Any) -> Any:
        steps.append("wait")
        return decoder_batch.scatter(*arguments)

    monkeypatch.setattr("wsisam_model.adapted_decoder.collate", collate)
    monkeypatch.setattr("wsisam_model.adapted_decoder.scatter", scatter)
    predictor.decode([DecodeRequest(*views, prompts["box"])] * 3)
    assert steps == ["begin", "begin", "wait", "begin", "wait", "wait"]


def test_frozen_answers_are_sams_own_masks_best_first(
    predictor: Predictor, views: tuple[DecoderView, DecoderView], prompts: Mapping[str, Prompt]
) -> None:
    several, one = predictor.decode(
        [DecodeRequest(views[0], None, prompts["box"], frozen=True, multimask=many) for many in (True, False)]
    )
    assert list(several.predicted_iou) == sorted(several.predicted_iou, reverse=True)
    np.testing.assert_array_equal(several.logits[0], several.sam_logits_hr)
    np.testing.assert_array_equal(one.logits[0], one.sam_logits_hr)


def test_fused_masks_are_rated_by_their_stability(
    predictor: Predictor, views: tuple[DecoderView, DecoderView], prompts: Mapping[str, Prompt]
) -> None:
    (answer,) = predictor.decode([DecodeRequest(*views, prompts["box"])])
    inner, outer = (answer.logits[0] > 1).sum(), (answer.logits[0] > -1).sum()
    assert answer.predicted_iou[0] == pytest.approx(inner / max(outer, 1))


@pytest.fixture(scope="module")
def clicked(base: BaseWeights) -> Predictor:
    """With adapters that read clicks as boxes and bring a calibration."""
    torch.manual_seed(6)
    branches = dict(Adapter(160).state_dict()), dict(Adapter(160).state_dict())
    iou = {"weight": torch.zeros(3, 9), "bias": torch.logit(torch.tensor([0.7, 0.4, 0.6]))}
    weights = AdapterWeights("x", "", {}, *branches, {"point_box": torch.tensor([3.5, 0.5])}, iou)
    return Predictor(CONFIG, base, weights, device="cpu", engine="torch")


@pytest.mark.parametrize("sure", [True, False])
def test_another_size_is_tried_where_one_click_led_to_no_sure_mask_and_the_more_stable_one_stays(
    clicked: Predictor, views: tuple[DecoderView, DecoderView], monkeypatch: pytest.MonkeyPatch, sure: bool
) -> None:
    monkeypatch.setattr("wsisam_model.adapted_decoder.reread", lambda *_: None)
    monkeypatch.setattr("wsisam_model.adapted_decoder.is_unsure", lambda _: not sure)
    click = Prompt(points=((120.0, 130.0),), labels=(1,))
    sizes = clicked.decode([DecodeRequest(views[0], None, box) for box in readings(click, (256, 256), 3.5, 0.5)])
    first, second = (stability(answer.logits[:1])[0] for answer in sizes)
    assert first < second, "both cases would have one answer"
    (answer,) = clicked.decode([DecodeRequest(views[0], None, click)])
    np.testing.assert_array_equal(answer.logits, sizes[0 if sure else 1].logits)


def test_the_predicted_iou_is_that_of_what_was_said_not_of_its_reading(
    clicked: Predictor, views: tuple[DecoderView, DecoderView]
) -> None:
    one, two = ((120.0, 130.0),), ((120.0, 130.0), (90.0, 100.0))
    prompts = [
        Prompt(points=one, labels=(1,)),
        Prompt(points=two, labels=(1, 1)),
        Prompt(box=(60.0, 70.0, 160.0, 170.0)),
    ]
    answers = clicked.decode([DecodeRequest(views[0], None, prompt) for prompt in prompts])
    assert [float(answer.predicted_iou[0]) for answer in answers] == pytest.approx([0.4, 0.6, 0.7])


def test_encoding_gives_each_view_its_embedding(predictor: Predictor) -> None:
    images = np.random.default_rng(8).integers(0, 256, (2, 256, 192, 3), dtype=np.uint8)
    first, second = predictor.encode(list(images))
    assert first.view_size == (256, 192)
    assert (first.embedding.shape, first.early.shape) == ((256, 64, 64), (160, 64, 64))
    torch.testing.assert_close(second.embedding, predictor.encode([images[1]])[0].embedding)
    stored, _ = predictor.encode(list(images), halved=True)
    torch.testing.assert_close(stored.embedding, first.embedding.half(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(stored.early, first.early.half(), atol=1e-3, rtol=1e-3)


def test_an_embedding_survives_its_blob_in_half_precision() -> None:
    embedding = Embedding(torch.randn(256, 64, 64), torch.randn(160, 64, 64), (384, 512))
    back = Embedding.from_bytes(embedding.to_bytes())
    assert back.view_size == (384, 512)
    torch.testing.assert_close(back.early.float(), embedding.early, atol=0.01, rtol=0.001)
    assert len(embedding.to_bytes()) < 3_410_000


@pytest.mark.parametrize("damage", [lambda blob: blob[:-1], lambda blob: b"", lambda blob: b"\x08" + blob[1:]])
def test_a_damaged_blob_is_refused(damage: object) -> None:
    blob = Embedding(torch.zeros(256, 64, 64), torch.zeros(160, 64, 64), (256, 256)).to_bytes()
    assert callable(damage)
    with pytest.raises(CheckpointError):
        Embedding.from_bytes(damage(blob))


def test_an_embedding_in_int8_takes_half_the_bytes_and_comes_back_as_it_was_kept() -> None:
    exact = Embedding(torch.randn(256, 64, 64), 50 * torch.randn(160, 64, 64), (384, 512))
    kept = Int8Embedding.of(exact)
    blob = kept.to_bytes()
    back = Int8Embedding.from_bytes(blob).restored()
    assert len(blob) < 0.51 * len(exact.to_bytes())
    assert back.view_size == (384, 512)
    torch.testing.assert_close(back.embedding, kept.restored().embedding, rtol=0, atol=0)
    for name in ("embedding", "early"):
        there, given = getattr(back, name).float(), getattr(exact, name)
        step = given.abs().amax(dim=(1, 2), keepdim=True) / 127
        assert ((there - given).abs() <= 0.56 * step).all()
    with pytest.raises(CheckpointError, match="format"):
        Embedding.from_bytes(blob)
    with pytest.raises(CheckpointError, match="format"):
        Int8Embedding.from_bytes(exact.to_bytes())


def test_a_blob_of_another_shape_is_refused() -> None:
    blob = Embedding(torch.zeros(256, 32, 32), torch.zeros(160, 64, 64), (256, 256)).to_bytes()
    with pytest.raises(CheckpointError, match="shapes"):
        Embedding.from_bytes(blob)


def test_an_embedding_of_another_model_is_refused(predictor: Predictor) -> None:
    with pytest.raises(CheckpointError, match="768"):
        predictor.prepare(Embedding(torch.zeros(256, 64, 64), torch.zeros(768, 64, 64), (256, 256)))


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(),
        Prompt(points=((1.0, 1.0),), labels=()),
        Prompt(points=((1.0, 1.0),), labels=(-1,)),
        Prompt(points=((1.0, 1.0),) * (MAX_POINTS + 1), labels=(1,) * (MAX_POINTS + 1)),
        Prompt(box=(0.0, 0.0, float("nan"), 9.0)),
        Prompt(box=(0.0, 0.0, 1e39, 1e39)),
        Prompt(mask_hr=np.zeros((64, 64), np.float32)),
        Prompt(mask_hr=np.full((256, 256), np.nan, np.float32)),
    ],
    ids=["empty", "no label", "label -1", "too many points", "nan", "too large", "mask of wrong size", "mask of nan"],
)
def test_a_prompt_the_network_cannot_take_is_refused(
    predictor: Predictor, views: tuple[DecoderView, DecoderView], prompt: Prompt
) -> None:
    with pytest.raises(PromptError):
        predictor.decode([DecodeRequest(views[0], None, prompt)])


def test_what_auto_means_on_a_device_is_in_its_view_keys(base: BaseWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Precision.of("bfloat16/float32")
    monkeypatch.setattr("wsisam_model.predictor.choose_precision", lambda *_: chosen)
    predictor = Predictor(CONFIG, base, device="cpu", engine="torch")
    assert predictor.precision == "bfloat16/float32"
    assert predictor.key_prefix == f"lite_medsam:abababababab:{CONFIG.preprocessing}-torch-bf16"


def test_services_with_other_adapters_share_embeddings(base: BaseWeights, predictor: Predictor) -> None:
    """Adapters are beside the encoder: views of one store serve a set for one tissue and another for the rest."""
    frozen = Predictor(CONFIG, base, device="cpu", engine="torch")
    assert predictor.key_prefix == frozen.key_prefix
    image = np.random.default_rng(3).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    (ours,), (others,) = predictor.encode([image]), frozen.encode([image])
    assert torch.equal(ours.embedding, others.embedding)
    assert torch.equal(ours.early, others.early)


def test_view_keys_name_the_encoders_precision_only(base: BaseWeights) -> None:
    def prefix(**precision: Any) -> str:
        return Predictor(CONFIG, base, device="cpu", engine="torch", **precision).key_prefix

    plain = f"lite_medsam:abababababab:{CONFIG.preprocessing}"
    assert prefix() == prefix(precision="float32/bfloat16") == plain
    assert prefix(precision="bfloat16/float32") == f"{plain}-torch-bf16"


def test_reduced_precision_of_the_decoder_stays_near(
    base: BaseWeights, predictor: Predictor, prompts: Mapping[str, Prompt]
) -> None:
    embedding = Embedding(torch.randn(256, 64, 64), torch.randn(160, 64, 64), (256, 256))
    half = Predictor(CONFIG, base, device="cpu", engine="torch", precision="float32/bfloat16")
    answers = [
        each.decode([DecodeRequest(each.prepare(embedding), None, prompts["points"], frozen=True)])[0].logits
        for each in (half, predictor)
    ]
    assert np.abs(answers[0] - answers[1]).max() < 0.05 * np.abs(answers[1]).max() + 0.05


@pytest.mark.parametrize("wrong", [{"precision": "int8"}, {"engine": "magic"}, {"device": "abacus"}])
def test_an_unknown_choice_is_named(base: BaseWeights, wrong: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=next(iter(wrong.values()))):
        Predictor(CONFIG, base, **wrong)


def test_trained_prompt_vectors_serve_the_adapters_but_not_the_frozen_model(base: BaseWeights) -> None:
    torch.manual_seed(9)
    adapters = Adapters(Adapter(160), Adapter(160))
    state = dict(adapters.state_dict()) | {"prompt.point_embeddings.1.weight": torch.ones(1, 256)}
    branches = [{key[3:]: value for key, value in state.items() if key.startswith(part)} for part in ("hr.", "lr.")]
    trained = {"point_embeddings.1.weight": torch.ones(1, 256)}
    point = Prompt(points=((9.0, 9.0),), labels=(1,))
    E, X = torch.randn(256, 64, 64), torch.randn(160, 64, 64)
    answers = []
    for prompt in ({}, trained):
        predictor = Predictor(
            CONFIG, base, AdapterWeights("x", "", {}, *branches, prompt), device="cpu", engine="torch"
        )
        view = predictor.prepare(Embedding(E, X, (256, 256)))
        requests = [DecodeRequest(view, None, point, frozen=frozen) for frozen in (False, True)]
        answers.append(predictor.decode(requests))
    assert np.abs(answers[0][0].logits - answers[1][0].logits).max() > 1e-3
    np.testing.assert_array_equal(answers[0][1].logits, answers[1][1].logits)
