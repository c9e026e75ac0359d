"""What every slide reader offers, and which reader a file gets."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsisam_service.errors import UnreadableSlide
from wsisam_service.slides.source import ByteSource, LocalBytes
from wsisam_service.slides.tiles import TileCache

RgbImage = npt.NDArray[np.uint8]
"""Pixels, uint8 (height, width, 3), sRGB."""

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".qptiff", ".scn", ".bif", ".png", ".jpg", ".jpeg")
"""Names that are listed as slides. The reader is chosen by content."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the pyramid, with level-0 pixels per pixel of this level in x and y."""

    width: int
    height: int
    downsample_x: float = 1.0
    downsample_y: float = 1.0

    @property
    def downsample(self) -> float:
        """Mean of both axes, the figure that other software shows."""
        return (self.downsample_x + self.downsample_y) / 2


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What a file says of its slide. Nothing here names a person or a folder.

    `levels` finest first. `mpp` is µm per level-0 pixel as the file says, believable or not, None where it says
    nothing. `bounds` is (x, y, width, height) in level 0 of the part that was scanned, where the file names one.
    """

    levels: Sequence[Level]
    mpp: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    vendor: str | None = None
    objective_power: float | None = None


class SlideReader(ABC):
    """An open slide; safe for concurrent use. Its files close when the last user lets go of it."""

    info: SlideInfo

    @property
    def width(self) -> int:
        """Level-0 pixels."""
        return self.info.levels[0].width

    @property
    def height(self) -> int:
        """Level-0 pixels."""
        return self.info.levels[0].height

    @property
    def mpp(self) -> float | None:
        """µm per level-0 pixel as the file says; see `SlideInfo`."""
        return self.info.mpp

    @abstractmethod
    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        """The rectangle with upper left corner (`x`, `y`), all in pixels of `level`: uint8 (height, width, 3).

        White outside the slide; alpha over white. Raises `UnreadableSlide`.
        """


def open_slide(source: ByteSource | Path | str, tiles: TileCache | None = None) -> SlideReader:
    """The reader that fits the content of a local file or of any other source of bytes.

    `tiles` is a cache to share with other slides. Raises `UnreadableSlide` or `NotBrightfield`.
    """
    from wsisam_service.slides.picture import PictureReader
    from wsisam_service.slides.tiff import TiffReader

    tiles = TileCache() if tiles is None else tiles
    try:
        source = LocalBytes(os.fspath(source)) if isinstance(source, str | Path) else source
        head = source.read_at(0, 16)
    except OSError as error:
        raise UnreadableSlide("The slide's file cannot be read.") from error
    if not head:
        raise UnreadableSlide("The slide's file is empty.")
    if head.startswith(_TIFF_MAGIC):
        return TiffReader(source, tiles)
    if head.startswith(_PICTURE_MAGIC):
        return PictureReader(source, tiles)
    raise UnreadableSlide("The slide's file is of no format that this service reads.")
