"""Outlines as a DICOM Segmentation: one segment for each class, in tiles on the pixel matrix of one level.

Work goes tile by tile: only tiles that hold something are ever made, and they are bounded in pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio import features

from wsisam_service.dicom.codes import CodedClass
from wsisam_service.dicom.derived import DicomResult, quietly, source_image, to_result
from wsisam_service.dicom.identity import NAME, Algorithm, equipment, uid_of
from wsisam_service.errors import InvalidRequest
from wsisam_service.masks.border import Area

if TYPE_CHECKING:
    import highdicom
    import pydicom

SegmentationType = Literal["BINARY", "LABELMAP"]
MAX_BYTES = 1 << 27
"""Of all tiles of one object while it is made, a byte a pixel mostly."""
SERIES_NUMBER = 9001
MAX_TILE_SIDE, TILE_SIDE = 1024, 512
"""Larger tiles of a source are not taken over; what its own tiles are then."""
CENTRE_SHIFT = 1e-7, 1.618e-7
"""By how much a pixel's centre counts as further right and down, in pixels. At coarser levels outlines run through
centres exactly, and GDAL gives those on a shared edge to both sides."""

Tile = npt.NDArray[np.uint8]
"""Segment numbers (rows, columns) of one tile, 0 for none; or, where segments overlap, 0 and 1 (rows, columns, S)."""
Place = tuple[int, int]
"""Row and column of a tile's first pixel in the level's pixel matrix, from 0."""
Window = tuple[slice, slice]


class _Overlap(Exception):
    """A pixel belongs to two segments."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A class and what belongs to it, in level-0 pixel edges."""

    coded: CodedClass
    areas: Sequence[Area]


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixel matrix of a level and its tiles; `scale` is level-0 pixels per pixel of the level in x and y."""

    columns: int
    rows: int
    tile_columns: int
    tile_rows: int
    scale: tuple[float, float]

    @classmethod
    def of(cls, header: pydicom.Dataset, scale: tuple[float, float]) -> Grid:
        """The matrix of a level's header, in the source's own tiles."""
        columns, rows = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
        sides = int(header.Columns), int(header.Rows)
        tile_columns, tile_rows = (side if side <= MAX_TILE_SIDE else TILE_SIDE for side in sides)
        return cls(columns, rows, tile_columns, tile_rows, scale)


def segmentation_object(
    header: pydicom.Dataset,
    scale: tuple[float, float],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    kind: SegmentationType = "BINARY",
) -> DicomResult:
    """The Segmentation over the level of `header`, `scale` level-0 pixels to each of its pixels.

    A pixel belongs to a segment where its centre does. Raises `InvalidRequest` where that is too much for one object,
    where nothing holds a pixel's centre, and for a LABELMAP of classes that overlap; `UnreadableSlide`.
    """
    with quietly():
        grid = Grid.of(header, scale)
    tiles = _drawn(segments, grid, kind)
    if not tiles:
        raise InvalidRequest("no outline holds the centre of a pixel at this level; give a finer one")
    with quietly():
        return to_result(_dataset(header, grid, segments, tiles, algorithm=algorithm, kind=kind))


def _drawn(segments: Sequence[Segment], grid: Grid, kind: SegmentationType) -> dict[Place, Tile]:
    """The tiles that hold something, by place: one number a pixel while segments keep apart, stacked where not."""
    try:
        return _draw(segments, grid, stacked=False)
    except _Overlap:
        if kind == "LABELMAP":
            raise InvalidRequest("classes overlap, which a LABELMAP cannot say; ask for BINARY") from None
        return _draw(segments, grid, stacked=True)


def _draw(segments: Sequence[Segment], grid: Grid, *, stacked: bool) -> dict[Place, Tile]:
    shape = (grid.tile_rows, grid.tile_columns, len(segments))[: 3 if stacked else 2]
    # Where segments overlap, highdicom sums over them in 64 bits.
    pixel_bytes = len(segments) + 8 if stacked else 1
    most = max(1, MAX_BYTES // (grid.tile_rows * grid.tile_columns * pixel_bytes))
    tiles: dict[Place, Tile] = {}
    for number, segment in enumerate(segments, 1):
        for place, window, mask in (found for area in segment.areas for found in _pieces(area, grid)):
            if place not in tiles:
                if len(tiles) == most:
                    raise InvalidRequest(f"the outlines need more than {most} tiles at this level; give a coarser one")
                tiles[place] = np.zeros(shape, np.uint8)
            region = tiles[place][window]
            if stacked:
                region[mask, number - 1] = 1
            else:
                if ((region[mask] != 0) & (region[mask] != number)).any():
                    raise _Overlap
                region[mask] = number
    return tiles


def _pieces(area: Area, grid: Grid) -> Iterator[tuple[Place, Window, npt.NDArray[np.bool_]]]:
    """An area's pixels, tile by tile: the tile, where in it, and which pixels there have their centre in the area."""
    placed = shapely.transform(area, lambda positions: positions / grid.scale)
    left, top, right, bottom = placed.bounds
    x0, y0 = max(0, math.floor(left)), max(0, math.floor(top))
    x1, y1 = min(grid.columns, math.ceil(right)), min(grid.rows, math.ceil(bottom))
    for row in range(y0 // grid.tile_rows * grid.tile_rows, y1, grid.tile_rows):
        for column in range(x0 // grid.tile_columns * grid.tile_columns, x1, grid.tile_columns):
            u0, v0 = max(x0, column), max(y0, row)
            u1, v1 = min(x1, column + grid.tile_columns), min(y1, row + grid.tile_rows)
            if u0 >= u1 or v0 >= v1:
                continue
            inside = shapely.clip_by_rect(placed, u0 - 1, v0 - 1, u1 + 1, v1 + 1)
            if inside.is_empty:
                continue
            transform = Affine.translation(u0 + CENTRE_SHIFT[0], v0 + CENTRE_SHIFT[1])
            burnt = features.rasterize([(inside, 1)], out_shape=(v1 - v0, u1 - u0), transform=transform, dtype="uint8")
            if burnt.any():
                window = slice(v0 - row, v1 - row), slice(u0 - column, u1 - column)
                yield (row, column), window, burnt.view(np.bool_)


def _dataset(
    header: pydicom.Dataset,
    grid: Grid,
    segments: Sequence[Segment],
    tiles: Mapping[Place, Tile],
    *,
    algorithm: Algorithm,
    kind: SegmentationType,
) -> pydicom.Dataset:
    import highdicom

    image = source_image(header)
    # highdicom takes the source's own only where the tiles are the source's, too.
    measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    places = sorted(tiles)
    descriptions = [_description(number, segment, algorithm) for number, segment in enumerate(segments, 1)]
    identity = (image.SOPInstanceUID, kind, str(algorithm), str([segment.coded for segment in segments]))
    drawn = (part for place in places for part in (str(place), tiles[place].tobytes()))
    uid = uid_of("SEG", *identity, *drawn)
    dataset = highdicom.seg.Segmentation(
        [image],
        np.stack([tiles[place] for place in places]),
        kind,
        descriptions,
        series_instance_uid=uid_of("SEG series", image.SeriesInstanceUID, image.FrameOfReferenceUID, str(algorithm)),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid,
        instance_number=1,
        plane_positions=list(_positions(image, places)),
        pixel_measures=highdicom.PixelMeasuresSequence.from_sequence(measures),
        dimension_organization_type="TILED_SPARSE",
        content_label="OUTLINES",
        content_description="Outlines of what a person pointed at",
        series_description=f"{NAME} segmentation",
        **equipment(algorithm),
    )
    # highdicom takes the matrix to end with the last tile, and its origin from the tiles.
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = grid.columns, grid.rows
    dataset.TotalPixelMatrixOriginSequence = copy.deepcopy(image.TotalPixelMatrixOriginSequence)
    _name_dimensions(dataset, uid_of("SEG dimensions", uid))
    return dataset


def _description(number: int, segment: Segment, algorithm: Algorithm) -> highdicom.seg.SegmentDescription:
    import highdicom

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.coded.label,
        segmented_property_category=segment.coded.category.code(),
        segmented_property_type=segment.coded.type.code(),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=algorithm.sequence(),
    )


def _positions(image: pydicom.Dataset, places: Sequence[Place]) -> Iterator[highdicom.PlanePositionSequence]:
    """Where each tile lies, in the matrix (from 1) and on the slide in mm."""
    import highdicom

    origin = image.TotalPixelMatrixOriginSequence[0]
    to_slide = highdicom.spatial.PixelToReferenceTransformer(
        image_position=(
            float(origin.XOffsetInSlideCoordinateSystem),
            float(origin.YOffsetInSlideCoordinateSystem),
            float(origin.get("ZOffsetInSlideCoordinateSystem", 0.0)),
        ),
        image_orientation=[float(value) for value in image.ImageOrientationSlide],
        pixel_spacing=[float(v) for v in image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing],
    )
    pixels = np.array([(column, row) for row, column in places])
    for (row, column), position in zip(places, to_slide(pixels), strict=True):
        yield highdicom.PlanePositionSequence(
            highdicom.CoordinateSystemNames.SLIDE,
            image_position=position,
            pixel_matrix_position=(column + 1, row + 1),
        )


def _name_dimensions(dataset: pydicom.Dataset, uid: str) -> None:
    """highdicom's random name of the dimensions replaced, so that the same content gives the same bytes."""
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
