"""`wsisam train` as it is typed, with the real network: few objects change the shipped set a little and leave its
predicted IoU alone; a set from scratch brings its own. What their files and `wsisam evaluate` say of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wsisam_model.checkpoints import file_sha256, packaged_lite_medsam
from wsisam_model.engines import Engine
from wsisam_model.engines.choice import choose_engine
from wsisam_model.registry import SHIPPED_WEIGHTS
from wsisam_service.cli import main


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, tissue: npt.NDArray[np.uint8]) -> Path:
    """Two discs outlined on the tissue, of 1 µm a pixel."""
    folder = tmp_path_factory.mktemp("annotated")
    labels = np.zeros(tissue.shape[:2], np.uint16)
    rows, columns = np.indices(labels.shape)
    for number, (x, y) in enumerate(((150, 160), (330, 300)), 1):
        labels[np.hypot(columns - x, rows - y) < 40] = number
    for name, pixels in (("images", tissue), ("masks", labels)):
        (folder / name).mkdir()
        Image.fromarray(pixels).save(folder / name / "a.png")
    entry = {"image": "images/a.png", "mask": "masks/a.png", "patient": "a"}
    (folder / "meta.json").write_text(json.dumps({"microns_per_pixel": 1.0, "images": [entry]}))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


def train(annotated: Path, cache: Path, output: Path, start: str, *more: str) -> int:
    """The exit code of three steps."""
    command = ["train", "--data", str(annotated), "--start", start, "--engine", "torch", "--cache", str(cache)]
    return main([*command, "--set", "branches=hr", "steps=3", "learning_rate=1e-3", "-o", str(output), *more])


@pytest.fixture(scope="module")
def ours(annotated: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of adapters that goes on from the shipped ones on the two discs."""
    path = tmp_path_factory.mktemp("adapters") / "ours.safetensors"
    assert train(annotated, cache, path, "default") == 0
    return path


def test_few_objects_leave_the_predicted_iou_of_the_set_they_start_from(ours: Path) -> None:
    shipped, trained = load_file(SHIPPED_WEIGHTS / "lite_medsam-default.safetensors"), load_file(ours)
    assert trained.keys() == shipped.keys()
    kept = {key for key in trained if key.startswith("iou.") and trained[key].equal(shipped[key])}
    assert kept == {"iou.weight", "iou.bias"}
    assert not trained["hr.hf_token.weight"].equal(shipped["hr.hf_token.weight"])
    assert len(trained["tissue.looks"]) < len(shipped["tissue.looks"]), "the looks are those of the new views"


