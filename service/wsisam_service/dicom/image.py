"""One whole slide image instance, as its header tells it: what it shows, how it is cut into frames, and where they lie.

A header comes from a file or from a PACS; it is believed in nothing that costs memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom

from wsisam_service.dicom.codec import is_compressed, require_known
from wsisam_service.dicom.header import damage_is_a_problem, identifiers
from wsisam_service.dicom.per_frame import FramePlaces
from wsisam_service.errors import NotBrightfield, UnreadableSlide

MAX_TILE_PIXELS = 20_000_000
"""Pixels of one frame, which is decoded as a whole."""
MAX_MATRIX_SIDE = 1 << 24
MAX_FRAMES = 1 << 20

_SHOWN = "VOLUME"
"""The only kind of image that is served. LABEL and OVERVIEW show the slide's label, THUMBNAIL may."""
_NOT_BRIGHTFIELD_LIGHT = {"111742", "111743", "111745", "111746", "111747", "111748", "111749"}
"""DICOM codes of reflected light, fluorescence, dark field, oblique light, phase contrast, DIC and TIRF."""

_NOT_RGB = "The slide is not 8-bit RGB; this service outlines objects in brightfield slides."
_OTHER_LIGHT = "The slide is not a brightfield image; this service outlines objects in brightfield slides."
_INCOMPLETE = "The DICOM header lacks what a whole slide image must say of itself."

UM_PER_MM = 1000.0

Positions = npt.NDArray[np.int64]
Heights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """What an instance says of the concatenation that it is a part of. `first` is the number of its first frame in all
    of it, from 0; `total` None where nothing tells how many parts there are.
    """

    concatenation: str
    number: int
    total: int | None
    first: int


@dataclass(frozen=True, slots=True)
class SlideImage:
    """A VOLUME instance of `count` frames. `x`, `y` are their upper left corners in pixels of the whole level, `z`
    their heights in µm, in the order of the frames. `every_tile`: it says that none is left out of its level.

    `mpp` is µm per pixel of this level, the geometric mean of both sides, of which the longer is `pixel_ratio` times
    the shorter; `origin_mm` where its first pixel lies on the glass. `compressed` and `planar` as in `decode_frame`.
    """

    sop_uid: str
    part: Part | None
    matrix: tuple[int, int]
    tile: tuple[int, int]
    x: Positions
    y: Positions
    z: Heights
    count: int
    every_tile: bool
    mpp: float | None
    pixel_ratio: float
    origin_mm: tuple[float, float] | None
    objective_power: float | None
    pyramid_uid: str | None
    photometric: str
    compressed: bool
    planar: bool


def is_shown(header: pydicom.Dataset) -> bool:
    """Whether this image may be served: no label in it, as far as it says. Raises `UnreadableSlide`."""
    with damage_is_a_problem():
        kinds = header.get("ImageType")
        if not kinds or isinstance(kinds, str) or len(kinds) < 3:
            raise UnreadableSlide("The DICOM header does not say what the image shows (ImageType).")
        return str(kinds[2]) == _SHOWN and str(header.get("SpecimenLabelInImage", "NO")) != "YES"


def is_full(header: pydicom.Dataset) -> bool:
    """Whether the frames' order says where they lie (TILED_FULL). Raises `UnreadableSlide`."""
    with damage_is_a_problem():
        return bool(header.get("DimensionOrganizationType") == "TILED_FULL")


def slide_image(header: pydicom.Dataset, syntax: str | None, places: FramePlaces | None = None) -> SlideImage:
    """The image of `header`; `syntax` is its transfer syntax where somebody tells it, `places` are those of its frames
    where its header has some. Raises `UnreadableSlide`, `NotBrightfield`.
    """
    if syntax is not None:
        require_known(syntax)
    with damage_is_a_problem(_INCOMPLETE):
        return _slide_image(header, syntax, places)


def _slide_image(header: pydicom.Dataset, syntax: str | None, places: FramePlaces | None) -> SlideImage:
    _require_brightfield(header)
    matrix = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
    tile = int(header.Columns), int(header.Rows)
    sizes_fit = min(matrix) > 0 and max(matrix) <= MAX_MATRIX_SIDE and min(tile) > 0
    if not sizes_fit or tile[0] * tile[1] > MAX_TILE_PIXELS:
        raise UnreadableSlide("The DICOM header gives a size that no slide has.")
    count = int(header.get("NumberOfFrames") or 1)
    if not 0 < count <= MAX_FRAMES:
        raise UnreadableSlide(_INCOMPLETE)
    if places is None or is_full(header):
        places = None
        x, y, z = _full_grid(header, matrix, tile, count)
    else:
        x, y, z = _told_places(places, matrix, count)
    mpp, pixel_ratio = _pixel(header, matrix[0])
    power = _first(header, "OpticalPathSequence").get("ObjectiveLensPower")
    return SlideImage(
        sop_uid=identifiers(header).sop_uid,
        part=_part(header),
        matrix=matrix,
        tile=tile,
        x=x,
        y=y,
        z=z,
        count=count,
        every_tile=places is None,
        mpp=mpp,
        pixel_ratio=pixel_ratio,
        origin_mm=_origin(header),
        objective_power=float(power) if power else None,
        pyramid_uid=str(header.get("PyramidUID") or "") or None,
        photometric=str(header.PhotometricInterpretation),
        compressed=syntax is not None and is_compressed(syntax),
        planar=int(header.get("PlanarConfiguration") or 0) == 1,
    )


