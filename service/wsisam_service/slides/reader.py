"""What every slide reader offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsisam_service.dicom.source import DicomSource

RgbImage = npt.NDArray[np.uint8]
"""Pixels, uint8 (height, width, 3), sRGB."""


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
    nothing: the geometric mean of both sides, of which the longer is `pixel_ratio` times the shorter. `bounds` is
    (x, y, width, height) in level 0 of the part that was scanned, where the file names one. `origin_mm` is where level
    0 begins in the slide's own coordinates, where the file says so; `dicom` only for slides that are DICOM.
    """

    levels: Sequence[Level]
    mpp: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    vendor: str | None = None
    objective_power: float | None = None
    origin_mm: tuple[float, float] | None = None
    pixel_ratio: float = 1.0
    dicom: DicomSource | None = None


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

    def opened(self) -> SlideReader:
        """What is open now, for reads that belong together: after a purge none of them is held."""
        return self

    def drop_tiles(self) -> None:  # noqa: B027  # a reader without a cache has nothing to drop
        """Forget decoded pixels held in memory, for good: what is read from now on is not held."""


def paste(region: RgbImage, tile: RgbImage, left: int, top: int) -> None:
    """Put `tile` at (`left`, `top`) of `region`, as far as it reaches into it."""
    target = region[max(top, 0) : max(top + tile.shape[0], 0), max(left, 0) : max(left + tile.shape[1], 0)]
    target[:] = tile[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
