"""Where the frames of a sparse image lie, read from the raw bytes of its header: pydicom takes a third of a
millisecond for each frame's groups, half a minute for a large slide.
"""

from __future__ import annotations

import re
import struct
from typing import IO

import numpy as np
import numpy.typing as npt

from wsisam_service.errors import UnreadableSlide

FramePlaces = npt.NDArray[np.float64]
"""(frames, 3): column and row of each frame's first pixel in the whole level, from 1, and its height in µm."""

PER_FRAME_GROUPS = 0x52009230
"""Tag of what a header says of each frame."""
NO_PLACES = "The DICOM header does not say where the frames lie."

_TAG = struct.pack("<HH", PER_FRAME_GROUPS >> 16, PER_FRAME_GROUPS & 0xFFFF)
_UNDEFINED = 0xFFFFFFFF
_CHUNK = 1 << 20
_LONGEST_END = 12
_END = {
    False: re.compile(rb"()\xe0\x7f(?:\x01\x00OV|\x10\x00O[BW])\0\0"),
    True: re.compile(rb"\xfe\xff\xdd\xe0\0\0\0\0()\xe0\x7f\x10\x00"),
}
"""The first element of the pixel data's group, by whether types are implicit: a tag alone may also be a frame's column
or row. Its type follows it, or else the end of the sequence comes before it. The group is where it begins."""
_COLUMN, _ROW = (
    re.compile(rb"\x48\x00" + element + rb"\x02(?:SL\x04\x00|\x04\x00\x00\x00)(.{4})", re.DOTALL)
    for element in (rb"\x1e", rb"\x1f")
)
_HEIGHT = re.compile(rb"\x40\x00\x4a\x07(?:DS([\x00-\x20])\x00|([\x00-\x20])\x00\x00\x00)", re.DOTALL)


def take_per_frame_groups(file: IO[bytes], *, implicit: bool) -> bytes | None:
    """The bytes of the per-frame functional groups, where the next element is those, and `file` then at the element
    after them. Raises `UnreadableSlide`, OSError.
    """
    start = file.tell()
    head = file.read(8 if implicit else 12)
    if head[:4] != _TAG or len(head) < (8 if implicit else 12):
        file.seek(start)
        return None
    length = int.from_bytes(head[-4:], "little")
    if length != _UNDEFINED:
        return file.read(length)
    groups = bytearray()
    while chunk := file.read(_CHUNK):
        searched = max(0, len(groups) - _LONGEST_END + 1)
        groups += chunk
        if end := _END[implicit].search(groups, searched):
            file.seek(start + len(head) + end.start(1))
            return bytes(groups[: end.start(1)])
    raise UnreadableSlide("The DICOM file has no pixel data.")


def frame_places(groups: bytes) -> FramePlaces:
    """The places of the frames. Raises `UnreadableSlide`."""
    columns, rows = (np.frombuffer(b"".join(tag.findall(groups)), "<i4") for tag in (_COLUMN, _ROW))
    count = len(columns)
    if len(rows) != count:
        raise UnreadableSlide(NO_PLACES)
    heights = [_number(groups, found) for found in _HEIGHT.finditer(groups)]
    return np.stack([columns, rows, heights if len(heights) == count else np.zeros(count)], axis=1).astype(np.float64)


def _number(groups: bytes, found: re.Match[bytes]) -> float:
    length = (found[1] or found[2])[0]
    try:
        return float(groups[found.end() : found.end() + length].strip(b"\0 ") or 0)
    except ValueError as error:
        raise UnreadableSlide(NO_PLACES) from error
