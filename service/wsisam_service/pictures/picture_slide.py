"""A picture that came with a request, as a slide of one level: the same views, masks and cache as on real slides."""

from __future__ import annotations

import hashlib

import numpy as np

from wsisam_service.pictures.picture import Picture
from wsisam_service.slides.lanes import SENT_LANE
from wsisam_service.slides.reader import Level, RgbImage, SlideInfo, SlideReader, paste
from wsisam_service.slides.slide import Slide

PICTURE_ID = "picture"
PICTURE_MODE = (
    "A pixel of a picture without a pixel size counts as the model's default_mpp. The wider view is read from the same "
    "picture and white where it ends."
)
"""What is different where no slide lies behind the pixels, as `/v1/info` says it."""


class _PictureReader(SlideReader):
    """Pixels in memory."""

    def __init__(self, picture: Picture, info: SlideInfo) -> None:
        self._picture = picture
        self.info = info

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        region = np.full((height, width, 3), 255, np.uint8)
        paste(region, self._picture.pixels, -x, -y)
        return region


def slide_of_picture(picture: Picture, mpp: float | None) -> Slide:
    """`picture` at `mpp` µm per pixel, None where nobody knows.

    The fingerprint is of pixels and pixel size, so that a picture sent again meets its embeddings.
    """
    info = SlideInfo((Level(picture.width, picture.height),), mpp=mpp)
    reader = _PictureReader(picture, info)
    fingerprint = hashlib.sha256(f"{picture.content}\n{mpp}".encode("ascii")).hexdigest()
    return Slide(PICTURE_ID, PICTURE_ID, fingerprint, info, lambda: reader, lane=SENT_LANE)
