"""Properties of the extension's answers: whatever the mask, QuPath reads it, and it is the same area."""

from __future__ import annotations

import itertools
import json

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import shapely.geometry
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio import features
from rasterio.transform import Affine

from wsisam_service.sam.outlines import clip_to_picture, feature

Mask = npt.NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise of one pixel or of blocks: holes, islands, parts that meet at corners."""
    small = draw(hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
    return np.kron(small, np.ones((draw(st.integers(1, 6)),) * 2, bool)).astype(bool)


PLACES = st.tuples(st.floats(-500, 3000), st.floats(-500, 3000))
SCALES = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 8.0])


@given(masks(), PLACES, SCALES)
def test_every_answer_is_one_that_every_qupath_reads(mask: Mask, origin: tuple[float, float], scale: float) -> None:
    one = feature(mask, origin, scale, quality=0.9, sam_model="vit_l")
    if not mask.any():
        assert one is None, "an empty geometry becomes an invisible object"
        return
    assert one is not None
    read = json.loads(json.dumps(one, allow_nan=False))
    geometry = shapely.geometry.shape(read["geometry"])
    assert geometry.geom_type == "Polygon" or (geometry.geom_type == "MultiPolygon" and len(geometry.geoms) >= 2)
    assert geometry.is_valid
    rounded = shapely.set_precision(geometry, 0.01, mode="pointwise")
    assert rounded.is_valid
    assert rounded.equals_exact(geometry, 1e-6)
    for polygon in getattr(geometry, "geoms", [geometry]):
        for ring in (polygon.exterior, *polygon.interiors):
            positions = list(ring.coords)
            assert positions[0] == positions[-1]
            assert all(a != b for a, b in itertools.pairwise(positions))
        assert polygon.area > 0
        assert not (len(polygon.exterior.coords) == 5 and polygon.equals(polygon.envelope) and polygon is geometry)


@given(masks(), SCALES)
def test_the_outline_drawn_again_is_the_mask(mask: Mask, scale: float) -> None:
    one = feature(mask, (0.0, 0.0), scale, quality=0.9, sam_model="vit_l")
    if one is None:
        return
    drawn = features.rasterize(
        [shapely.geometry.shape(one["geometry"])],
        out_shape=mask.shape,
        transform=Affine.scale(scale, scale),
        dtype=np.uint8,
    ).astype(bool)
    assert np.count_nonzero(drawn & mask) >= 0.98 * np.count_nonzero(drawn | mask)


def test_a_mask_of_the_whole_picture_reaches_its_edges() -> None:
    """Pixel edges, not centres: 0, 0 to width, height."""
    one = feature(np.ones((200, 300), bool), (0, 0), 1.0, quality=1.0, sam_model="vit_l")
    assert one is not None
    assert shapely.geometry.shape(one["geometry"]).bounds == (0, 0, 300, 200)


@pytest.mark.parametrize(
    ("origin", "scale", "columns", "rows"),
    [
        ((-10.0, -6.0), 1.0, slice(10, 256), slice(6, 206)),
        ((-10.0, -6.0), 2.0, slice(5, 155), slice(3, 103)),
        ((280.0, 180.0), 0.5, slice(0, 40), slice(0, 40)),
    ],
)
def test_what_lies_beyond_the_picture_is_cut_off_and_nothing_else(
    origin: tuple[float, float], scale: float, columns: slice, rows: slice
) -> None:
    clipped = clip_to_picture(np.ones((256, 256), bool), origin, scale, 300, 200)
    expected = np.zeros((256, 256), bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(clipped, expected)
