"""`wsisam segment … -o out.dcm` on a folder of DICOM, with a numpy stand-in for the network."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dicom_objects import convert, pixels_inside, read_segments
from shapely.geometry import shape
from stand_ins import NumpyExecutor

from wsisam_service import assembly, cli
from wsisam_service.api.results import MAX_RESULT_VALUES
from wsisam_service.commands.slide_local import LocalSlide
from wsisam_service.settings import Settings

highdicom = pytest.importorskip("highdicom")

BOXES = ("--box", "600,400,760,520", "--box", "1000,200,1200,400")


@pytest.fixture(scope="module")
def folder(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dicom") / "slide"
    convert(slides / "tissue.tif", folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "load_backend", lambda settings: SimpleNamespace(warnings=()))
    monkeypatch.setattr(assembly, "build_executor", lambda settings, backend: NumpyExecutor())


def test_a_name_that_ends_in_dcm_gets_the_masks_as_a_segmentation(folder: str, tmp_path: Path) -> None:
    outlines, out = tmp_path / "out.geojson", tmp_path / "out.dcm"
    assert cli.main(["segment", folder, *BOXES, "--mpp", "1", "--simplify", "0", "-o", str(outlines)]) == 0
    assert cli.main(["segment", folder, *BOXES, "--mpp", "1", "-o", str(out)]) == 0
    features = json.loads(outlines.read_text())["features"]
    drawn = [pixels_inside(shape(feature["geometry"]), 768, 512, 2.0) for feature in features]
    assert np.array_equal(read_segments(out.read_bytes())[..., 0], drawn[0] | drawn[1])


def test_annotations_are_asked_for_by_their_format(folder: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["segment", folder, *BOXES, "--format", "dicom-ann"]) == 0
    (group,) = highdicom.ann.annread(io.BytesIO(capfdbinary.readouterr().out)).get_annotation_groups()
    assert group.number_of_annotations == 2


def test_no_object_is_written_that_lacks_a_prompt(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.dcm"
    assert cli.main(["segment", folder, *BOXES, "--box", "90000,0,90100,10", "-o", str(out)]) == 2
    assert not out.exists()
    assert "no object written" in capsys.readouterr().err


def test_an_object_of_ones_own_may_hold_more_than_a_server_takes(folder: str) -> None:
    corners = [[600, 400], [760, 400], [760, 520], [600, 400]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"measured": [0] * MAX_RESULT_VALUES},
    }
    body = {"kind": "ann", "geojson": {"type": "FeatureCollection", "features": [feature]}}
    with LocalSlide(Path(folder), Settings()) as slide:
        written = io.BytesIO(slide.result(body))
    (group,) = highdicom.ann.annread(written).get_annotation_groups()
    assert group.number_of_annotations == 1


def test_a_slide_that_is_not_dicom_gets_no_object(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.dcm"
    assert cli.main(["segment", str(slides / "tissue.tif"), *BOXES, "-o", str(out)]) == 2
    assert "no DICOM slide" in capsys.readouterr().err
