"""Outlines that QuPath reads, and that rasterise back to their masks."""

from __future__ import annotations

import uuid
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio import features
from shapely.geometry import shape

from wsisam_service.errors import InvalidRequest
from wsisam_service.masks import border, geojson
from wsisam_service.masks.geojson import Placement

noise = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24))


@st.composite
def blobs(draw: st.DrawFn) -> np.ndarray:
    """Discs added and taken away in turn, so that there are holes, islands in holes and crescents."""
    yy, xx = np.mgrid[:64, :64]
    mask = np.zeros((64, 64), bool)
    for i in range(draw(st.integers(1, 6))):
        x, y, r = draw(st.tuples(st.integers(0, 63), st.integers(0, 63), st.floats(1, 30)))
        mask[(xx - x) ** 2 + (yy - y) ** 2 <= r * r] = i % 2 == 0
    return mask


masks = noise | blobs()
placements = st.builds(
    Placement, st.sampled_from((0.25, 0.49, 1.0, 1.9841, 8.0)), st.floats(-500, 2e5), st.floats(-500, 2e5)
)


def rasterised(area: shapely.Geometry, placement: Placement, size: tuple[int, int]) -> np.ndarray:
    back = shapely.transform(area, lambda p: (p - (placement.x, placement.y)) / placement.scale)
    return features.rasterize([back], out_shape=size, dtype=np.uint8).astype(bool)


def assert_qupath_reads(geometry: dict) -> None:
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    assert geometry["type"] == "Polygon" or len(polygons) >= 2
    for ring in (ring for polygon in polygons for ring in polygon):
        assert ring[0] == ring[-1]
        assert all(a != b for a, b in pairwise(ring))
        assert all(round(value, 2) == value for position in ring for value in position)
        assert shapely.Polygon(ring).area > 0
    area = shape(geometry)
    assert area.is_valid
    if geometry["type"] == "Polygon" and len(polygons[0]) == 1:
        assert area.area < area.envelope.area


@given(masks, placements, st.sampled_from((0.0, 0.2, 0.5, 1.5)))
def test_outlines_are_valid_for_qupath(mask: np.ndarray, placement: Placement, simplify: float) -> None:
    area = geojson.outline(mask, placement, simplify)
    assert (area is None) == (not mask.any())
    if area is not None:
        feature = geojson.feature(area, classification=None, measurements={}, metadata={})
        assert_qupath_reads(feature["geometry"])


@given(masks, st.sampled_from((0.0, 0.2, 0.5)))
def test_rasterised_outline_is_the_mask(mask: np.ndarray, simplify: float) -> None:
    area = geojson.outline(mask, Placement(), simplify)
    drawn = np.zeros_like(mask) if area is None else rasterised(area, Placement(), mask.shape)
    union = np.count_nonzero(drawn | mask)
    assert union == 0 or np.count_nonzero(drawn & mask) / union >= 0.98


@given(blobs())
def test_outline_stays_within_half_a_view_pixel(mask: np.ndarray) -> None:
    exact, simplified = border.along_edges(mask), geojson.outline(mask, Placement())
    if exact is not None and simplified is not None:
        assert shapely.hausdorff_distance(exact.boundary, simplified.boundary) <= 0.5 + 0.01


@given(masks)
def test_an_exact_outline_is_what_gdal_traces(mask: np.ndarray) -> None:
    pixels = mask.astype(np.uint8)
    traced = [shape(found) for found, _ in features.shapes(pixels, mask=mask, connectivity=4)]
    exact = border.along_edges(mask)
    assert (exact is None) == (not traced)
    if exact is not None:
        assert exact.is_valid
        assert exact.equals(shapely.MultiPolygon(traced))
        assert len(shapely.get_parts(exact)) == len(traced)


def test_no_simplification_is_exact_and_simplification_saves_vertices() -> None:
    yy, xx = np.mgrid[:128, :128]
    disc = (xx - 60) ** 2 + (yy - 64) ** 2 < 50**2
    exact, simplified = geojson.outline(disc, Placement(), 0.0), geojson.outline(disc, Placement(), 0.5)
    assert exact is not None
    assert simplified is not None
    assert exact.area == disc.sum()
    assert len(shapely.get_coordinates(simplified)) < 0.7 * len(shapely.get_coordinates(exact))


def test_checkerboard_corners_are_parts_and_holes_in_holes_survive() -> None:
    checkers = np.indices((8, 8)).sum(axis=0) % 2 == 0
    assert len(shapely.get_parts(geojson.outline(checkers, Placement(), 0.0))) == 32
    rings = np.maximum(*np.abs(np.indices((21, 21)) - 10)) % 4 < 2
    parts = shapely.get_parts(geojson.outline(rings, Placement(), 0.5))
    assert sorted(len(part.interiors) for part in parts) == [0, 1, 1]


@pytest.mark.parametrize("simplify", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("scale", [0.05, 1.0, 16.0])
def test_a_rectangle_loses_a_corner(simplify: float, scale: float) -> None:
    mask = np.zeros((32, 32), bool)
    mask[4:9, 3:20] = True
    area = geojson.outline(mask, Placement(scale, 1e5, 3), simplify)
    assert area is not None
    assert 0 < area.envelope.area - area.area < 0.02 * area.envelope.area
    assert rasterised(area, Placement(scale, 1e5, 3), mask.shape).tolist() == mask.tolist()


def test_view_pixels_below_the_grid_still_give_a_valid_outline() -> None:
    mask = np.random.default_rng(1).random((64, 64)) > 0.5
    area = geojson.outline(mask, Placement(0.00625, 7, 7), 0.0)
    assert area is not None
    assert area.is_valid


def test_feature_has_an_id_and_only_finite_numbers() -> None:
    area = geojson.outline(np.ones((5, 5), bool), Placement())
    assert area is not None
    made = geojson.feature(
        area,
        classification={"name": "Tumor", "color": None},
        measurements={"area": 2.5, "bad": float("nan")},
        metadata={"model": "m"},
    )
    uuid.UUID(made["id"])
    assert made["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tumor", "color": None},
        "measurements": {"area": 2.5},
        "metadata": {"model": "m"},
    }


@pytest.mark.parametrize(
    ("given_class", "written"),
    [
        (None, None),
        ({}, None),
        ("Tumor: Positive", "Tumor: Positive"),
        ({"name": "Tumor", "color": [255, 0, 0]}, {"name": "Tumor", "color": [255, 0, 0]}),
        ({"name": "Tumor"}, {"name": "Tumor", "color": None}),
        ({"names": ["a", "b"], "color": [1, 2, 3, 4]}, {"names": ["a", "b"], "color": [1, 2, 3, 4]}),
    ],
)
def test_classes_that_qupath_reads_pass(given_class: object, written: object) -> None:
    assert geojson.checked_classification(given_class) == written  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        {"name": ""},
        {"name": 3},
        {"color": [1, 2, 3]},
        {"name": "a", "color": "#ff0000"},
        {"name": "a", "color": [1, 2, 300]},
    ],
)
def test_classes_that_qupath_refuses_are_refused(bad: object) -> None:
    with pytest.raises(InvalidRequest):
        geojson.checked_classification(bad)  # type: ignore[arg-type]
