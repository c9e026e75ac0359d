"""CUDA's captured graphs: the choice of a shape, padding and fallbacks on the CPU with a stand-in for the capture, and
the same with real graphs where there is a device.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsisam_model.adapters import Adapters
from wsisam_model.checkpoints import AdapterWeights, load_base_weights
from wsisam_model.config import model_config
from wsisam_model.decoder_batch import DecodeRequest, collate, scatter, to_host
from wsisam_model.engines import cuda_engine
from wsisam_model.engines.cuda_engine import CudaEngine, DecodeShape, bucket, decode_shape
from wsisam_model.engines.precision import Precision
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.fast_decoder import DecoderOutput, DecoderView, FastDecoder, Layout
from wsisam_model.golden import Golden
from wsisam_model.image_encoder import TinyViT
from wsisam_model.network import ViewFeatures, WsiSam
from wsisam_model.parity import ViewParity
from wsisam_model.predictor import Predictor
from wsisam_model.prompts import Prompt
from wsisam_model.quality import stability
from wsisam_model.registry import base_weights_path

CONFIG = model_config("lite_medsam")
KINDS = ("frozen", "adapted", "dual")
CASES = ["A/box", "A/boxes", "A/point", "A/posneg", "A/points_box", "B/box", "B/point"]
BOX = Prompt(box=(40.0, 50.0, 170.0, 200.0))
FAST_LOGITS = 1e-2
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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


class Uncaptured:
    """Stands for `Captured` where there is no device: runs the function anew in each replay."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], *_: Any) -> None:
        self.function, self.inputs = function, inputs

    def replay(self) -> tuple[Tensor, ...]:
        return self.function(*self.inputs)


