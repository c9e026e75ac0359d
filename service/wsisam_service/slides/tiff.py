"""TIFF slides: SVS, NDPI, OME-TIFF, SCN, BIF, QPTIFF and plain TIFF, as far as tiffslide knows them.

tiffslide says what levels there are and what the scanner wrote. Tiles are read and decoded here, one by one through
a cache: tiffslide's own region read goes through zarr, which costs more than the decoding and shares no tiles
between calls. Only what is no single page per level (Leica's mosaics) is left to it.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from tiffslide import TiffSlide

from wsisam_service.errors import ServiceError, UnreadableSlide
from wsisam_service.slides import codestreams, ome_xml
from wsisam_service.slides.reader import RgbImage, SlideReader, paste
from wsisam_service.slides.source import ByteSource, stream
from wsisam_service.slides.tiff_facts import (
    COLOURS,
    put_slide_first,
    require_brightfield,
    require_few_images,
    slide_info,
)
from wsisam_service.slides.tiles import TileCache, TileOwner

logging.getLogger("tifffile").disabled = True  # its warnings quote the file; what matters here raises
# imagecodecs gives a JPEG that libjpeg refuses to liblj92, which may find another size in it and crashes over some
# damaged ones. Nobody needs it: libjpeg decodes lossless JPEG of 8 bits too.
sys.modules["imagecodecs._ljpeg"] = None  # type: ignore[assignment]
warnings.filterwarnings("ignore", message=".*metadata parsing only partially implemented", module="tiffslide")

_BROKEN = "The slide's file is damaged or not a TIFF that this service reads."
_ENDS_EARLY = "The slide's file ends early: a part of its image is missing."
_DAMAGED = "A part of the slide's image is damaged."
_UNKNOWN_COMPRESSION = "The slide's image is compressed in a way that this service does not decode."

_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)

_MOST_OVERLAP = 2
"""A codestream has its tile's size, or a little more where an encoder fills up its blocks."""
MAX_TILE_PIXELS = 100_000_000
"""Pixels of one tile or strip, which is decoded as a whole."""

Decode = Callable[..., tuple[npt.NDArray[np.uint8] | None, object, tuple[int, ...]]]
"""Gives the tile and, also for None, its place and shape (depth, height, width, samples)."""

_DECODERS = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="tiles")
"""Codecs work without the GIL; the tiles of one region are decoded side by side."""


class TiffReader(SlideReader):
    """Raises `UnreadableSlide`, `NotBrightfield`."""

    def __init__(self, source: ByteSource, tiles: TileCache) -> None:
        file = stream(source)
        weakref.finalize(self, file.detach)  # tifffile's objects hold each other until the collector comes
        try:
            slide = _LevelFrameSlide(file)
            tiff = slide.ts_tifffile
            require_few_images(tiff)
            if tiff.is_ome:
                put_slide_first(tiff)
            for level in tiff.series[0].levels:
                level._set_dimensions(level.shape, level.axes.replace("SYX", "CYX"))  # as tiffslide calls planes apart
            properties = slide.properties
            series = tiff.series[properties["tiffslide.series-index"]]
            ome = ome_xml.about(tiff, series)
            require_brightfield(tiff, series, properties, ome)
            self.info = slide_info(slide, properties, ome)
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
class _Colours:
    """What the decoded samples of a page are. `alpha` is the fourth's kind, None where it is no alpha."""

    ycbcr: bool
    alpha: int | None

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> _Colours:
        """Codecs of JPEG give RGB; others the samples as the file has them. Aperio's number for YCbCr is Bio-Formats'
        for JPEG 2000 of any colours, so it counts in Aperio's files only.
        """
        by_codec = page.compression in (*codestreams.JPEG, codestreams.APERIO_RGB)
        ycbcr = page.photometric == tifffile.PHOTOMETRIC.YCBCR and not by_codec
        by_number = page.compression == codestreams.APERIO_YCBCR and page.parent.is_svs
        kind = page.extrasamples[0] if page.extrasamples else None
        return cls(ycbcr or by_number, kind if kind in _ALPHA else None)


