"""Pictures that travel with a request, and a cache of them: QuPath sends the same view again with every click."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsisam_service.errors import ImageTooLarge, InvalidRequest
from wsisam_service.slides.lanes import SENT_LANE

_FORMATS = ("PNG", "JPEG")
_SCAN = b"\xff\xda"
MAX_SCANS = 200
"""Of a JPEG, those of thumbnails within it included: a progressive one has some ten. Each is decoded over the whole
picture, however little it holds.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """`pixels` are RGB, uint8 (height, width, 3), sRGB. `content` is the SHA-256 of size and pixels, in hex."""

    pixels: npt.NDArray[np.uint8]
    content: str

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


def decode_picture(data: bytes, max_px: int) -> Picture:
    """A PNG or JPEG of any mode, brought to RGB: grey repeated, 16 bit to 8, palettes looked up, alpha over white.

    Raises `InvalidRequest` for what is no such picture and `ImageTooLarge` beyond `max_px` pixels, before decoding.
    """
    if data.startswith(b"\xff\xd8") and data.count(_SCAN) > MAX_SCANS:
        raise InvalidRequest(f"The picture is a JPEG of more than {MAX_SCANS} scans.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is the tighter one
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > max_px:
                    raise ImageTooLarge(f"The picture has {image.width} x {image.height} pixels; {max_px} are taken.")
                pixels = rgb_of(image)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"The picture has too many pixels; {max_px} are taken.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidRequest("The picture cannot be decoded; PNG and JPEG are understood.") from error
    size = f"{pixels.shape[1]}x{pixels.shape[0]}\n".encode("ascii")
    return Picture(pixels, hashlib.sha256(size + pixels.tobytes()).hexdigest())


def rgb_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of `image` as `decode_picture` has them. Raises OSError, ValueError, SyntaxError."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        grey = (np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


class PictureCache:
    """Decoded pictures by the text they came as, least recently used first out, bounded in bytes."""

    def __init__(self, max_bytes: int, max_px: int) -> None:
        self._max_bytes = max_bytes
        self._max_px = max_px
        self._bytes = 0
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._lock = threading.Lock()

    async def decode(self, base64_text: str) -> Picture:
        """The picture of a base64 text. Raises as `decode_picture` does."""
        return await SENT_LANE.run(self._decode, base64_text)

    def _decode(self, base64_text: str) -> Picture:
        try:
            encoded = base64_text.encode("ascii")
        except UnicodeEncodeError as error:
            raise InvalidRequest("The picture is not base64.") from error
        key = hashlib.sha256(encoded).digest()
        with self._lock:
            known = self._pictures.get(key)
            if known is not None:
                self._pictures.move_to_end(key)
                return known
        try:
            data = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise InvalidRequest("The picture is not base64.") from error
        picture = decode_picture(data, self._max_px)
        self._keep(key, picture)
        return picture

    def _keep(self, key: bytes, picture: Picture) -> None:
        with self._lock:
            if key not in self._pictures and picture.pixels.nbytes <= self._max_bytes:
                self._pictures[key] = picture
                self._bytes += picture.pixels.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._pictures.popitem(last=False)[1].pixels.nbytes
