"""Prompts from the command line's texts and from GeoJSON files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from wsisam_service.commands.flags import UsageError
from wsisam_service.commands.prompt_texts import box_prompt, points_prompt, read_prompts


def feature(geometry: object, **properties: object) -> dict[str, object]:
    return {"type": "Feature", "id": "f1", "geometry": geometry, "properties": properties}


def written(folder: Path, document: object) -> Path:
    path = folder / "prompts.geojson"
    path.write_text(json.dumps(document))
    return path


def test_texts_become_prompts() -> None:
    assert box_prompt("1,2.5,3,4") == {"box": [1.0, 2.5, 3.0, 4.0]}
    assert points_prompt("1,2,1  3,4,0") == {"points": [[1.0, 2.0, 1.0], [3.0, 4.0, 0.0]]}


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,nan,4", "1 2 3 4"])
def test_bad_box_text_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="a box is"):
        box_prompt(text)


@pytest.mark.parametrize("text", ["", " ", "1,2", "1,2,x"])
def test_bad_points_text_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        points_prompt(text)


def test_areas_become_their_boxes_and_points_become_clicks(tmp_path: Path) -> None:
    area = {"type": "MultiPolygon", "coordinates": [[[[5, 1], [9, 3], [5, 7], [5, 1]]], [[[0, 2], [1, 2], [1, 3]]]]}
    clicks = {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}
    tumor = {"name": "Tumor", "color": [200, 0, 0]}
    path = written(
        tmp_path,
        {"type": "FeatureCollection", "features": [feature(area, classification=tumor), feature(clicks)]},
    )
    assert read_prompts(path) == [
        {"id": "f1", "box": (0.0, 1.0, 9.0, 7.0), "classification": tumor},
        {"id": "f1", "points": [(1.0, 2.0, 1), (3.0, 4.0, 1)]},
    ]


@pytest.mark.parametrize(
    "shape", [lambda f: f, lambda f: [f], lambda f: {"type": "FeatureCollection", "features": [f]}]
)
def test_every_form_that_qupath_writes_is_read(tmp_path: Path, shape: object) -> None:
    assert callable(shape)
    path = written(tmp_path, shape(feature({"type": "Point", "coordinates": [1, 2]})))
    assert len(read_prompts(path)) == 1


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"features": None},
        {"type": "Feature"},
        [None],
        feature({"type": "Polygon", "coordinates": []}),
        feature({"type": "Point", "coordinates": [1, math.nan]}),
        feature({"type": "Point", "coordinates": [1, 10**400]}),
        feature({"type": "Point", "coordinates": [1, 2]}) | {"properties": "x"},
        "text",
    ],
)
def test_a_file_without_objects_is_a_usage_error(tmp_path: Path, document: object) -> None:
    with pytest.raises(UsageError):
        read_prompts(written(tmp_path, document))


def test_a_missing_file_or_one_that_is_not_json_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "nowhere.geojson")
    path = tmp_path / "prompts.geojson"
    path.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_prompts(path)
