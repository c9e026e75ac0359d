"""PNG and JPEG files as slides of one level, for pictures that never were slides."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

from wsisam_service.errors import NotBrightfield, UnreadableSlide
from wsisam_service.pictures.picture import rgb_of
from wsisam_service.slides.reader import Level, RgbImage, SlideInfo, SlideReader, paste
from wsisam_service.slides.source import ByteSource, stream
from wsisam_service.slides.tiles import TileCache, TileOwner

MAX_PICTURE_PIXELS = 20_000_000
"""A picture is decoded as a whole; this many pixels fit the tile cache of default size."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the bound here is the tighter one

_UNREADABLE = "The picture cannot be decoded."


class PictureReader(SlideReader):
    """One RGB or RGBA picture. Raises `UnreadableSlide`, `NotBrightfield`."""

    def __init__(self, source: ByteSource, tiles: TileCache) -> None:
        self._source = source
        self._tiles = tiles
        self._owner = TileOwner()
        with self._open() as image:
            width, height = image.size
            if image.mode not in ("RGB", "RGBA", "P"):
                raise NotBrightfield("The picture is not 8-bit RGB.")
            if width * height > MAX_PICTURE_PIXELS:
                raise UnreadableSlide(f"Pictures of more than {MAX_PICTURE_PIXELS} pixels have to be pyramidal TIFF.")
        self.info = SlideInfo((Level(width, height),))

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        region = np.full((height, width, 3), 255, np.uint8)
        paste(region, self._tiles.get((self._owner, level, 0), self._decode), -x, -y)
        return region

    def drop_tiles(self) -> None:
        self._tiles.drop(self._owner)

    def _open(self) -> Image.Image:
        try:
            return Image.open(stream(self._source), formats=("PNG", "JPEG"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableSlide(_UNREADABLE) from error

    def _decode(self) -> RgbImage:
        try:
            with self._open() as image:
                return rgb_of(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableSlide(_UNREADABLE) from error
