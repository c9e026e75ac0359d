"""One whole slide image instance, as its header tells it: what it shows, how it is cut into frames, and where they lie.

A header comes from a file or from a PACS; it is believed in nothing that costs memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom

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


@dataclass(frozen=True, slots=True)
class SlideImage:
    """A VOLUME instance. `x`, `y` are the upper left corners of its frames in pixels of the whole level, one for each
    frame of `frames`, which counts the `count` frames of this instance from 0. `every_tile`: it says that none is left
    out of its level.

    `mpp` is µm per pixel of this level, `origin_mm` where its first pixel lies on the glass.
    """

    sop_uid: str
    part: int
    matrix: tuple[int, int]
    tile: tuple[int, int]
    x: Positions
    y: Positions
    frames: Positions
    count: int
    every_tile: bool
    mpp: float | None
    origin_mm: tuple[float, float] | None
    objective_power: float | None
    pyramid_uid: str | None
    photometric: str
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


def slide_image(header: pydicom.Dataset, places: FramePlaces | None = None) -> SlideImage:
    """`places` of its frames, where its header has some. Raises `UnreadableSlide`, `NotBrightfield`."""
    with damage_is_a_problem(_INCOMPLETE):
        return _slide_image(header, places)


def _slide_image(header: pydicom.Dataset, places: FramePlaces | None) -> SlideImage:
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
        x, y, frames = _full_grid(header, matrix, tile, count)
    else:
        x, y, frames = _middle_plane(places, matrix, count)
    power = _first(header, "OpticalPathSequence").get("ObjectiveLensPower")
    return SlideImage(
        sop_uid=identifiers(header).sop_uid,
        part=int(header.get("InConcatenationNumber") or 0),
        matrix=matrix,
        tile=tile,
        x=x,
        y=y,
        frames=frames,
        count=count,
        every_tile=places is None,
        mpp=_mpp(header, matrix[0]),
        origin_mm=_origin(header),
        objective_power=float(power) if power else None,
        pyramid_uid=str(header.get("PyramidUID") or "") or None,
        photometric=str(header.PhotometricInterpretation),
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


def _full_grid(
    header: pydicom.Dataset, matrix: tuple[int, int], tile: tuple[int, int], count: int
) -> tuple[Positions, Positions, Positions]:
    """TILED_FULL: columns first, then rows, then focal planes, of which the middle one is taken."""
    first = int(header.get("ConcatenationFrameOffsetNumber") or 0)
    planes = int(header.get("TotalPixelMatrixFocalPlanes") or 1)
    of_plane = tiles_in(matrix, tile)
    tiles = np.arange(count, dtype=np.int64) + first - of_plane * (planes // 2)
    frames = np.flatnonzero((tiles >= 0) & (tiles < of_plane))
    columns = math.ceil(matrix[0] / tile[0])
    return tiles[frames] % columns * tile[0], tiles[frames] // columns * tile[1], frames


def _middle_plane(places: FramePlaces, matrix: tuple[int, int], count: int) -> tuple[Positions, Positions, Positions]:
    if len(places) != count:
        raise UnreadableSlide(_INCOMPLETE)
    planes = np.unique(places[:, 2])
    frames = np.flatnonzero(places[:, 2] == planes[len(planes) // 2])
    corners = places[frames, :2] - 1  # DICOM counts from 1
    if not ((corners >= 0) & (corners < matrix)).all():
        raise UnreadableSlide("The DICOM header says that frames lie outside of the image.")
    x, y = np.rint(corners).astype(np.int64).T
    return x, y, frames


def _mpp(header: pydicom.Dataset, columns: int) -> float | None:
    """Mean of both axes, from the pixel measures or else from the imaged volume."""
    shared = _first(header, "SharedFunctionalGroupsSequence")
    spacing = _first(shared, "PixelMeasuresSequence").get("PixelSpacing")
    if spacing:
        return float(spacing[0] + spacing[1]) / 2 * UM_PER_MM
    width_mm = header.get("ImagedVolumeWidth")
    return float(width_mm) / columns * UM_PER_MM if width_mm else None


def _origin(header: pydicom.Dataset) -> tuple[float, float] | None:
    origin = _first(header, "TotalPixelMatrixOriginSequence")
    x, y = (origin.get(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY")
    return None if x is None or y is None else (float(x), float(y))


def _first(header: pydicom.Dataset, sequence: str) -> pydicom.Dataset:
    """The first item of a sequence; empty where there is none."""
    items = header.get(sequence)
    return items[0] if items else pydicom.Dataset()
