"""TIFF slides: SVS, NDPI, OME-TIFF, SCN, BIF, QPTIFF and plain TIFF, as far as tiffslide knows them.

tiffslide says what levels there are and what the scanner wrote. Tiles are read and decoded here, one by one through
a cache: tiffslide's own region read goes through zarr, which costs more than the decoding and shares no tiles
between calls. Only what is no single page per level (Leica's mosaics, colour planes apart) is left to it.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from tiffslide import TiffSlide

from wsisam_service.dicom.codec import codestream_size
from wsisam_service.errors import NotBrightfield, ServiceError, UnreadableSlide
from wsisam_service.slides.reader import Level, RgbImage, SlideInfo, SlideReader
from wsisam_service.slides.source import ByteSource, stream
from wsisam_service.slides.tiles import TileCache

logging.getLogger("tifffile").disabled = True  # its warnings quote the file; what matters here raises
warnings.filterwarnings("ignore", message=".*metadata parsing only partially implemented", module="tiffslide")

_BROKEN = "The slide's file is damaged or not a TIFF that this service reads."
_ENDS_EARLY = "The slide's file ends early: a part of its image is missing."
_DAMAGED = "A part of the slide's image is damaged."
_FLUORESCENCE = "The slide is a fluorescence image; this service outlines objects in brightfield slides."
_NOT_RGB = "The slide is not 8-bit RGB; this service outlines objects in brightfield slides."

_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_NDPI_FILTER_SET, _NDPI_EMISSION_WAVELENGTH = 65434, 65451
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)
_APERIO_J2K_YCBCR = 33003
"""Aperio's JPEG 2000 in YCbCr, which the codestream itself does not say."""

_MOST_OVERLAP = 2
"""A codestream has its tile's size, or a little more where an encoder fills up its blocks."""
MAX_TILE_PIXELS = 100_000_000
"""Pixels of one tile or strip, which is decoded as a whole."""

_DECODERS = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="tiles")
"""Codecs work without the GIL; the tiles of one region are decoded side by side."""


class TiffReader(SlideReader):
    """Raises `UnreadableSlide`, `NotBrightfield`."""

    def __init__(self, source: ByteSource, tiles: TileCache) -> None:
        try:
            slide = _LevelFrameSlide(stream(source))
            properties = slide.properties
            series = slide.ts_tifffile.series[properties["tiffslide.series-index"]]
            _require_brightfield(slide.ts_tifffile, series, properties)
            self.info = _slide_info(
                slide, properties, _ome_mpp(slide.ts_tifffile, properties["tiffslide.series-index"])
            )
            self._pixels = _pixels_of(slide, series, source, tiles)
        except ServiceError:
            raise
        except Exception as error:  # tifffile and tiffslide raise whatever a damaged file leads them to
            raise UnreadableSlide(_BROKEN) from error

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        region = np.full((height, width, 3), 255, np.uint8)
        size = self.info.levels[level]
        x0, x1 = max(x, 0), min(x + width, size.width)
        y0, y1 = max(y, 0), min(y + height, size.height)
        if x0 < x1 and y0 < y1:
            self._pixels.read_into(region[y0 - y : y1 - y, x0 - x : x1 - x], level, x0, y0)
        return region

    def drop_tiles(self) -> None:
        self._pixels.drop_tiles()


class _LevelFrameSlide(TiffSlide):
    """A TiffSlide whose `read_region` takes its location in pixels of the level, free of rounding."""

    def _read_region_loc_transform(self, location: tuple[int, int], level: int) -> tuple[int, int]:
        return location


@dataclass(frozen=True, slots=True)
class _TiledLevel:
    """Where the tiles (or strips) of one level lie in the file, and what decodes them."""

    tile_width: int
    tile_height: int
    columns: int
    offsets: Sequence[int]
    byte_counts: Sequence[int]
    decode: Callable[..., tuple[npt.NDArray[np.uint8] | None, object, object]]
    options: Mapping[str, bytes | None]
    ycbcr: bool


