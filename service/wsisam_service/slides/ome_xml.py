"""What the OME-XML of a TIFF says of one of its images: how it was made, and the size of its pixels."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import tifffile

MAX_CHARACTERS = 4_000_000
"""Longer OME-XML is not read."""
_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_FLUORESCENCE = {"ContrastMethod": "Fluorescence", "IlluminationType": "Epifluorescence"}


def about(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Element:
    """The `Image` that has the size of `series`, or all of the OME-XML where none has; empty where there is none to
    read. Of several the one with its name counts, and of these the one that names its page.

    Images whose pixels lie in other files are described too, so the order of images says nothing.
    """
    xml = (tiff.ome_metadata or "").strip()
    if not xml or len(xml) > MAX_CHARACTERS or "<!DOCTYPE" in xml:
        return Element("OME")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  # bounded, and no entities of its own
    except ElementTree.ParseError:
        return Element("OME")
    page = series.keyframe
    size = str(page.imagewidth), str(page.imagelength)
    images = [image for image in root.iterfind(".//{*}Image") if _size(image) == size]
    return max(
        images,
        key=lambda image: (image.get("Name", "") == series.name, _first_page(image) == str(page.index)),
        default=root,
    )


def _size(image: Element) -> tuple[str | None, str | None]:
    """(width, height), as the XML spells them."""
    pixels = image.find("{*}Pixels")
    return (None, None) if pixels is None else (pixels.get("SizeX"), pixels.get("SizeY"))


def _first_page(image: Element) -> str | None:
    """The number of the image's first page in its file, as the XML spells it."""
    data = image.find("{*}Pixels/{*}TiffData")
    return None if data is None else data.get("IFD", "0")


def says_fluorescence(ome: Element) -> bool:
    """Whether a channel of what `about` gives is one of fluorescence."""
    return any(element.get(name) == value for element in ome.iter() for name, value in _FLUORESCENCE.items())


def pixel_side(image: Element, axis: str) -> float | None:
    """µm along `axis` (X or Y), if `image` is one; None where it is not given, no number, or in no unit of length."""
    pixels = image.find("{*}Pixels")
    if pixels is None:
        return None
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    try:
        return float(pixels.get(f"PhysicalSize{axis}", "")) * _UM_PER_UNIT[unit]
    except (ValueError, KeyError):
        return None
