"""`wsisam train` as it is typed, with the real network: few objects change the shipped set a little and leave its
predicted IoU alone; a set from scratch brings its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

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


def train(annotated: Path, cache: Path, output: Path, start: str) -> dict[str, Tensor]:
    """The tensors that three steps end in."""
    command = ["train", "--data", str(annotated), "--start", start, "--engine", "torch", "--cache", str(cache)]
    assert main([*command, "--set", "branches=hr", "steps=3", "learning_rate=1e-3", "-o", str(output)]) == 0
    return load_file(output)


@pytest.fixture(scope="module")
def ours(annotated: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of adapters that goes on from the shipped ones on the two discs."""
    path = tmp_path_factory.mktemp("adapters") / "ours.safetensors"
    train(annotated, cache, path, "default")
    return path


def test_few_objects_leave_the_predicted_iou_of_the_set_they_start_from(ours: Path) -> None:
    shipped, trained = load_file(SHIPPED_WEIGHTS / "lite_medsam-default.safetensors"), load_file(ours)
    assert trained.keys() == shipped.keys()
    kept = {key for key in trained if key.startswith("iou.") and trained[key].equal(shipped[key])}
    assert kept == {"iou.weight", "iou.bias"}
    assert not trained["hr.hf_token.weight"].equal(shipped["hr.hf_token.weight"])
    assert len(trained["tissue.looks"]) < len(shipped["tissue.looks"]), "the looks are those of the new views"


def test_a_set_from_scratch_brings_its_own_predicted_iou(annotated: Path, cache: Path, tmp_path: Path) -> None:
    fresh = train(annotated, cache, tmp_path / "fresh.safetensors", "fresh")
    assert fresh["iou.weight"].shape == (3, 9)
    assert fresh["iou.weight"].abs().sum(dim=1).min() > 0, "boxes, one click and several: each has weights"


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
