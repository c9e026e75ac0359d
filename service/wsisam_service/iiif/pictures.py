"""Pictures of slides for IIIF clients: held encoded, bounded in bytes."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import Counter, OrderedDict
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wsisam_service import metrics
from wsisam_service.iiif.addresses import ImageRequest
from wsisam_service.slides.lanes import TILE_LANE, own_lane
from wsisam_service.slides.pixels import read_rectangle
from wsisam_service.slides.reader import RgbImage
from wsisam_service.slides.slide import Slide

JPEG_QUALITY = 85
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
_VERSION = "2"
"""Part of every ETag; changes when the same request gives other pixels."""


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """`fingerprint` is that of the slide it shows."""

    content: bytes
    media_type: str
    fingerprint: str


class Pictures:
    """Draws pictures of slides, and keeps the least recently used ones within `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, EncodedPicture] = OrderedDict()
        self._bytes = 0
        self._forgotten: Counter[str] = Counter()
        self._lock = threading.Lock()

    def held(self, etag: str) -> EncodedPicture | None:
        """The picture of `etag`, where it is in memory."""
        with self._lock:
            picture = self._held.get(etag)
            if picture is not None:
                self._held.move_to_end(etag)
            return picture

    async def draw(self, etag: str, slide: Slide, request: ImageRequest) -> EncodedPicture:
        """Not kept where the slide is forgotten meanwhile. Raises `UnreadableSlide`, and `Overloaded` where too many
        wait. Cancelling drops what has not started.
        """
        forgotten = self._forgotten[slide.fingerprint]
        picture = await own_lane(TILE_LANE, slide.lane).run(_draw, slide, request)
        self._keep(etag, picture, forgotten)
        return picture

    def fingerprints(self) -> set[str]:
        """Of the slides whose pictures are held."""
        with self._lock:
            return {picture.fingerprint for picture in self._held.values()}

    def forget(self, fingerprints: AbstractSet[str]) -> None:
        """Forget the pictures of these slides, with those that are being drawn."""
        with self._lock:
            self._forgotten.update(fingerprints)
            for etag in [etag for etag, picture in self._held.items() if picture.fingerprint in fingerprints]:
                self._bytes -= len(self._held.pop(etag).content)
            metrics.CACHE_BYTES.labels("iiif").set(self._bytes)

    def _keep(self, etag: str, picture: EncodedPicture, forgotten: int) -> None:
        with self._lock:
            if self._forgotten[picture.fingerprint] != forgotten:
                return
            if etag in self._held or len(picture.content) > self._max_bytes:
                return
            self._held[etag] = picture
            self._bytes += len(picture.content)
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._held.popitem(last=False)[1].content)
            metrics.CACHE_BYTES.labels("iiif").set(self._bytes)


def etag_of(slide: Slide, request: ImageRequest) -> str:
    """A strong ETag: the slide's content and the request, so that it is known before anything is drawn."""
    digest = hashlib.sha256(f"{_VERSION}\n{slide.fingerprint}\n{request}".encode()).hexdigest()
    return f'"{digest[:32]}"'


def _draw(slide: Slide, request: ImageRequest) -> EncodedPicture:
    picture = _read(slide, request)
    if request.mirrored:
        picture = picture[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(np.rot90(picture, -request.quarter_turns)))
    if request.quality in ("gray", "bitonal"):
        image = image.convert("L")
    if request.quality == "bitonal":
        image = image.point([0] * 128 + [255] * 128, "1" if request.format == "png" else "L")
    buffer = io.BytesIO()
    if request.format == "jpg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return EncodedPicture(buffer.getvalue(), MEDIA_TYPES[request.format], slide.fingerprint)


def _read(slide: Slide, request: ImageRequest) -> RgbImage:
    """uint8 (height, width, 3). What is a piece of a level as it stands is read without resampling."""
    x, y, width, height = request.region
    for index, level in enumerate(slide.info.levels):
        left, top = x / level.downsample_x, y / level.downsample_y
        same_x = left.is_integer() and request.size[0] * level.downsample_x == width
        same_y = top.is_integer() and request.size[1] * level.downsample_y == height
        if same_x and same_y:
            return slide.read_region(index, int(left), int(top), *request.size)
    return read_rectangle(slide, (float(x), float(y), float(width), float(height)), request.size)