class Striped(nn.Module):
    """An encoder that takes no time: E and X of a view are its mean."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=(1, 2, 3))[:, None, None, None]
        return mean.expand(-1, 256, 64, 64) + 1, mean.expand(-1, 8, 64, 64) + 2


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=[gpu, needs_cuda])])
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.backends.cudnn.allow_tf32 = False  # as a predictor does
    return torch.device(request.param)


@pytest.fixture(scope="module")
def plain(device: torch.device, random_network: WsiSam, random_adapters: Adapters) -> TorchEngine:
    """Random weights, in float64 on the CPU, where rounding hides nothing."""
    decoder = copy.deepcopy(FastDecoder(random_network, random_adapters))
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return TorchEngine(Striped(), decoder.to(device, dtype), device, Precision.of("float32"))  # type: ignore[arg-type]


@pytest.fixture
def engine(plain: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> CudaEngine:
    if plain.device.type == "cpu":
        monkeypatch.setattr(cuda_engine, "Captured", Uncaptured)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return CudaEngine(plain)


@pytest.fixture(scope="module")
def prepared(plain: TorchEngine, random_views: tuple[ViewFeatures, ViewFeatures]) -> list[DecoderView]:
    like = plain.decoder.position
    return [
        plain.decoder.prepare(view.embedding.to(like), view.early.to(like), (256, 256))
        for view in (*random_views, random_views[0])
    ]


def requests_of(kind: str, count: int, views: Sequence[DecoderView], prompts: Mapping[str, Prompt]) -> list[Any]:
    """Requests on alternating views, with boxes that differ, every third with points."""
    x, y = torch.randint(10, 100, (2, count), generator=torch.Generator().manual_seed(count)).tolist()
    return [
        DecodeRequest(
            views[index % 2],
            views[1 + index % 2] if kind == "dual" else None,
            prompts["points"] if index % 3 == 2 else Prompt(box=(x[index], y[index], x[index] + 90.0, y[index] + 70.0)),
            frozen=kind == "frozen",
        )
        for index in range(count)
    ]


def assert_same(found: DecoderOutput, expected: DecoderOutput) -> None:
    tolerance = 1e-9 if expected.iou.dtype == torch.float64 else 1e-3
    for name, one, other in zip(expected._fields, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_all_sizes_answer_as_eager(
    engine: CudaEngine, plain: TorchEngine, prepared: list[DecoderView], prompts: Mapping[str, Prompt], kind: str
) -> None:
    # Small ones again after large ones: their rooms hold what others left, their memory is shared.
    counts = (3, 1, 2) if plain.device.type == "cpu" else (3, 1, 9, 64, 2, 33, 3, 64)
    for count in counts:
        batch = collate(plain.decoder, requests_of(kind, count, prepared, prompts), CONFIG)
        expected = DecoderOutput(*(tensor.clone() for tensor in plain.run(batch)))
        assert_same(engine.run(batch), expected)
    assert all(engine._graphs.values())
    assert {shape.prompts for shape in engine._graphs if isinstance(shape, DecodeShape)} == {
        bucket(count, cuda_engine.DECODE_SIZES) for count in counts
    }


def test_shapes_of_as_many_rows_share_room(
    engine: CudaEngine, plain: TorchEngine, prepared: list[DecoderView], prompts: Mapping[str, Prompt]
) -> None:
    for kind, count in (("dual", 1), ("adapted", 2), ("frozen", 2)):
        engine.run(collate(plain.decoder, requests_of(kind, count, prepared, prompts), CONFIG))
    starts = {id(graph.inputs[2]) for graph in engine._graphs.values() if graph is not None}
    assert len(engine._graphs) == 3
    assert len(starts) == 1


def test_an_answer_survives_the_next_replay(
    engine: CudaEngine, plain: TorchEngine, prepared: list[DecoderView], prompts: Mapping[str, Prompt]
) -> None:
    answers = []
    for box in ((20.0, 30.0, 120.0, 130.0), (100.0, 90.0, 220.0, 200.0)):
        requests = [DecodeRequest(*prepared[:2], Prompt(box=box))]
        batch = collate(plain.decoder, requests, CONFIG)
        answers += scatter(
            batch, requests, to_host(engine.run(batch), batch.layout), lambda logits, _: stability(logits), for_each=map
        )
    again = [answer.logits.copy() for answer in answers]
    assert abs(again[0] - again[1]).max() > 0.1
    requests = [DecodeRequest(*prepared[:2], Prompt(box=(20.0, 30.0, 120.0, 130.0)))]
    batch = collate(plain.decoder, requests, CONFIG)
    (expected,) = scatter(batch, requests, to_host(plain.run(batch), batch.layout), lambda logits, _: stability(logits))
    assert abs(again[0] - expected.logits).max() < 1e-3


@pytest.mark.parametrize("prompt", ["mask", "masks and point", "many points"])
def test_rare_prompts_run_eagerly(
    engine: CudaEngine, plain: TorchEngine, prepared: list[DecoderView], prompts: Mapping[str, Prompt], prompt: str
) -> None:
    batch = collate(plain.decoder, [DecodeRequest(*prepared[:2], prompts[prompt])], CONFIG)
    assert_same(engine.run(batch), plain.run(batch))
    assert engine._graphs == {}


@pytest.mark.parametrize("count", [1, 3])
def test_graphs_encode_as_eager(engine: CudaEngine, plain: TorchEngine, count: int) -> None:
    images = torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(count))
    E, X = engine.encode(images)
    expected = plain.encode(images)
    engine.encode(torch.zeros(count, 3, 256, 256))
    torch.testing.assert_close(E, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(X, expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not capturable")])
def test_what_cannot_be_captured_runs_eagerly_and_is_not_tried_again(
    engine: CudaEngine,
    prepared: list[DecoderView],
    prompts: Mapping[str, Prompt],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    tried, plain = [], engine.plain

    def fail(*_: Any) -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr(cuda_engine, "Captured", fail)
    images = torch.rand(2, 3, 256, 256)
    batch = collate(plain.decoder, requests_of("dual", 2, prepared, prompts), CONFIG)
    for _ in range(2):
        assert torch.equal(engine.encode(images)[0], plain.encode(images)[0])
        assert_same(engine.run(batch), plain.run(batch))
    assert len(tried) == 2


def on_cuda(network: WsiSam, adapters: Adapters, precision: str) -> TorchEngine:
    torch.manual_seed(5)
    torch.backends.cudnn.allow_tf32 = False
    encoder = TinyViT(256).requires_grad_(False)
    encoder.prepare_for_inference()
    decoder = copy.deepcopy(FastDecoder(network, adapters)).float().cuda()
    return TorchEngine(encoder.cuda(), decoder, torch.device("cuda"), Precision.of(precision))


@gpu
@needs_cuda
@pytest.mark.parametrize(
    ("precision", "bounds"), [("float32", (1e-3, 1e-4)), ("float16", (0.05, 0.05)), ("bfloat16", (0.3, 0.05))]
)
def test_graphs_of_the_real_network_are_the_eager_numbers(
    random_network: WsiSam,
    random_adapters: Adapters,
    random_views: tuple[ViewFeatures, ViewFeatures],
    precision: str,
    bounds: tuple[float, float],
) -> None:
    """A batch that fills its graph in part takes other kernels than it takes alone: lower precisions round apart.
    `bounds` are of E and X, and of the logits as a part of the largest one.
    """
    plain = on_cuda(random_network, random_adapters, precision)
    engine = CudaEngine(plain)
    images = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(6))
    for one, other in zip(engine.encode(images), plain.encode(images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bounds[0])
    views = []
    with torch.inference_mode(), plain.autocast(plain.precision.decoder):
        for view in (*random_views, random_views[0]):
            embedding, early = view.embedding.float().cuda(), view.early.float().cuda()
            views.append(plain.decoder.prepare(embedding, early, (256, 256)))
    with torch.inference_mode():
        requests = [DecodeRequest(views[row % 2], views[1 + row % 2], BOX) for row in range(3)]
        batch = collate(plain.decoder, requests, CONFIG)
    found, expected = engine.run(batch), plain.run(batch)
    assert None not in engine._graphs.values()
    span = float(expected.token_logits.float().abs().max())
    error = float((found.token_logits.float() - expected.token_logits.float()).abs().max())
    assert error <= bounds[1] * span


@gpu
@needs_cuda
def test_a_capture_bears_other_threads_on_the_device(random_network: WsiSam, random_adapters: Adapters) -> None:
    engine = CudaEngine(on_cuda(random_network, random_adapters, "float32"))
    begun, done = threading.Event(), threading.Event()

    def copy_out() -> None:
        """As a store's thread does with an embedding."""
        tensor = torch.ones(256, 64, 64, device="cuda")
        while not done.is_set():
            tensor.to("cpu", torch.float16)
            begun.set()

    thread = threading.Thread(target=copy_out)
    thread.start()
    try:
        assert begun.wait(60)
        for count in (1, 2, 4):
            engine.encode(torch.zeros(count, 3, 256, 256))
    finally:
        done.set()
        thread.join()
    assert None not in engine._graphs.values()


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "parity" / "golden.npz")


