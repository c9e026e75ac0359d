"""What CUDA's captured graphs are given, on CPU: the choice of a shape, the padding, and that neither shows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from wsisam_model.adapters import Adapters
from wsisam_model.config import model_config
from wsisam_model.decoder_batch import DecodeRequest, collate
from wsisam_model.engines.cuda_engine import DecodeShape, bucket, decode_shape, fill, source_rows, static_inputs
from wsisam_model.fast_decoder import DecoderInputs, DecoderView, FastDecoder, Layout, ViewTensors
from wsisam_model.network import ViewFeatures, WsiSam
from wsisam_model.prompts import Prompt

CONFIG = model_config("lite_medsam")


def layout(**rows: int) -> Layout:
    return Layout(**({"frozen": 0, "adapted": 0, "lr_masks": 0, "lr_sam": 0, "lr_tokens": 0, "masks": 1} | rows))


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (3, 4), (8, 8), (9, None)])
def test_a_bucket_is_the_smallest_that_holds(size: int, expected: int | None) -> None:
    assert bucket(size, (1, 2, 4, 8)) == expected


@pytest.mark.parametrize(
    ("rows", "tokens", "dense", "expected"),
    [
        (layout(adapted=3, lr_tokens=3), 8, False, DecodeShape(True, True, 4, 8)),
        (layout(adapted=2), 8, False, DecodeShape(True, False, 2, 8)),
        (layout(frozen=1), 9, False, DecodeShape(False, False, 1, 12)),
        (layout(adapted=1, lr_tokens=1), 8, True, None),
        (layout(adapted=1, lr_tokens=1), 16, False, None),
        (layout(adapted=1, lr_tokens=1, masks=4), 8, False, None),
        (layout(adapted=2, lr_tokens=1), 8, False, None),
        (layout(adapted=1, lr_sam=1), 8, False, None),
        (layout(frozen=1, adapted=1, lr_tokens=1), 8, False, None),
        (layout(adapted=65, lr_tokens=65), 8, False, None),
    ],
)
def test_only_common_batches_are_captured(rows: Layout, tokens: int, dense: bool, expected: DecodeShape | None) -> None:
    assert decode_shape(rows, tokens, dense) == expected


def test_lr_rows_follow_the_hr_rows_of_a_padded_batch() -> None:
    assert source_rows(DecodeShape(True, True, 4, 8), 3) == [0, 1, 2, 2, 3, 4, 5, 5]
    assert source_rows(DecodeShape(True, False, 2, 8), 1) == [0, 0]


@pytest.fixture(scope="module")
def decoder(random_network: WsiSam, random_adapters: Adapters) -> FastDecoder:
    return FastDecoder(random_network, random_adapters).double()


@pytest.fixture(scope="module")
def prepared(decoder: FastDecoder, random_views: tuple[ViewFeatures, ViewFeatures]) -> list[DecoderView]:
    return [decoder.prepare(view.embedding, view.early, (256, 256)) for view in random_views]


@pytest.mark.parametrize("kind", ["frozen", "adapted", "dual"])
def test_padding_to_a_captured_shape_changes_no_answer(
    decoder: FastDecoder, prepared: list[DecoderView], prompts: Mapping[str, Prompt], kind: str
) -> None:
    hr, lr = prepared
    requests = [
        DecodeRequest(view, wide if kind == "dual" else None, prompts[prompt], frozen=kind == "frozen")
        for view, wide, prompt in ((hr, lr, "box"), (hr, lr, "points"), (lr, hr, "box"))
    ]
    with torch.inference_mode():
        batch = collate(decoder, requests, CONFIG)
        alone = decoder(batch.layout, batch.inputs)
        shape = decode_shape(batch.layout, batch.inputs.tokens.shape[1], False)
        assert shape is not None
        assert shape.prompts == 4
        static = static_inputs(shape, batch.inputs)
        for tensor in static:
            tensor.fill_(1)  # what an earlier batch left
        fill(static, batch.inputs, source_rows(shape, 3))
        tokens, mask, *rest = static
        fused = list(rest[4]) if shape.adapted else []
        padded = decoder(shape.layout, DecoderInputs(tokens, mask, ViewTensors(*rest[:4]), None, fused, []))
    torch.testing.assert_close(padded.sam_masks[:3], alone.sam_masks, rtol=0, atol=1e-9)
    torch.testing.assert_close(padded.iou[:3], alone.iou, rtol=0, atol=1e-9)
    torch.testing.assert_close(padded.token_logits[: len(alone.token_logits)], alone.token_logits, rtol=0, atol=1e-9)
