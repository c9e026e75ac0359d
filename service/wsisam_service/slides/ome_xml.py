"""What the OME-XML of a TIFF says of one of its images: how it was made, and the size of its pixels."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import tifffile

MAX_CHARACTERS = 4_000_000
"""Longer OME-XML is not read."""
_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_FLUORESCENCE = {"ContrastMethod": "Fluorescence", "IlluminationType": "Epifluorescence"}


def about(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Element:
    """The `Image` that has the size of `page`, or all of the OME-XML where none has; empty where there is none to read.

    Images whose pixels lie in other files are described too, so the order of images says nothing.
    """
    xml = (tiff.ome_metadata or "").strip()
    if not xml or len(xml) > MAX_CHARACTERS or "<!DOCTYPE" in xml:
        return Element("OME")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  # bounded, and no entities of its own
    except ElementTree.ParseError:
        return Element("OME")
    size = str(page.imagewidth), str(page.imagelength)
    for image in root.iterfind(".//{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is not None and (pixels.get("SizeX"), pixels.get("SizeY")) == size:
            return image
    return root


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