class _TilePixels:
    """Pixels of levels that are one page of tiles each."""

    def __init__(self, levels: Sequence[_TiledLevel], source: ByteSource, tiles: TileCache) -> None:
        self._levels = levels
        self._source = source
        self._tiles = tiles
        self._number = tiles.new_reader()

    def read_into(self, region: RgbImage, level: int, x: int, y: int) -> None:
        """Fill `region` (height, width, 3) with the pixels from (`x`, `y`) on, inside the level."""
        layout = self._levels[level]
        height, width = region.shape[:2]
        rows = range(y // layout.tile_height, (y + height - 1) // layout.tile_height + 1)
        columns = range(x // layout.tile_width, (x + width - 1) // layout.tile_width + 1)

        def place(position: tuple[int, int]) -> None:
            row, column = position
            tile = self._tile(level, row * layout.columns + column)
            left, top = column * layout.tile_width - x, row * layout.tile_height - y
            target = region[max(top, 0) : top + layout.tile_height, max(left, 0) : left + layout.tile_width]
            piece = tile[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
            target[: piece.shape[0], : piece.shape[1]] = piece

        for _ in _DECODERS.map(place, itertools.product(rows, columns)):
            pass

    def drop_tiles(self) -> None:
        self._tiles.drop(self._number)

    def _tile(self, level: int, index: int) -> RgbImage:
        return self._tiles.get((self._number, level, index), lambda: self._decode(self._levels[level], index))

    def _decode(self, layout: _TiledLevel, index: int) -> RgbImage:
        length = layout.byte_counts[index]
        if length == 0:  # scanners leave out tiles without tissue
            return np.full((layout.tile_height, layout.tile_width, 3), 255, np.uint8)
        try:
            data = self._source.read_at(layout.offsets[index], length)
            if len(data) < length:
                raise UnreadableSlide(_ENDS_EARLY)
            # A codec makes room for what the stream says, whatever the file says of its tiles.
            width, height = codestream_size(data) or (0, 0)
            if width * height > _MOST_OVERLAP * layout.tile_width * layout.tile_height:
                raise UnreadableSlide(_DAMAGED)
            tile, _, _ = layout.decode(data, index, **layout.options)
        except ServiceError:
            raise
        except Exception as error:  # each codec has errors of its own
            raise UnreadableSlide(_DAMAGED) from error
        assert tile is not None
        return _rgb(tile[0], ycbcr=layout.ycbcr)


class _MosaicPixels:
    """Pixels of anything else that tiffslide can put together; one thread at a time."""

    def __init__(self, slide: _LevelFrameSlide) -> None:
        self._slide = slide
        self._lock = threading.Lock()

    def read_into(self, region: RgbImage, level: int, x: int, y: int) -> None:
        """As `_TilePixels.read_into`."""
        height, width = region.shape[:2]
        try:
            with self._lock:
                pixels = self._slide.read_region((x, y), level, (width, height), as_array=True)
        except Exception as error:  # zarr, tifffile and each codec have errors of their own
            raise UnreadableSlide("A part of the slide's image is damaged or missing.") from error
        region[:] = _rgb(pixels.astype(np.uint8, copy=False), ycbcr=False)

    def drop_tiles(self) -> None:
        """None are held."""


def _pixels_of(
    slide: _LevelFrameSlide, series: tifffile.TiffPageSeries, source: ByteSource, tiles: TileCache
) -> _TilePixels | _MosaicPixels:
    for level in series.levels:
        key = level.keyframe
        side = key.tilewidth * key.tilelength if key.is_tiled else key.imagewidth * key.rowsperstrip
        if side > MAX_TILE_PIXELS:
            raise UnreadableSlide(f"The slide's tiles have more than {MAX_TILE_PIXELS} pixels.")
    composed = "tiffslide.series-composition" in slide.properties
    if composed or series.axes != "YXS" or any(len(level.pages) != 1 for level in series.levels):
        return _MosaicPixels(slide)
    return _TilePixels([_tiled_level(level) for level in series.levels], source, tiles)


def _tiled_level(level: tifffile.TiffPageSeries) -> _TiledLevel:
    page, key = level.pages[0], level.keyframe
    assert page is not None
    tile_width = key.tilewidth if key.is_tiled else key.imagewidth
    tile_height = key.tilelength if key.is_tiled else key.rowsperstrip
    jpeg = key.compression in _JPEG_COMPRESSIONS
    return _TiledLevel(
        tile_width=tile_width,
        tile_height=tile_height,
        columns=-(-key.imagewidth // tile_width),
        offsets=page.dataoffsets,
        byte_counts=page.databytecounts,
        decode=key.decode,
        options={"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if jpeg else {},
        ycbcr=key.compression == _APERIO_J2K_YCBCR,
    )


def _rgb(pixels: npt.NDArray[np.uint8], *, ycbcr: bool) -> RgbImage:
    """uint8 (height, width, 3 or 4) as RGB: YCbCr converted, alpha over white."""
    colour = pixels[..., :3]
    if ycbcr:
        colour = np.asarray(cv2.cvtColor(np.ascontiguousarray(colour[..., (0, 2, 1)]), cv2.COLOR_YCrCb2RGB), np.uint8)
    if pixels.shape[-1] == 3:
        return colour
    alpha = pixels[..., 3:4].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _require_brightfield(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, properties: Mapping[str, Any]
) -> None:
    """Fluorescence is often stored as three 8-bit channels, so what the file says of its making comes first."""
    page = series.keyframe
    if _says_fluorescence(tiff, page, properties):
        raise NotBrightfield(_FLUORESCENCE)
    colour = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    planes = {"YXS": series.shape[-1], "CYX": series.shape[0]}.get(properties["tiffslide.series-axes"], 0)
    if series.dtype != np.uint8 or not colour or planes not in (3, 4):
        raise NotBrightfield(_NOT_RGB)


def _says_fluorescence(tiff: tifffile.TiffFile, page: tifffile.TiffPage, properties: Mapping[str, Any]) -> bool:
    if tiff.is_ndpi:
        return any(page.tags.valueof(code) for code in (_NDPI_FILTER_SET, _NDPI_EMISSION_WAVELENGTH))
    if tiff.is_qpi:  # one grey page per dye, where brightfield has one page of RGB
        return bool(page.photometric == tifffile.PHOTOMETRIC.MINISBLACK)
    if tiff.is_ome:
        description = tiff.pages.first.description
        return 'ContrastMethod="Fluorescence"' in description or 'IlluminationType="Epifluorescence"' in description
    return str(properties.get("leica.illumination-source", "")).lower() == "fluorescence"


def _slide_info(slide: TiffSlide, properties: Mapping[str, Any], ome_mpp: float | None) -> SlideInfo:
    vendor = properties.get("tiffslide.vendor")
    sizes = [float(v) for v in (properties.get(f"tiffslide.mpp-{axis}") for axis in "xy") if v]
    power = properties.get("tiffslide.objective-power")
    return SlideInfo(
        levels=tuple(_level(size, slide.dimensions, scanned=vendor is not None) for size in slide.level_dimensions),
        mpp=ome_mpp or (sum(sizes) / len(sizes) if sizes else None),
        bounds=_bounds(properties),
        vendor=vendor,
        objective_power=float(power) if power else None,
    )


def _ome_mpp(tiff: tifffile.TiffFile, series_index: int) -> float | None:
    """µm per pixel in the OME-XML of the series, mean of x and y; tiffslide looks at the resolution tags only."""
    pixels = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", tiff.ome_metadata or "")
    if series_index >= len(pixels):
        return None
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', pixels[series_index]))
    sizes = [
        float(attributes[f"PhysicalSize{axis}"]) * _UM_PER_UNIT[attributes.get(f"PhysicalSize{axis}Unit", "µm")]
        for axis in "XY"
        if f"PhysicalSize{axis}" in attributes and attributes.get(f"PhysicalSize{axis}Unit", "µm") in _UM_PER_UNIT
    ]
    return sum(sizes) / len(sizes) if sizes else None


def _level(size: tuple[int, int], size0: tuple[int, int], *, scanned: bool) -> Level:
    """The level of `size` in a slide of `size0`, both (width, height).

    Scanners reduce by whole factors and drop what does not fill a last pixel; converters resize the whole image.
    Taking the one for the other shifts the far end by up to one pixel of the level.
    """
    x, y = (full / reduced for full, reduced in zip(size0, size, strict=True))
    factor = round((x + y) / 2)
    if scanned and all(abs(full / factor - reduced) < 1 for full, reduced in zip(size0, size, strict=True)):
        return Level(*size, float(factor), float(factor))
    return Level(*size, x, y)


def _bounds(properties: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    for prefix in ("tiffslide", "openslide"):
        values = [properties.get(f"{prefix}.bounds-{name}") for name in ("x", "y", "width", "height")]
        if all(value is not None for value in values):
            x, y, width, height = (int(value) for value in values if value is not None)
            return x, y, width, height
    return None
