"""What a TIFF's compressed tile says of its size: a codec makes room for that, whatever the file says of its tiles."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

APERIO_YCBCR, APERIO_RGB = 33003, 33005
"""JPEG 2000, which in Aperio's files says by its number what colours it holds. Its codestream does not."""
JPEG = (6, 7, 33007, 34892)
BYTE_COMPRESSIONS = (1, 5, 8, 32773, 32946, 34925, 34926, 50000)
"""Those of tifffile's codecs (none, LZW, deflate, PackBits, LZMA, Zstandard) that fill a tile's bytes and no more."""

Size = tuple[int, int]
"""(width, height) in pixels."""

_SOI = b"\xff\xd8"
_FRAME_HEADS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_MARKERS_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
_CODESTREAM = b"\xff\x4f\xff\x51"
_MOST_COMPONENTS = 4


def image_size(compression: int, data: bytes) -> Size | None:
    """What `data`, compressed in TIFF's `compression`, says it is; None for bytes that say nothing.

    Raises ValueError, also for a compression that is not known here.
    """
    if compression in BYTE_COMPRESSIONS:
        return None
    try:
        return _IMAGES[compression](data)
    except (KeyError, IndexError, struct.error) as error:
        raise ValueError("not understood") from error


def is_known(compression: int) -> bool:
    """Whether `image_size` knows TIFF's `compression`."""
    return compression in BYTE_COMPRESSIONS or compression in _IMAGES


def _jpeg(data: bytes) -> Size:
    """As libjpeg finds it, which skips what is no marker."""
    if not data.startswith(_SOI):
        raise ValueError("not JPEG")
    at = len(_SOI)
    while True:
        at = data.index(0xFF, at)
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _FRAME_HEADS:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise ValueError("no frame")
        if marker not in _MARKERS_WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")


def _jpeg_2000(data: bytes) -> Size:
    """A bare codestream, or the one in the boxes of a JP2."""
    at = 0 if data.startswith(_CODESTREAM) else _jp2_codestream(data)
    if data[at : at + 4] != _CODESTREAM:
        raise ValueError("not JPEG 2000")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    (components,) = struct.unpack_from(">H", data, at + 40)
    if components > _MOST_COMPONENTS:
        raise ValueError("too many components")
    return right - left, bottom - top


def _jp2_codestream(data: bytes) -> int:
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + head)
            head = 16
        if kind == b"jp2c":
            return at + head
        if length < head:
            raise ValueError("no codestream")
        at += length


def _png(data: bytes) -> Size:
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR":
        raise ValueError("not PNG")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _webp(data: bytes) -> Size:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not WebP")
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    raise ValueError("not WebP")


_IMAGES: Mapping[int, Callable[[bytes], Size]] = {
    **dict.fromkeys(JPEG, _jpeg),
    **dict.fromkeys((APERIO_YCBCR, 33004, APERIO_RGB, 34712), _jpeg_2000),
    34933: _png,
    50001: _webp,
}
