"""What every slide reader offers, and which reader a file gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wsisam_service.errors import UnreadableSlide
from wsisam_service.slides.source import ByteSource
from wsisam_service.slides.tiles import TileCache

RgbImage = npt.NDArray[np.uint8]
"""Pixels, uint8 (height, width, 3), sRGB."""

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".qptiff", ".scn", ".bif", ".png", ".jpg", ".jpeg")
"""Names that are listed as slides. The reader is chosen by content."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the pyramid; `downsample` is level-0 pixels per pixel of this level."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What a file says of its slide. Nothing here names a person or a folder.

    `levels` finest first. `mpp` is µm per level-0 pixel as the file says, believable or not, None where it says
    nothing. `bounds` is (x, y, width, height) in level 0 of the part that was scanned, where the file names one.
    """

    levels: Sequence[Level]
    mpp: float | None
    bounds: tuple[int, int, int, int] | None
    vendor: str | None
    objective_power: float | None

    @property
    def width(self) -> int:
        return self.levels[0].width

    @property
    def height(self) -> int:
        return self.levels[0].height


class SlideReader(Protocol):
    """An open slide; safe for concurrent use. Its files close when the last user lets go of it."""

    @property
    def info(self) -> SlideInfo: ...

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        """The rectangle with upper left corner (`x`, `y`), all in pixels of `level`: uint8 (height, width, 3).

        White outside the slide; alpha over white. Raises `UnreadableSlide`.
        """
        ...


def open_slide(source: ByteSource, tiles: TileCache) -> SlideReader:
    """The reader that fits the file's content. Raises `UnreadableSlide` or `NotBrightfield`."""
    from wsisam_service.slides.picture import PictureReader
    from wsisam_service.slides.tiff import TiffReader

    if source.size == 0:
        raise UnreadableSlide("The slide's file is empty.")
    try:
        head = source.read_at(0, 16)
    except OSError as error:
        raise UnreadableSlide("The slide's file cannot be read.") from error
    if head.startswith(_TIFF_MAGIC):
        return TiffReader(source, tiles)
    if head.startswith(_PICTURE_MAGIC):
        return PictureReader(source, tiles)
    raise UnreadableSlide("The slide's file is of no format that this service reads.")


def level_of(width: int, height: int, width0: int, height0: int) -> Level:
    """The level of `width` x `height` in a slide of `width0` x `height0`.

    Scanners reduce by whole factors and drop what does not fill a last pixel, so a factor that explains both sizes
    within one pixel is taken rather than the quotient.
    """
    quotient = (width0 / width + height0 / height) / 2
    factor = round(quotient)
    explains = abs(width0 / factor - width) < 1 and abs(height0 / factor - height) < 1
    return Level(width, height, float(factor) if explains else quotient)
