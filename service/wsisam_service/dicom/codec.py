"""Frames into RGB. The codestream itself says what it is and how large, before anything is decoded."""

from __future__ import annotations

import struct

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

from wsisam_service.errors import UnreadableSlide

TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
"""What is decoded."""
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}

RgbTile = npt.NDArray[np.uint8]

_UNKNOWN = "The slide's image is compressed in a way that this service does not decode."
_DAMAGED = "A part of the slide's image is damaged."
_SOI, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_FRAME_HEADS = {0xC0, 0xC1, 0xC2, 0xC3, 0xF7}
_JPEG_LS, _JPEG_LOSSLESS = 0xF7, 0xC3
_START_OF_SCAN = 0xDA
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def require_known(transfer_syntax: str) -> None:
    """Raises `UnreadableSlide` for a transfer syntax that is not decoded."""
    if transfer_syntax not in TRANSFER_SYNTAXES:
        raise UnreadableSlide(_UNKNOWN)


def is_compressed(transfer_syntax: str) -> bool:
    """Whether frames of this transfer syntax, one that is decoded, are codestreams and no bare pixels."""
    return transfer_syntax not in _NATIVE


def decode_frame(
    data: bytes, tile: tuple[int, int], photometric: str, *, compressed: bool, planar: bool = False
) -> RgbTile:
    """One frame of size `tile` (width, height): uint8 (height, width, 3). Raises `UnreadableSlide`.

    `photometric` is DICOM's; `compressed`: its transfer syntax says so, False also where nobody tells that; `planar`:
    not compressed, one colour plane after the other.
    """
    try:
        if not compressed and _is_plain(data, tile):  # bare pixels may begin like a codestream
            pixels = _plain(data, tile, photometric, planar=planar)
        elif data.startswith(_SOI):
            pixels = _jpeg(data, tile, photometric)
        elif data.startswith(_JPEG_2000):
            pixels = _jpeg_2000(data, tile, photometric)
        else:
            pixels = _plain(data, tile, photometric, planar=planar)
    except UnreadableSlide:
        raise
    except Exception as error:  # each codec has errors of its own
        raise UnreadableSlide(_DAMAGED) from error
    if pixels.shape != (tile[1], tile[0], 3) or pixels.dtype != np.uint8:
        raise UnreadableSlide(_DAMAGED)
    return pixels


def _jpeg(data: bytes, tile: tuple[int, int], photometric: str) -> RgbTile:
    head, size, says_colours = _jpeg_head(data)
    if size != (*tile, 3):
        raise UnreadableSlide(_DAMAGED)
    if head == _JPEG_LS:
        return _rgb(imagecodecs.jpegls_decode(data), photometric)
    if head == _JPEG_LOSSLESS:
        raise UnreadableSlide(_UNKNOWN)
    stored = None if says_colours else ("RGB" if photometric == "RGB" else "YCBCR")
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=stored, outcolorspace="RGB"))


def _jpeg_head(data: bytes) -> tuple[int, tuple[int, int, int], bool]:
    """(kind of frame, (width, height, components), whether the stream says which colours it holds)."""
    offset, says_colours = len(_SOI), False
    while offset + 4 <= len(data):
        if data[offset] != 0xFF:
            break
        marker = data[offset + 1]
        if marker == 0xFF or marker in _MARKERS_WITHOUT_LENGTH:
            offset += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_HEADS:
            height, width, components = struct.unpack_from(">HHB", data, offset + 5)
            return marker, (width, height, components), says_colours
        if marker == _START_OF_SCAN:
            break
        value = data[offset + 4 : offset + 9]
        says_colours |= (marker == 0xE0 and value == b"JFIF\0") or (marker == 0xEE and value == b"Adobe")
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    raise UnreadableSlide(_DAMAGED)


def _jpeg_2000(data: bytes, tile: tuple[int, int], photometric: str) -> RgbTile:
    right, bottom, left, top = struct.unpack_from(">IIII", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    if (right - left, bottom - top, components) != (*tile, 3):
        raise UnreadableSlide(_DAMAGED)
    return _rgb(np.asarray(imagecodecs.jpeg2k_decode(data)), photometric)


def _is_plain(data: bytes, tile: tuple[int, int]) -> bool:
    """Whether `data` has the length of bare pixels, which may be padded to an even one."""
    length = tile[0] * tile[1] * 3
    return length <= len(data) <= length + 1


def _plain(data: bytes, tile: tuple[int, int], photometric: str, *, planar: bool) -> RgbTile:
    if not _is_plain(data, tile):
        raise UnreadableSlide(_DAMAGED)
    width, height = tile
    pixels = np.frombuffer(data, np.uint8, width * height * 3)
    pixels = pixels.reshape(3, height, width).transpose(1, 2, 0) if planar else pixels.reshape(height, width, 3)
    return _rgb(pixels, photometric)


def _rgb(pixels: npt.NDArray[np.uint8], photometric: str) -> RgbTile:
    """Codecs undo their own colour transform (YBR_ICT, YBR_RCT), but not one made before them."""
    if photometric not in ("YBR_FULL", "YBR_FULL_422"):
        return pixels
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels[..., (0, 2, 1)]), cv2.COLOR_YCrCb2RGB), np.uint8)