def _require_brightfield(header: pydicom.Dataset) -> None:
    colour = str(header.PhotometricInterpretation)
    if int(header.SamplesPerPixel) != 3 or int(header.BitsAllocated) != 8 or colour == "PALETTE COLOR":
        raise NotBrightfield(_NOT_RGB)
    paths = header.get("OpticalPathSequence") or ()
    lights = {str(code.get("CodeValue")) for path in paths for code in path.get("IlluminationTypeCodeSequence") or ()}
    if len(paths) > 1 or lights & _NOT_BRIGHTFIELD_LIGHT:
        raise NotBrightfield(_OTHER_LIGHT)


def tiles_in(matrix: tuple[int, int], tile: tuple[int, int]) -> int:
    """How many tiles cover a level."""
    return math.ceil(matrix[0] / tile[0]) * math.ceil(matrix[1] / tile[1])


def _part(header: pydicom.Dataset) -> Part | None:
    """Which part of a concatenation this is; None where it is whole."""
    concatenation, number = header.get("ConcatenationUID"), header.get("InConcatenationNumber")
    if not concatenation and number is None:
        return None
    total = header.get("InConcatenationTotalNumber")
    return Part(str(concatenation or ""), int(number or 0), int(total) if total else None, _first_frame(header))


def _first_frame(header: pydicom.Dataset) -> int:
    """How many frames of its concatenation come before those of this instance."""
    first = int(header.get("ConcatenationFrameOffsetNumber") or 0)
    if first < 0:
        raise UnreadableSlide(_INCOMPLETE)
    return first


def _full_grid(
    header: pydicom.Dataset, matrix: tuple[int, int], tile: tuple[int, int], count: int
) -> tuple[Positions, Positions, Heights]:
    """TILED_FULL: columns first, then rows, then focal planes."""
    first = _first_frame(header)
    planes = int(header.get("TotalPixelMatrixFocalPlanes") or 1)
    of_plane = tiles_in(matrix, tile)
    number = np.arange(first, min(first + count, planes * of_plane), dtype=np.int64)
    plane, in_plane = number // of_plane, number % of_plane
    columns = math.ceil(matrix[0] / tile[0])
    z = np.asarray(_height(header) + plane * _plane_distance(header), np.float64)
    return in_plane % columns * tile[0], in_plane // columns * tile[1], z


def _height(header: pydicom.Dataset) -> float:
    """Of a TILED_FULL image's first plane, in µm; 0 where nothing tells it."""
    shared = _first(_first(header, "SharedFunctionalGroupsSequence"), "PlanePositionSlideSequence")
    for place in (_first(header, "TotalPixelMatrixOriginSequence"), shared):
        height = place.get("ZOffsetInSlideCoordinateSystem")
        if height is not None:
            return float(height)
    return 0.0


def _plane_distance(header: pydicom.Dataset) -> float:
    """µm from one focal plane to the next; 1 where nothing tells it, as their order is enough."""
    measures = _first(_first(header, "SharedFunctionalGroupsSequence"), "PixelMeasuresSequence")
    spacing_mm = measures.get("SpacingBetweenSlices")
    return float(spacing_mm) * UM_PER_MM if spacing_mm else 1.0


def _told_places(places: FramePlaces, matrix: tuple[int, int], count: int) -> tuple[Positions, Positions, Heights]:
    if len(places) != count:
        raise UnreadableSlide(_INCOMPLETE)
    corners = places[:, :2] - 1  # DICOM counts from 1
    if not ((corners >= 0) & (corners < matrix)).all():
        raise UnreadableSlide("The DICOM header says that frames lie outside of the image.")
    x, y = np.rint(corners).astype(np.int64).T
    return x, y, places[:, 2]


def _pixel(header: pydicom.Dataset, columns: int) -> tuple[float | None, float]:
    """(µm per pixel, longer side over shorter), from the pixel measures or else from the imaged volume."""
    shared = _first(header, "SharedFunctionalGroupsSequence")
    spacing = _first(shared, "PixelMeasuresSequence").get("PixelSpacing")
    if spacing:
        short, long = sorted(float(spacing[axis]) for axis in (0, 1))
        return (math.sqrt(short * long) * UM_PER_MM, long / short) if short > 0 else (None, 1.0)
    width_mm = header.get("ImagedVolumeWidth")
    return (float(width_mm) / columns * UM_PER_MM if width_mm else None), 1.0


def _origin(header: pydicom.Dataset) -> tuple[float, float] | None:
    origin = _first(header, "TotalPixelMatrixOriginSequence")
    x, y = (origin.get(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY")
    return None if x is None or y is None else (float(x), float(y))


def _first(header: pydicom.Dataset, sequence: str) -> pydicom.Dataset:
    """The first item of a sequence; empty where there is none."""
    items = header.get(sequence)
    return items[0] if items else pydicom.Dataset()