@pytest.fixture(scope="module")
def parity(golden: Golden) -> dict[str, ViewParity]:
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    base = load_base_weights(base_weights_path(CONFIG), CONFIG)
    predictor = Predictor(CONFIG, base, adapters, device="cuda", precision="float32")
    assert (predictor.engine, predictor.warnings) == ("cuda-graphs", ())
    return {view: ViewParity(predictor, golden, view) for view in golden.views()}


@gpu
@needs_cuda
def test_graphs_encode_as_golden(parity: dict[str, ViewParity]) -> None:
    assert [row for view in parity.values() for row in view.view_rows() if not row.passed] == []


@gpu
@needs_cuda
@pytest.mark.parametrize("case", CASES)
def test_graphs_decode_as_golden(parity: dict[str, ViewParity], golden: Golden, case: str) -> None:
    """The HR mask alone, with adapters and without; `fast_rows` asks for LR masks, which no graph makes."""
    view = parity[case[0]]
    hr, lr = view.predictor.prepare(view.hr), view.predictor.prepare(view.lr)
    for output, wide in (("hr_final", lr), ("plain_hr", None)):
        requests = [DecodeRequest(hr, wide, prompt, frozen=wide is None) for prompt in golden.prompts(case)]
        logits = np.stack([answer.logits for answer in view.predictor.decode(requests)])
        # SAM's own masks have an axis of their own in the golden vectors, fused ones do not.
        assert golden.error(f"{case}/out/{output}", logits[:, 0] if wide is not None else logits) <= FAST_LOGITS


@gpu
@needs_cuda
@pytest.mark.parametrize("case", [*CASES, "A/box_multi", "A/mask_only", "A/mask_point"])
def test_what_no_graph_holds_is_as_golden(parity: dict[str, ViewParity], case: str) -> None:
    assert [row for row in parity[case[0]].fast_rows(case) if not row.passed] == []