def test_a_set_from_scratch_brings_its_own_predicted_iou(annotated: Path, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "fresh.safetensors"
    assert train(annotated, cache, path, "fresh") == 0
    fresh = load_file(path)
    assert fresh["iou.weight"].shape == (3, 9)
    assert fresh["iou.weight"].abs().sum(dim=1).min() > 0, "boxes, one click and several: each has weights"


def test_training_computes_in_float32_where_the_predictor_does_not(
    ours: Path, annotated: Path, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lower.safetensors"
    assert train(annotated, cache, path, "default", "--precision", "bfloat16") == 0
    name = "hr.hf_token.weight"
    start = load_file(SHIPPED_WEIGHTS / "lite_medsam-default.safetensors")[name]
    lower, full = (load_file(file)[name] - start for file in (path, ours))
    assert torch.cosine_similarity(lower, full) > 0.5, "much the same steps, on views encoded in another format"


def test_a_set_serves_beside_the_shipped_one_on_the_tissue_it_was_trained_on(
    ours: Path, tissue: npt.NDArray[np.uint8], make_slide: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    slides = {"like": make_slide("like.tif", mpp=1.0), "green": make_slide("green.tif", tissue[..., [1, 0, 1]], 1.0)}
    flags = ["--box", "110,120,190,200", "--engine", "torch", "--own-adapters", str(ours)]
    drawn_by = {}
    for name, slide in slides.items():
        capsys.readouterr()
        assert main(["segment", str(slide), *flags]) == 0
        (feature,) = json.loads(capsys.readouterr().out)["features"]
        drawn_by[name] = feature["properties"]["metadata"]["adapters"]
    assert drawn_by == {"like": "ours", "green": "lite_medsam-default"}


def test_what_goes_on_from_a_set_says_so_and_has_its_licence(ours: Path, annotated: Path) -> None:
    shipped = SHIPPED_WEIGHTS / "lite_medsam-default.safetensors"
    with safe_open(shipped, "pt") as before, safe_open(ours, "pt") as after:
        old, new = before.metadata(), after.metadata()
    told = f"{annotated.name}/a; from lite_medsam-default (sha256 {file_sha256(shipped)}): {old['data']}"
    assert (new["data"], new["licence"]) == (told, old["licence"])


def test_a_finished_run_says_so_and_no_other_goes_on_from_it(
    ours: Path, annotated: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_file(ours)
    assert train(annotated, cache, ours, "default") == 0
    assert "finished already" in capsys.readouterr().out
    after = load_file(ours)
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert train(annotated, cache, ours, "open") == 2
    assert "checkpoint.pt was made of other data, start or base weights" in capsys.readouterr().err


def test_a_set_is_gone_on_from_on_its_own_base_alone(
    annotated: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(packaged_lite_medsam(), weights_only=True)
    state["mask_decoder.iou_token.weight"] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    flags = ("--weights", str(tmp_path / "other.pth"))
    assert train(annotated, cache, tmp_path / "x.safetensors", "default", *flags) == 2
    assert "base_sha256" in capsys.readouterr().err


def test_where_everything_is_held_out_there_is_nothing_to_train_on(
    annotated: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(annotated, cache, tmp_path / "x.safetensors", "default", "--hold-out", annotated.name) == 2
    assert "nothing is left to train on" in capsys.readouterr().err


def test_an_evaluation_says_what_its_adapters_have_seen(
    ours: Path, annotated: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--hold-out", annotated.name, "--kinds", "tight", "--clicks", "0", "--engine", "torch"]
    command = ["evaluate", "--data", str(annotated), *flags, "--cache", str(cache), "--adapters", str(ours)]
    assert main([*command, "-o", str(tmp_path)]) == 0
    told = f"ours was trained on {annotated.name}/a, as its file says"
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "report.md").read_text()


def test_an_evaluation_gives_a_set_of_ones_own_the_lr_view_that_it_uses(
    ours: Path, annotated: Path, cache: Path, tmp_path: Path
) -> None:
    with safe_open(ours, "pt") as file:
        metadata = file.metadata()
    state = load_file(ours)
    for layer in range(3):  # an LR token that says what the HR token does
        for name in ("weight", "bias"):
            state[f"lr.hf_mlp.layers.{layer}.{name}"] = state[f"hr.hf_mlp.layers.{layer}.{name}"].clone()
    save_file(state, tmp_path / "both.safetensors", metadata=metadata)
    flags = ["--hold-out", annotated.name, "--kinds", "tight", "--clicks", "0", "--engine", "torch"]
    command = ["evaluate", "--data", str(annotated), *flags, "--cache", str(cache)]
    assert main([*command, "--own-adapters", str(tmp_path / "both.safetensors"), "-o", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    dice = {score["variant"]: score["dice"] for score in scores if score["adapters"] == "both"}
    assert {"HR", "HR+LR"} <= dice.keys()
    assert dice["HR"] != dice["HR+LR"]


class Stopped(Exception):
    """Where the long work would begin."""


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_the_predictor_warns_of_is_told_before_anything_is_encoded(
    command: str, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_warning(*args: Any, **more: Any) -> tuple[Engine, Sequence[str]]:
        engine, _ = choose_engine(*args, **more)
        return engine, ["it is slower than it could be"]

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr("wsisam_model.predictor.choose_engine", with_a_warning)
    monkeypatch.setattr("wsisam_model.train.cache.EmbeddingCache.fill", stop)
    flags = ["--everything"] if command == "evaluate" else []
    with pytest.raises(Stopped):
        main(
            [
                command,
                "--data",
                str(annotated),
                "--engine",
                "torch",
                "--cache",
                str(tmp_path),
                "-o",
                str(tmp_path / "out"),
                *flags,
            ]
        )
    assert "warning: it is slower than it could be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "-o", "{folder}"], "{folder} is a folder"),
        (["train", "-o", "{file}/a.safetensors"], "cannot write to {file}"),
        (["train", "-o", "{folder}/a.safetensors", "--run", "{file}"], "cannot write to {file}"),
        (["evaluate", "-o", "{file}", "--everything"], "cannot write to {file}"),
        (["evaluate", "-o", "{folder}", "--everything", "--cache", "{file}"], "cannot write to {file}"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    arguments: list[str],
    told: str,
    annotated: Path,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for loader in ("wsisam_model.checkpoints.load_base_weights", "wsisam_model.registry.load_model"):
        monkeypatch.setattr(loader, lambda *_, **__: pytest.fail("the model is loaded"))
    places = {"file": tmp_path / "file", "folder": tmp_path}
    places["file"].touch()
    assert main([*(argument.format(**places) for argument in arguments), "--data", str(annotated)]) == 2
    error = capsys.readouterr().err
    assert told.format(**places) in error
    assert error.count("\n") == 1