@dataclass(frozen=True, slots=True)
class _TiledLevel:
    """Where the tiles (or strips) of one level lie in the file, and what decodes them. A level whose colours lie apart
    has several `planes` of `plane_tiles` each.
    """

    tile_width: int
    tile_height: int
    columns: int
    planes: int
    plane_tiles: int
    offsets: Sequence[int]
    byte_counts: Sequence[int]
    decode: Decode
    options: Mapping[str, bytes | None]
    colours: _Colours


class _TilePixels:
    """Pixels of levels that are one page of tiles each."""

    def __init__(self, levels: Sequence[_TiledLevel], source: ByteSource, tiles: TileCache) -> None:
        self._levels = levels
        self._source = source
        self._tiles = tiles
        self._owner = TileOwner()

    def read_into(self, region: RgbImage, level: int, x: int, y: int) -> None:
        """Fill `region` (height, width, 3) with the pixels from (`x`, `y`) on, inside the level."""
        layout = self._levels[level]
        height, width = region.shape[:2]
        rows = range(y // layout.tile_height, (y + height - 1) // layout.tile_height + 1)
        columns = range(x // layout.tile_width, (x + width - 1) // layout.tile_width + 1)

        def place(position: tuple[int, int]) -> None:
            row, column = position
            tile = self._tile(level, row * layout.columns + column)[: layout.tile_height, : layout.tile_width]
            paste(region, tile, column * layout.tile_width - x, row * layout.tile_height - y)

        for _ in _DECODERS.map(place, itertools.product(rows, columns)):
            pass

    def drop_tiles(self) -> None:
        self._tiles.drop(self._owner)

    def _tile(self, level: int, index: int) -> RgbImage:
        return self._tiles.get((self._owner, level, index), lambda: self._decode(self._levels[level], index))

    def _decode(self, layout: _TiledLevel, index: int) -> RgbImage:
        numbers = [index + plane * layout.plane_tiles for plane in range(layout.planes)]
        try:
            if not any(layout.byte_counts[number] for number in numbers):  # scanners leave out tiles without tissue
                return np.full((layout.tile_height, layout.tile_width, 3), 255, np.uint8)
            planes = [self._samples(layout, number) for number in numbers]
            return _rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1), layout.colours)
        except ServiceError:
            raise
        except Exception as error:  # each codec has errors of its own, and a file may list too few tiles
            raise UnreadableSlide(_DAMAGED) from error

    def _samples(self, layout: _TiledLevel, number: int) -> npt.NDArray[np.uint8]:
        """uint8 (height, width, samples) of the file's tile of `number`."""
        length = layout.byte_counts[number]
        data = self._source.read_at(layout.offsets[number], length)
        if len(data) < length:
            raise UnreadableSlide(_ENDS_EARLY)
        tile, _, shape = layout.decode(data or None, number, **layout.options)
        return np.zeros(shape[1:], np.uint8) if tile is None else np.asarray(tile[0])  # left out, beside other colours


class _MosaicPixels:
    """Pixels of anything else that tiffslide can put together; one thread at a time."""

    def __init__(self, slide: _LevelFrameSlide, colours: _Colours) -> None:
        self._slide = slide
        self._colours = colours
        self._lock = threading.Lock()

    def read_into(self, region: RgbImage, level: int, x: int, y: int) -> None:
        """As `_TilePixels.read_into`."""
        height, width = region.shape[:2]
        try:
            with self._lock:
                pixels = self._slide.read_region((x, y), level, (width, height), as_array=True)
            region[:] = _rgb(pixels.astype(np.uint8, copy=False), self._colours)
        except ServiceError:
            raise
        except Exception as error:  # zarr, tifffile and each codec have errors of their own
            raise UnreadableSlide("A part of the slide's image is damaged or missing.") from error

    def drop_tiles(self) -> None:
        """None are held."""


