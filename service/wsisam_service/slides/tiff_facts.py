"""What a TIFF slide says of itself: whether it is brightfield, its levels, the size of its pixels, and the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from tiffslide import TiffSlide

from wsisam_service.errors import NotBrightfield, UnreadableSlide
from wsisam_service.slides.reader import Level, SlideInfo

_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_NDPI_FILTER_SET, _NDPI_EMISSION_WAVELENGTH = 65434, 65451
COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
"""How the samples of a brightfield slide may be stored."""
MAX_IMAGES = 4096
"""Images in one file. Slides have some dozens, mosaics and planes some hundreds; each takes time to look at."""
MAX_OME_CHARACTERS = 4_000_000
"""OME-XML beyond this is not asked for the pixel size."""
_FLUORESCENCE = "The slide is a fluorescence image; this service outlines objects in brightfield slides."
_NOT_RGB = "The slide is not 8-bit RGB; this service outlines objects in brightfield slides."


def require_few_images(tiff: tifffile.TiffFile) -> None:
    """Raises `UnreadableSlide` for a file of more than `MAX_IMAGES`; counts no further."""
    count = 0
    for index in itertools.count():
        try:
            page = tiff.pages.get(index, cache=True)  # tifffile is going to look at it anyway
        except IndexError:
            return
        count += 1 + len(page.subifds or ())
        if count > MAX_IMAGES:
            raise UnreadableSlide(f"The slide's file has more than {MAX_IMAGES} images.")


def require_brightfield(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, properties: Mapping[str, Any]
) -> None:
    """Raises `NotBrightfield`. Fluorescence is often stored as three 8-bit channels, so what the file says of how it
    was made comes first.
    """
    page = series.keyframe
    if _says_fluorescence(tiff, page, properties):
        raise NotBrightfield(_FLUORESCENCE)
    planes = {"YXS": series.shape[-1], "CYX": series.shape[0]}.get(properties["tiffslide.series-axes"], 0)
    if series.dtype != np.uint8 or page.photometric not in COLOURS or planes not in (3, 4):
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


def slide_info(slide: TiffSlide, properties: Mapping[str, Any], ome_pixel: Sequence[float]) -> SlideInfo:
    """The facts of `slide`; `ome_pixel` as the function of that name gives it."""
    vendor = properties.get("tiffslide.vendor")
    pixel = ome_pixel or _lengths(properties.get(f"tiffslide.mpp-{axis}") for axis in "xy")
    return SlideInfo(
        levels=tuple(_level(size, slide.dimensions, scanned=vendor is not None) for size in slide.level_dimensions),
        mpp=math.sqrt(pixel[0] * pixel[-1]) if pixel else None,
        pixel_ratio=max(pixel) / min(pixel) if pixel else 1.0,
        bounds=_bounds(properties),
        vendor=vendor,
        objective_power=_number(properties.get("tiffslide.objective-power")),
    )


def ome_pixel(tiff: tifffile.TiffFile, series_index: int) -> Sequence[float]:
    """Sides of a pixel in µm as the OME-XML of the series gives them; tiffslide looks at the resolution tags only."""
    xml = (tiff.ome_metadata or "").strip()
    if len(xml) > MAX_OME_CHARACTERS or "<!DOCTYPE" in xml:
        return []
    try:
        pixels = ElementTree.fromstring(xml).findall(".//{*}Pixels")  # noqa: S314  # bounded, and no entities of its own
    except ElementTree.ParseError:
        return []
    if series_index >= len(pixels):
        return []
    return _lengths(_um(pixels[series_index].attrib, axis) for axis in "XY")


def _um(pixels: Mapping[str, str], axis: str) -> float | None:
    """None where it is not given, no number, or in no unit of length."""
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    try:
        return float(pixels.get(f"PhysicalSize{axis}", "")) * _UM_PER_UNIT[unit]
    except (ValueError, KeyError):
        return None


def _lengths(values: Iterable[object]) -> Sequence[float]:
    """Those that can be lengths."""
    return [number for value in values if (number := _number(value)) is not None]


def _number(value: Any) -> float | None:
    """A finite number above 0; Aperio's texts may have a decimal comma, or an x behind it. None for anything else."""
    try:
        number = float(value.strip().rstrip("xX").replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if 0 < number < math.inf else None


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
