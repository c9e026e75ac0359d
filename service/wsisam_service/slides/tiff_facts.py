"""What a TIFF slide says of itself: whether it is brightfield, its levels, the size of its pixels, and the rest."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import tifffile
from tiffslide import TiffSlide

from wsisam_service.errors import NotBrightfield, UnreadableSlide
from wsisam_service.slides import ome_xml
from wsisam_service.slides.reader import Level, SlideInfo

_NDPI_FILTER_SET, _NDPI_EMISSION_WAVELENGTH = 65434, 65451
COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
"""How the samples of a brightfield slide may be stored."""
MAX_IMAGES = 4096
"""Images in one file. Slides have some dozens, mosaics and planes some hundreds; each takes time to look at."""
_FLUORESCENCE = "The slide is a fluorescence image; this service outlines objects in brightfield slides."
_NOT_RGB = "The slide is not 8-bit RGB; this service outlines objects in brightfield slides."
_NO_SLIDE = "The file has no image beside the label or macro image of its slide."
_NOT_THE_SLIDE = re.compile(r"[\W_]*(label|macro)([\W_]*image)?[\W_]*", re.IGNORECASE)


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


def put_slide_first(tiff: tifffile.TiffFile) -> None:
    """Sort the images of an OME-TIFF, which may come in any order: tiffslide takes the first for the slide. That is the
    largest image which is not named label or macro, an RGB one where several are as large, so that a small RGB picture
    of a fluorescence slide does not stand for it. Raises `UnreadableSlide` where all are named so.
    """
    images = [series for series in tiff.series if not _is_beside_the_slide(series.name)]
    if not images:
        raise UnreadableSlide(_NO_SLIDE)
    slide = max(images, key=lambda series: (series.keyframe.imagewidth * series.keyframe.imagelength, _is_rgb(series)))
    tiff.series.sort(key=lambda series: series is not slide)


def _is_beside_the_slide(name: str) -> bool:
    """Whether an image is named label or macro, as "Label", "macro image", "a.svs [label]" and "a.svs - label" are, but
    not "Label-free, colon 12".
    """
    return _NOT_THE_SLIDE.fullmatch(re.split(r"\[| - ", name)[-1]) is not None


def require_brightfield(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, properties: Mapping[str, Any], ome: Element
) -> None:
    """Raises `NotBrightfield`. Fluorescence is often stored as three 8-bit channels, so what the file says of how it
    was made comes first. `ome` as `ome_xml.about` gives it.
    """
    if _says_fluorescence(tiff, series.keyframe, properties) or ome_xml.says_fluorescence(ome):
        raise NotBrightfield(_FLUORESCENCE)
    planes = {"YXS": series.shape[-1], "CYX": series.shape[0]}.get(properties["tiffslide.series-axes"], 0)
    if not _is_rgb(series) or planes not in (3, 4):
        raise NotBrightfield(_NOT_RGB)


def _is_rgb(series: tifffile.TiffPageSeries) -> bool:
    return series.dtype == np.uint8 and series.keyframe.photometric in COLOURS


def _says_fluorescence(tiff: tifffile.TiffFile, page: tifffile.TiffPage, properties: Mapping[str, Any]) -> bool:
    if tiff.is_ndpi:
        return any(page.tags.valueof(code) for code in (_NDPI_FILTER_SET, _NDPI_EMISSION_WAVELENGTH))
    if tiff.is_qpi:  # one grey page per dye, where brightfield has one page of RGB
        return bool(page.photometric == tifffile.PHOTOMETRIC.MINISBLACK)
    return str(properties.get("leica.illumination-source", "")).lower() == "fluorescence"


def slide_info(slide: TiffSlide, properties: Mapping[str, Any], ome: Element) -> SlideInfo:
    """The facts of `slide`; `ome` as `ome_xml.about` gives it. tiffslide looks for pixel sizes in other places only."""
    vendor = properties.get("tiffslide.vendor")
    sides = (ome_xml.pixel_side(ome, axis) for axis in "XY")
    pixel = _lengths(sides) or _lengths(properties.get(f"tiffslide.mpp-{axis}") for axis in "xy")
    return SlideInfo(
        levels=tuple(_level(size, slide.dimensions, scanned=vendor is not None) for size in slide.level_dimensions),
        mpp=math.sqrt(pixel[0] * pixel[-1]) if pixel else None,
        pixel_ratio=max(pixel) / min(pixel) if pixel else 1.0,
        bounds=_bounds(properties),
        vendor=vendor,
        objective_power=_number(properties.get("tiffslide.objective-power")),
    )


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
