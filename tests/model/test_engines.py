"""Every engine against the golden vectors, and what happens where an engine cannot be had."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wsisam_model.checkpoints import AdapterWeights, BaseWeights, load_base_weights
from wsisam_model.config import model_config
from wsisam_model.decoder_batch import DecodeRequest
from wsisam_model.engines.choice import choose_precision
from wsisam_model.engines.precision import Precision
from wsisam_model.errors import ModelError
from wsisam_model.fast_decoder import ViewTensors
from wsisam_model.golden import Golden
from wsisam_model.image_encoder import TinyViT
from wsisam_model.image_encoder.tiny_vit import EXACT_MODULES
from wsisam_model.parity import ViewParity
from wsisam_model.predictor import Predictor
from wsisam_model.prompts import Prompt
from wsisam_model.registry import base_weights_path

openvino = pytest.importorskip("openvino", reason="needs the extra wsisam[fast]")

from wsisam_model.engines import converted, openvino_engine  # noqa: E402 # they import openvino

CONFIG = model_config("lite_medsam")
COMPILED = ["A/box", "A/boxes", "A/point", "A/posneg", "A/points_box", "B/box", "B/point"]
EAGER = ["A/box_multi", "A/mask_only", "A/mask_point"]
BOX = Prompt(box=(40.0, 50.0, 170.0, 200.0))


@pytest.fixture(scope="module")
def base() -> BaseWeights:
    return load_base_weights(base_weights_path(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "parity" / "golden.npz")


@pytest.fixture(scope="module")
def compiled(base: BaseWeights, golden: Golden) -> Predictor:
    """With the user's folder of converted networks: the first run on a machine converts, which takes a minute."""
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    predictor = Predictor(CONFIG, base, adapters, device="cpu", engine="openvino", precision="float32")
    assert (predictor.engine, predictor.warnings) == ("openvino", ())
    return predictor


@pytest.fixture(scope="module")
def views(compiled: Predictor, golden: Golden) -> dict[str, ViewParity]:
    return {view: ViewParity(compiled, golden, view) for view in golden.views()}


def test_openvino_encodes_as_golden(views: dict[str, ViewParity]) -> None:
    assert [row for parity in views.values() for row in parity.view_rows() if not row.passed] == []


@pytest.mark.parametrize("case", COMPILED + EAGER)
def test_openvino_decodes_as_golden(views: dict[str, ViewParity], case: str) -> None:
    assert [row for row in views[case[0]].fast_rows(case) if not row.passed] == []