def _pixels_of(
    slide: _LevelFrameSlide, series: tifffile.TiffPageSeries, source: ByteSource, tiles: TileCache
) -> _TilePixels | _MosaicPixels:
    composed = slide.properties.get("tiffslide.series-composition")
    parts = [slide.ts_tifffile.series[index] for index in composed["located_series"]] if composed else [series]
    for level in itertools.chain.from_iterable(part.levels for part in parts):
        _require_readable(level)
        level.keyframe.decode = _bounded(level.keyframe)
    if composed or any(len(level.pages) != 1 for level in series.levels):
        return _MosaicPixels(slide, _Colours.of(series.keyframe))
    return _TilePixels([_tiled_level(level) for level in series.levels], source, tiles)


def _require_readable(level: tifffile.TiffPageSeries) -> None:
    """A smaller level may be of another kind than the first."""
    key = level.keyframe
    if level.dtype != np.uint8 or key.photometric not in COLOURS or key.samplesperpixel not in (3, 4):
        raise UnreadableSlide(_BROKEN)
    if not codestreams.is_known(key.compression):
        raise UnreadableSlide(_UNKNOWN_COMPRESSION)
    tile_width, tile_height = _tile_size(key)
    sides = key.imagewidth, key.imagelength, tile_width, tile_height
    if not all(isinstance(side, int) and side > 0 for side in sides):  # a file may store them as anything
        raise UnreadableSlide(_BROKEN)
    if tile_width * tile_height > MAX_TILE_PIXELS:
        raise UnreadableSlide(f"The slide's tiles have more than {MAX_TILE_PIXELS} pixels.")


def _tile_size(key: tifffile.TiffPage) -> tuple[int, int]:
    """(width, height) of a tile or strip."""
    return (key.tilewidth, key.tilelength) if key.is_tiled else (key.imagewidth, key.rowsperstrip)


def _tiled_level(level: tifffile.TiffPageSeries) -> _TiledLevel:
    page, key = level.pages[0], level.keyframe
    assert page is not None
    tile_width, tile_height = _tile_size(key)
    jpeg = key.compression in codestreams.JPEG
    columns, rows = -(-key.imagewidth // tile_width), -(-key.imagelength // tile_height)
    return _TiledLevel(
        tile_width=tile_width,
        tile_height=tile_height,
        columns=columns,
        planes=key.samplesperpixel if key.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1,
        plane_tiles=columns * rows,
        offsets=page.dataoffsets,
        byte_counts=page.databytecounts,
        decode=key.decode,
        options={"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if jpeg else {},
        colours=_Colours.of(key),
    )


def _bounded(key: tifffile.TiffPage) -> Decode:
    """`key.decode`, which refuses what says that it is much larger than a tile."""
    decode = key.decode
    tile_width, tile_height = _tile_size(key)

    def bounded(data: bytes | None, index: int, **options: Any) -> Any:
        size = data and codestreams.image_size(key.compression, (options.get("jpegheader") or b"") + data)
        if size and not 0 < size[0] * size[1] <= _MOST_OVERLAP * tile_width * tile_height:
            raise UnreadableSlide(_DAMAGED)
        return decode(data, index, **options)

    return bounded


def _rgb(pixels: npt.NDArray[np.uint8], colours: _Colours) -> RgbImage:
    """uint8 (height, width, 3 or 4) as RGB: YCbCr converted, alpha over white."""
    colour = pixels[..., :3]
    if colours.ycbcr:
        colour = np.asarray(cv2.cvtColor(np.ascontiguousarray(colour[..., (0, 2, 1)]), cv2.COLOR_YCrCb2RGB), np.uint8)
    if pixels.shape[-1] == 3 or colours.alpha is None:
        return colour
    alpha = pixels[..., 3:4].astype(np.uint16)
    if colours.alpha == tifffile.EXTRASAMPLE.ASSOCALPHA:
        return np.asarray(np.minimum(colour + (255 - alpha), 255), np.uint8)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
