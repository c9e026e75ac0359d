"""Annotated tissue to samples: geometry, splits, prompts, and what is left out with which reason."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from wsisam_model.config import model_config
from wsisam_model.train.samples import KINDS, POINTS
from wsisam_service.annotated.annotation_checks import black_border_problem, edge_fit, shift_problem
from wsisam_service.annotated.annotations import objects_of_labels, read_geojson
from wsisam_service.annotated.dataset import load
from wsisam_service.errors import InvalidRequest
from wsisam_service.views import view_for_extent

CONFIG = model_config("lite_medsam")
Labels = npt.NDArray[np.uint16]
AROUND = ((slice(64, 192), 63), (63, slice(64, 192)), (slice(64, 192), 192), (192, slice(64, 192)))
"""Pixels of the LR view just beyond each border of the HR view; white outside the image."""


def discs() -> tuple[npt.NDArray[np.uint8], Labels]:
    """A pink picture with violet discs, and their labels; the last disc is cut by the right border."""
    rng = np.random.default_rng(0)
    image = np.full((400, 500, 3), (235, 190, 210), np.uint8)
    labels = np.zeros((400, 500), np.uint16)
    for number, centre in enumerate(((110, 100), (300, 120), (200, 290), (490, 300)), 1):
        cv2.circle(image, centre, 45, (120, 60, 150), -1)
        cv2.circle(labels, centre, 45, number, -1)
    return np.clip(image + rng.normal(0, 6, image.shape), 11, 255).astype(np.uint8), labels


def write_set(
    folder: Path, *, patients: int = 2, mpp: float | None = 1.0, labels: Labels | None = None, dark: int = 0
) -> Path:
    """A set in the form of the shared data, one image for each patient."""
    image, truth = discs()
    image[:dark] = 0
    entries = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for patient in range(patients):
        cv2.imwrite(str(folder / f"images/{patient}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"masks/{patient}.png"), truth if labels is None else labels)
        entries.append({"image": f"images/{patient}.png", "mask": f"masks/{patient}.png", "patient": patient})
    (folder / "meta.json").write_text(json.dumps({"microns_per_pixel": mpp, "images": entries}))
    return folder


def test_samples_show_the_object_in_both_views(tmp_path: Path) -> None:
    dataset = load([str(write_set(tmp_path / "discs", patients=1))], CONFIG)
    samples = list(dataset.samples())
    assert {sample.object_id for sample in samples} == {f"discs/0/{number}" for number in (1, 2, 3, 4)}
    for sample in samples:
        assert sample.hr.shape == sample.lr.shape == (256, 256, 3)
        violet = sample.hr[..., 1] < 125
        seen = sample.mask & violet
        assert seen.sum() > 0.97 * sample.mask.sum()
        # The LR view shows the same object at half the size about the same centre.
        inner = sample.lr_mask[64:192, 64:192]
        halved = cv2.resize(sample.mask.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA) > 0.5
        assert (inner == halved).mean() > 0.99
        assert sample.cut == sample.object_id.endswith("/4")


def test_outside_the_image_views_are_white(tmp_path: Path) -> None:
    dataset = load([str(write_set(tmp_path / "discs", patients=1))], CONFIG)
    lr = next(iter(dataset.samples())).lr
    assert (lr[0] == 255).all()


def test_a_mask_in_a_view_has_the_area_of_its_outline() -> None:
    _, labels = discs()
    (first, *_) = objects_of_labels(labels, "x")
    view = view_for_extent(first.bounds, 256, 0.5)
    assert first.outline.area == (labels == 1).sum()
    area = first.in_view(view).sum() * view.scale**2
    assert area == pytest.approx(first.outline.area, rel=0.01)


def test_a_split_keeps_patients_together(tmp_path: Path) -> None:
    dataset = load([str(write_set(tmp_path / "discs", patients=3))], CONFIG)
    training, held = dataset.split(["discs/1"], 0.0, seed=0)
    assert {sample.group for sample in training.samples()} == {"0", "2"}
    assert {case.sample.group for case in held.cases(["tight"])} == {"1"}


def test_cases_ask_on_the_view_that_their_own_prompt_leads_to(tmp_path: Path) -> None:
    dataset = load([str(write_set(tmp_path / "discs", patients=1))], CONFIG)
    cases = list(dataset.cases(KINDS, seed=3))
    assert len(cases) == 4 * len(KINDS)
    for case in cases:
        counts = (case.prompt.labels.count(1), case.prompt.labels.count(0))
        expected = {"points1": (1, 0), "points3": (3, 0), "points5": (5, 0), "points10": (7, 3)}.get(case.kind, (0, 0))
        assert counts == expected
        for (x, y), label in zip(case.prompt.points, case.prompt.labels, strict=True):
            assert case.sample.mask[round(y), round(x)] == bool(label)
        if case.kind == "points1":
            assert case.sample.mpp == CONFIG.point_mpp
            assert case.wider is not None
            assert case.wider.sample.mpp == 2 * CONFIG.point_mpp
            assert case.wider.prompt.wider
            beyond = [case.sample.lr[rows, columns] for rows, columns in AROUND]
            assert case.inner == tuple(bool((pixels < 255).any()) for pixels in beyond)
            ((x, y),) = case.wider.prompt.points
            assert case.wider.sample.mask[round(y), round(x)]
        elif case.kind not in POINTS:
            assert case.wider is None
        if case.kind == "tight" and case.prompt.box is not None:
            columns = np.flatnonzero(case.sample.mask.any(axis=0))
            assert case.prompt.box[0] == pytest.approx(columns[0] - 0.5, abs=0.51)
    again = {(case.sample.object_id, case.kind): case.prompt.box for case in dataset.cases(KINDS, seed=3)}
    assert all(again[case.sample.object_id, case.kind] == case.prompt.box for case in cases)


def test_clicks_get_a_wider_case_where_their_box_fills_more_than_half_of_the_view(tmp_path: Path) -> None:
    dataset = load([str(write_set(tmp_path / "discs", patients=3))], CONFIG)
    looks = set()
    for case in dataset.cases(POINTS, seed=3):
        clicks = [place for place, label in zip(case.prompt.points, case.prompt.labels, strict=True) if label]
        extent = np.ptp(np.array(clicks), axis=0).max() / len(case.sample.mask)
        expected = len(clicks) == 1 or extent * (1 + 3.5 / len(clicks)) > 0.5
        looks.add((len(clicks) > 1, expected))
        assert (case.wider is not None) == expected
        if case.wider is not None:
            assert case.wider.sample.mpp == 2 * case.sample.mpp
            assert case.wider.prompt.labels == case.prompt.labels
            centre = 127.5
            halved = centre + (np.array(case.prompt.points) - centre) / 2
            np.testing.assert_allclose(case.wider.prompt.points, halved)
    assert (True, True) in looks
    assert (True, False) in looks


def test_every_object_has_an_id_of_its_own(slides: Path, tmp_path: Path) -> None:
    names = [None, "PathAnnotationObject", "PathAnnotationObject", None, "3", "PathAnnotationObject-2"]
    features = [feature([square(200 + 150 * place, 300)], name) for place, name in enumerate(names)]
    path = tmp_path / "objects.geojson"
    path.write_text(json.dumps(features))
    dataset = load([f"{slides / 'tissue.tif'}={path}"] * 2, CONFIG)
    ids = [item.object_id for tissue in dataset.tissues for item in tissue.image.objects]
    assert len(set(ids)) == len(ids) == 12
    first = ("0", "PathAnnotationObject", "PathAnnotationObject-2", "3", "3-2", "PathAnnotationObject-2-2")
    assert ids[:6] == [f"tissue/{name}" for name in first]
    assert dataset.limited(5).size == 5


def test_limiting_takes_from_every_patient(tmp_path: Path) -> None:
    dataset = load([str(write_set(tmp_path / "discs", patients=3))], CONFIG).limited(5, seed=1)
    assert dataset.size == 5
    assert {tissue.image.group for tissue in dataset.tissues} == {"0", "1", "2"}


def square(x: float, y: float, side: float = 100) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(rings: object, name: str | None = "one", kind: str = "Polygon") -> dict[str, object]:
    return {"type": "Feature", "id": name, "geometry": {"type": kind, "coordinates": rings}, "properties": {}}


@pytest.mark.parametrize(
    ("drawn", "area", "bounds"),
    [
        (feature([[*square(100, 100)[:4], [100, 100], [50, 50], [100, 100]]]), 10_000, (100, 100, 200, 200)),
        (feature([[square(100, 100)], [square(150, 150)]], kind="MultiPolygon"), 17_500, (100, 100, 250, 250)),
        (feature([[square(100, 100)], [square(300, 100)]], kind="MultiPolygon"), 20_000, (100, 100, 400, 200)),
    ],
    ids=["a spike", "two that overlap", "two apart"],
)
def test_an_outline_is_what_its_polygons_enclose(
    tmp_path: Path, drawn: dict[str, object], area: float, bounds: tuple[float, ...]
) -> None:
    path = tmp_path / "objects.geojson"
    path.write_text(json.dumps(drawn))
    (item,) = read_geojson(tmp_path / "slide.svs", path).objects
    assert (item.outline.area, item.bounds) == (area, bounds)


def test_an_outline_that_encloses_nothing_is_left_out_whatever_its_size(slides: Path, tmp_path: Path) -> None:
    path = tmp_path / "objects.geojson"
    path.write_text(json.dumps([feature([]), feature([[[0, 0], [10, 0], [20, 0], [0, 0]]])]))
    dataset = load([f"{slides / 'tissue.tif'}={path}"], CONFIG, min_area_um2=0)
    assert [rejection.reason for rejection in dataset.rejections] == ["it encloses nothing"] * 2


def reasons(folder: Path) -> list[str]:
    return [rejection.reason for rejection in load([str(folder)], CONFIG).rejections]


def test_a_wrong_pixel_size_is_left_out(tmp_path: Path) -> None:
    assert reasons(write_set(tmp_path / "a", patients=1, mpp=264.6)) == [
        "its pixel size is 264.6 µm; 0.05 to 20.0 is believed"
    ]
    assert "pixel size is None" in reasons(write_set(tmp_path / "b", patients=1, mpp=None))[0]


def test_a_mask_of_another_size_is_left_out(tmp_path: Path) -> None:
    labels = np.ones((200, 250), np.uint16)
    (reason,) = reasons(write_set(tmp_path / "a", patients=1, labels=labels))
    assert reason == "its mask has 250 x 200 pixels, the image 500 x 400"


def test_empty_masks_and_specks_are_left_out(tmp_path: Path) -> None:
    empty = np.zeros((400, 500), np.uint16)
    assert reasons(write_set(tmp_path / "a", patients=1, labels=empty)) == ["it has no annotated area"]
    speck = empty.copy()
    speck[100:110, 100:110] = 1
    assert reasons(write_set(tmp_path / "b", patients=1, labels=speck)) == ["its area of 100 µm² is under 400"]


def test_black_borders_are_left_out(tmp_path: Path) -> None:
    assert "black border" in reasons(write_set(tmp_path / "a", patients=1, dark=40))[0]
    image, _ = discs()
    assert black_border_problem(image) is None


def test_shifted_masks_are_left_out(tmp_path: Path) -> None:
    image, labels = discs()
    assert shift_problem([edge_fit(image, labels, 1.0)]) is None
    shifted = np.roll(labels, (-24, 20), (0, 1))
    reason = shift_problem([edge_fit(image, shifted, 1.0)])
    assert reason is not None
    assert "look shifted" in reason
    assert "-20, +24 µm" in reason


def test_qupath_annotations_are_read_with_holes_and_without_points(tmp_path: Path) -> None:
    ring = [
        [[100, 100], [200, 100], [200, 200], [100, 200], [100, 100]],
        [[140, 140], [160, 140], [160, 160], [140, 160], [140, 140]],
    ]
    features = [
        {"type": "Feature", "id": "one", "geometry": {"type": "Polygon", "coordinates": ring}, "properties": {}},
        {"type": "Feature", "id": "two", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {}},
    ]
    path = tmp_path / "slide.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    image = read_geojson(tmp_path / "slide.svs", path)
    assert [item.object_id for item in image.objects] == ["slide/one"]
    assert image.objects[0].outline.area == 100 * 100 - 20 * 20


def test_annotations_are_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
    text = json.dumps([{"type": "Feature", "id": "Drüse", "geometry": square}], ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / f"{encoding}.geojson"
        path.write_text(text, encoding=encoding)
        (item,) = read_geojson(tmp_path / "slide.svs", path).objects
        assert item.object_id == "slide/Drüse"


@pytest.mark.parametrize(
    "content",
    ["", "{", "7", '["a"]', '{"features": 3}', '[{"geometry": {"type": "Polygon"}}]', "\x00"]
    + [json.dumps({"geometry": {"type": "Polygon", "coordinates": c}}) for c in (3, [[1, 2]], [[[0, 0], [1, 1]]], "x")]
    + [json.dumps({"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1e308, 0], [9, 9], [0, 0]]]}})],
)
def test_a_file_that_is_no_geojson_of_areas_is_told_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "objects.geojson"
    path.write_text(content)
    with pytest.raises(InvalidRequest, match=r"objects\.geojson"):
        read_geojson(tmp_path / "slide.svs", path)
    with pytest.raises(InvalidRequest, match=r"gone\.geojson"):
        read_geojson(tmp_path / "slide.svs", tmp_path / "gone.geojson")


def test_a_folder_of_dicom_is_told_to_be_no_source(tmp_path: Path) -> None:
    annotations = tmp_path / "objects.geojson"
    annotations.write_text('{"features": []}')
    with pytest.raises(InvalidRequest, match="not folders of DICOM"):
        load([f"{tmp_path}={annotations}"], CONFIG)


def test_a_folder_without_a_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no meta\.json"):
        load([str(tmp_path)], CONFIG)


@pytest.mark.parametrize(
    "meta",
    [[], {"microns_per_pixel": 0.5}, {"images": [{"image": "images/a.png"}]}, {"microns_per_pixel": "x", "images": []}],
)
def test_a_description_without_what_it_needs_is_told_by_name(tmp_path: Path, meta: object) -> None:
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InvalidRequest, match=r"meta\.json of .* has not what it needs"):
        load([str(tmp_path)], CONFIG)