def test_a_box_is_decoded_by_the_compiled_networks_alone(
    compiled: Predictor, views: dict[str, ViewParity], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("run", "fuse"):
        monkeypatch.setattr(f"wsisam_model.engines.torch_engine.TorchEngine.{step}", None)
    hr, lr = (compiled.prepare(embedding) for embedding in (views["A"].hr, views["A"].lr))
    compiled.decode(
        [DecodeRequest(hr, lr, BOX), DecodeRequest(hr, None, BOX), DecodeRequest(hr, None, BOX, frozen=True)]
    )
    with pytest.raises(TypeError):
        compiled.decode([DecodeRequest(hr, lr, BOX, lr_mask=True)])


def test_the_frozen_network_is_compiled_beside_adapters_when_it_is_first_asked_for(
    base: BaseWeights, views: dict[str, ViewParity], golden: Golden
) -> None:
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    predictor = Predictor(CONFIG, base, adapters, device="cpu", engine="openvino")
    assert isinstance(predictor._engine, openvino_engine.OpenVinoEngine)
    hr = predictor.prepare(views["A"].hr)
    compiled = []
    for frozen in (False, True, True):
        predictor.decode([DecodeRequest(hr, None, BOX, frozen=frozen)])
        compiled.append(len(predictor._engine._decodes))
    assert compiled == [2, 3, 3]
    alone = Predictor(CONFIG, base, device="cpu", engine="openvino")
    assert isinstance(alone._engine, openvino_engine.OpenVinoEngine)
    assert len(alone._engine._decodes) == 1


def test_the_encoders_weights_are_held_once(compiled: Predictor) -> None:
    assert all(parameter.is_meta for parameter in compiled._engine.plain.encoder.parameters())


def test_a_box_on_one_view_is_decoded_as_torch_does(
    compiled: Predictor, views: dict[str, ViewParity], base: BaseWeights, golden: Golden
) -> None:
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    plain = Predictor(CONFIG, base, adapters, device="cpu", engine="torch")
    answers = [
        predictor.decode([DecodeRequest(predictor.prepare(views["A"].hr), None, BOX)])[0]
        for predictor in (compiled, plain)
    ]
    assert abs(answers[0].logits - answers[1].logits).max() < 1e-3


def test_an_embedding_survives_the_next_encode(compiled: Predictor, golden: Golden) -> None:
    (first,) = compiled.encode([golden.image("A/hr_view")])
    kept = first.embedding.clone(), first.early.clone()
    compiled.encode([golden.image("A/lr_view")])
    assert torch.equal(first.embedding, kept[0])
    assert torch.equal(first.early, kept[1])


def test_answers_survive_the_next_decodes(compiled: Predictor, views: dict[str, ViewParity]) -> None:
    """Of one call: the next prompt is decoded, into the same buffers, before the last one's answer is made."""
    hr, lr = (compiled.prepare(embedding) for embedding in (views["A"].hr, views["A"].lr))
    requests = [
        DecodeRequest(hr, lr, Prompt(box=(x, 50.0, x + 100, 200.0)), frozen=frozen)
        for frozen in (False, True)
        for x in (20.0, 60.0, 140.0)
    ]
    for answer, request in zip(compiled.decode(requests), requests, strict=True):
        (alone,) = compiled.decode([request])
        assert abs(answer.logits - alone.logits).max() < 1e-5
        assert abs(answer.sam_logits_hr - alone.sam_logits_hr).max() < 1e-5
        assert abs(answer.predicted_iou - alone.predicted_iou).max() < 1e-5


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("no such operation")


@pytest.mark.parametrize("named", ["auto", "openvino"])
def test_a_failed_conversion_leaves_torch_and_a_warning(
    base: BaseWeights, monkeypatch: pytest.MonkeyPatch, named: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("openvino.convert_model", _fail)
    predictor = Predictor(CONFIG, base, device="cpu", engine=named, engine_cache=tmp_path)
    assert predictor.engine == "torch"
    assert "no such operation" in predictor.warnings[0]


def test_a_missing_package_leaves_torch_and_a_warning(base: BaseWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsisam_model.engines.openvino_engine", None)
    predictor = Predictor(CONFIG, base, device="cpu")
    assert predictor.engine == "torch"
    assert "not installed" in predictor.warnings[0]


def test_a_number_format_that_the_cpu_lacks_is_computed_by_torch(
    base: BaseWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "computes_in", lambda precision: False)
    predictor = Predictor(CONFIG, base, device="cpu", precision="bfloat16/float32")
    assert (predictor.engine, predictor.precision) == ("torch", "bfloat16/float32")
    assert "bfloat16" in predictor.warnings[0]


def test_a_lower_format_is_left_to_the_compiled_networks(
    base: BaseWeights, golden: Golden, compiled: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every CPU, so with float32 under the name of bfloat16: the weights are converted as they were loaded, what is
    compiled is told the format, views are kept in it, and what is left to torch is computed in float32.
    """
    monkeypatch.setattr(openvino_engine, "computes_in", lambda precision: True)
    monkeypatch.setitem(openvino_engine._HINTS, torch.bfloat16, "f32")
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    lower = Predictor(CONFIG, base, adapters, device="cpu", engine="openvino", precision="bfloat16")
    assert (lower.engine, lower.precision, lower.warnings) == ("openvino", "bfloat16/bfloat16", ())
    assert lower.key_prefix.endswith("-openvino-bf16")
    images = [golden.image(f"A/{branch}_view") for branch in ("hr", "lr")]
    embeddings, exact_ones = lower.encode(images), compiled.encode(images)
    for embedding, exact_one in zip(embeddings, exact_ones, strict=True):
        np.testing.assert_array_equal(embedding.embedding, exact_one.embedding)
    kept = [lower.prepare(embedding) for embedding in embeddings]
    exact = [compiled.prepare(embedding) for embedding in exact_ones]
    asked = {"lr_mask": True}, {"multimask": True}, {}
    answers = [lower.decode([DecodeRequest(*kept, BOX, **how)])[0] for how in asked]
    (fused,) = (fused for fused in kept[0].fused.values() if fused.dtype == torch.bfloat16)
    exact_fused = compiled._engine.fuse(exact[0], "hr")
    assert abs(fused - exact_fused).max() < 0.02 * abs(exact_fused).max()
    for view, exact_view in zip(kept, exact, strict=True):
        assert 2 * sum(tensor.nbytes for tensor in view.tensors) == sum(part.nbytes for part in exact_view.tensors)
        for part, exact_part in zip(view.tensors, exact_view.tensors, strict=True):
            assert abs(part - exact_part).max() < 0.01 * abs(exact_part).max()
        exact_view.tensors = ViewTensors(*(part.float() for part in view.tensors))
    exact[0].fused = {compiled._engine.plain.decoder.adapter("hr"): fused.float()}
    for how, answer in zip(asked, answers, strict=True):
        (same,) = compiled.decode([DecodeRequest(*exact, BOX, **how)])
        # Not to the bit: torch's products round by where their operands happen to lie.
        np.testing.assert_allclose(answer.logits, same.logits, rtol=0, atol=1e-3)
        assert (answer.lr_logits is None) == (same.lr_logits is None) == ("lr_mask" not in how)
        if answer.lr_logits is not None and same.lr_logits is not None:
            np.testing.assert_allclose(answer.lr_logits, same.lr_logits, rtol=0, atol=1e-3)


@pytest.mark.skipif(not openvino_engine.computes_in(torch.bfloat16), reason="this CPU has no bfloat16")
def test_bfloat16_stays_near_the_golden_vectors(base: BaseWeights, golden: Golden) -> None:
    """Its tolerances: 4 % of the spread of E (4.5 % would come of no `EXACT_MODULES`), the frozen SAM's logits within 1
    and its masks of boxes to an IoU of 0.96, fused logits within 2.5 where they spread by 7 to 12. What masks of the
    golden adapters agree in says little, since those are random; docs/PERFORMANCE.md has what is lost in Dice.
    """
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    predictor = Predictor(CONFIG, base, adapters, device="cpu", engine="openvino", precision="bfloat16")
    assert (predictor.engine, predictor.precision) == ("openvino", "bfloat16/bfloat16")
    for view in golden.views():
        parity = ViewParity(predictor, golden, view)
        for branch, embedding in (("hr", parity.hr), ("lr", parity.lr)):
            key = f"{view}/inter/{branch}_image_embedding"
            exact, stride = golden.array(key), golden.stride(key)
            error = embedding.embedding.numpy()[:, ::stride, ::stride] - exact
            assert np.sqrt((error**2).mean()) < 0.04 * exact.std()
        hr, lr = predictor.prepare(parity.hr), predictor.prepare(parity.lr)
        for case in (case for case in golden.cases(view) if case in COMPILED):
            prompts = golden.prompts(case)
            fused = predictor.decode([DecodeRequest(hr, lr, prompt) for prompt in prompts])
            frozen = predictor.decode([DecodeRequest(hr, None, prompt, frozen=True) for prompt in prompts])
            logits = np.stack([answer.logits for answer in frozen])
            assert golden.error(f"{case}/out/plain_hr", logits) < 1
            assert "box" not in case or golden.mask_iou(f"{case}/out/plain_hr", logits) > 0.96
            assert golden.error(f"{case}/out/hr_final", np.stack([answer.logits[0] for answer in fused])) < 2.5


@pytest.mark.skipif(not openvino_engine.computes_in(torch.bfloat16), reason="this CPU has no bfloat16")
def test_the_first_start_of_a_machine_draws_as_those_that_follow(
    base: BaseWeights, golden: Golden, tmp_path: Path
) -> None:
    adapters = AdapterWeights("golden", "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    drawn = []
    for _ in range(2):  # the one converts its networks, the other reads them
        predictor = Predictor(
            CONFIG, base, adapters, device="cpu", engine="openvino", precision="bfloat16", engine_cache=tmp_path
        )
        assert predictor.warnings == ()
        parity = ViewParity(predictor, golden, golden.views()[0])
        hr, lr = predictor.prepare(parity.hr), predictor.prepare(parity.lr)
        (answer,) = predictor.decode([DecodeRequest(hr, lr, Prompt(box=(60.0, 60.0, 180.0, 190.0)))])
        drawn.append(answer.logits)
    assert np.array_equal(*drawn)


@pytest.fixture
def convert() -> Callable[[], Any]:
    """Converts a small network; `calls` counts how often."""
    calls: list[int] = []

    def convert_linear() -> Any:
        calls.append(1)
        return openvino.convert_model(nn.Linear(2, 3), example_input=torch.zeros(1, 2))

    convert_linear.calls = calls  # type: ignore[attr-defined]
    return convert_linear


def test_a_network_is_converted_once_on_a_machine(tmp_path: Path, convert: Any) -> None:
    results = [converted.read_or_convert(tmp_path / "new", "linear", convert) for _ in range(2)]
    assert len(convert.calls) == 1
    assert [warning for _, warning in results] == [None, None]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["linear.bin", "linear.xml"]


def test_networks_that_nobody_reads_any_more_are_dropped(tmp_path: Path, convert: Any) -> None:
    used, unused = (converted.name_of("encoder", [("weight", torch.tensor([value]))], [(1,)]) for value in (1.0, 2.0))
    for name in (used, unused):
        converted.read_or_convert(tmp_path, name, convert)
    (tmp_path / "draft-0123456789abcdef.bin").touch()
    (tmp_path / "somebody-elses.bin").touch()
    long_ago = time.time() - (converted.UNUSED_DAYS + 1) * 86400
    for file in tmp_path.iterdir():
        os.utime(file, (long_ago, long_ago))
    converted.read_or_convert(tmp_path, used, convert)
    converted.read_or_convert(tmp_path, "linear", convert)
    names = {f"{name}.{end}" for name in (used, "linear") for end in ("bin", "xml")}
    assert {file.name for file in tmp_path.iterdir()} == names | {"somebody-elses.bin"}


@pytest.mark.parametrize("damage", ["linear.xml", "linear.bin"])
def test_a_damaged_file_is_converted_anew(tmp_path: Path, convert: Any, damage: str) -> None:
    converted.read_or_convert(tmp_path, "linear", convert)
    (tmp_path / damage).write_bytes(b"")
    converted.read_or_convert(tmp_path, "linear", convert)
    assert len(convert.calls) == 2


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path, convert: Any) -> None:
    (tmp_path / "file").write_text("not a folder")
    model, warning = converted.read_or_convert(tmp_path / "file", "linear", convert)
    assert len(model.outputs) == 1
    assert warning is not None
    assert "could not be kept" in warning


@pytest.mark.parametrize("kept", [True, False])
def test_only_modules_that_are_to_be_exact_are_marked_kept_or_not(tmp_path: Path, kept: bool) -> None:
    network, folder = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), tmp_path / "engines"
    if not kept:
        folder.write_text("not a folder")
    model, warning = converted.read_or_convert(
        folder, "two", lambda: openvino.convert_model(network, example_input=torch.zeros(1, 2)), exact=["1"]
    )
    assert (warning is None) == kept
    marked = {operation.get_friendly_name(): any(operation.get_rt_info().keys()) for operation in model.get_ops()}
    assert {name: mark for name, mark in marked.items() if name.startswith("__module")} == {
        "__module.0/aten::linear/MatMul": False,
        "__module.0/aten::linear/Add": False,
        "__module.1/aten::linear/MatMul": True,
        "__module.1/aten::linear/Add": True,
    }


def test_a_network_with_exact_modules_has_a_file_of_its_own() -> None:
    tensors = [("weight", torch.zeros(1))]
    assert len({converted.name_of("encoder", tensors, [(1,)], exact) for exact in ((), ("a",), ("a", "b"))}) == 3


def test_the_exact_modules_are_the_encoders() -> None:
    encoder = TinyViT(256)
    assert all(any(True for _ in encoder.get_submodule(name).parameters()) for name in EXACT_MODULES)


def test_the_name_of_a_converted_network_tells_its_weights_apart() -> None:
    def name(values: Sequence[float]) -> str:
        return converted.name_of("part", [("weight", torch.tensor(values))], [(1,)])

    assert name([1.0, 2.0]) == name([1.0, 2.0])
    assert name([1.0, 2.0]) != name([1.0, 2.5])


@pytest.mark.parametrize(
    ("name", "shown"),
    [("bfloat16", "bfloat16/bfloat16"), ("float16/float32", "float16/float32")],
)
def test_precision_is_one_format_or_two(name: str, shown: str) -> None:
    assert str(Precision.of(name)) == shown


@pytest.mark.parametrize(
    ("asked", "native", "chosen"),
    [
        (("auto", "auto", "cuda", "vit_b"), False, "float16"),
        (("auto", "auto", "cpu", "lite_medsam"), True, "bfloat16"),
        (("auto", "openvino", "cpu", "lite_medsam"), True, "bfloat16"),
        (("auto", "auto", "cpu", "lite_medsam"), False, "float32"),
        (("auto", "torch", "cpu", "lite_medsam"), True, "float32"),
        (("auto", "auto", "cpu", "vit_b"), True, "float32"),
        (("float32", "auto", "cuda", "lite_medsam"), True, "float32"),
    ],
)
def test_auto_is_the_fastest_precision_that_passed_the_gate(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[str, str, str, str], native: bool, chosen: str
) -> None:
    monkeypatch.setattr(openvino_engine, "computes_in", lambda precision: native)
    name, engine, device, model = asked
    assert choose_precision(name, engine, torch.device(device), model_config(model)) == Precision.of(chosen)


@pytest.mark.parametrize("name", ["int4", "float32/float32/float32", ""])
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="precision"):
        Precision.of(name)
