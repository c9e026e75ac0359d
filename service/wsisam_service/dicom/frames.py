"""Where the frames of one instance lie in its file: by offset table where there is one, else by walking the items."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import UID, ImplicitVRLittleEndian

from wsisam_service.dicom.header import BROKEN, damage_is_a_problem, transfer_syntax
from wsisam_service.errors import UnreadableSlide

MAX_FRAME_BYTES = 64 << 20
MAX_FRAGMENTS = 1 << 16
"""Items that one frame is divided into."""
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_ITEM_HEADER = 8
_UNDEFINED = 0xFFFFFFFF

ReadAt = Callable[[int, int], bytes]
"""(offset, length) → bytes, fewer only at the end of the file; raises OSError."""
_Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Frame `i` lies in the bytes `starts[i]` to `ends[i]`; in items of a sequence where `encapsulated`."""

    starts: _Offsets
    ends: _Offsets
    encapsulated: bool

    def read(self, read_at: ReadAt, frame: int) -> bytes:
        """The bytes of one frame. Raises `UnreadableSlide`, OSError."""
        start, end = int(self.starts[frame]), int(self.ends[frame])
        if not 0 < end - start <= MAX_FRAME_BYTES:
            raise UnreadableSlide(BROKEN)
        data = read_at(start, end - start)
        if len(data) < end - start:
            raise UnreadableSlide("The DICOM file ends early: a part of its image is missing.")
        return _payload(data) if self.encapsulated else data


@dataclass(frozen=True, slots=True)
class PixelData:
    """Where the pixel data's element begins in a file, and what its header says of the `count` frames in it.

    `frame_bytes` is the length of a frame that is not compressed, `extended` the extended offset table and its
    lengths.
    """

    position: int
    transfer_syntax: str
    count: int
    frame_bytes: int
    extended: tuple[bytes, bytes] | None

    @classmethod
    def of(cls, header: pydicom.Dataset, position: int, count: int, frame_bytes: int) -> PixelData:
        """As `header` says. Raises `UnreadableSlide`."""
        syntax = transfer_syntax(header)
        with damage_is_a_problem():
            offsets, lengths = (header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
        extended = (bytes(offsets), bytes(lengths)) if offsets and lengths else None
        return cls(position, syntax, count, frame_bytes, extended)

    def table(self, read_at: ReadAt) -> FrameTable:
        """Where each frame lies. Raises `UnreadableSlide`, OSError."""
        length_at = self.position + (4 if self.transfer_syntax == ImplicitVRLittleEndian else 8)
        head, data = read_at(self.position, length_at + 4 - self.position), length_at + 4
        if head[:4] != _PIXEL_DATA or len(head) < data - self.position:
            raise UnreadableSlide("The DICOM file has no pixel data.")
        if not UID(self.transfer_syntax).is_encapsulated:
            starts = data + np.arange(self.count, dtype=np.int64) * self.frame_bytes
            return FrameTable(starts, starts + self.frame_bytes, encapsulated=False)
        basic, first = _item(read_at, data)
        try:
            starts, ends = self._offsets(read_at, basic, first)
        except ValueError as error:
            raise UnreadableSlide(BROKEN) from error
        if len(starts) != self.count:
            raise UnreadableSlide(BROKEN)
        return FrameTable(starts, ends, encapsulated=True)

    def _offsets(self, read_at: ReadAt, basic: tuple[int, int], first: int) -> tuple[_Offsets, _Offsets]:
        """From the extended offset table, the basic one, or the items themselves."""
        if self.extended:
            offsets, lengths = (np.frombuffer(table, "<u8").astype(np.int64)[: self.count] for table in self.extended)
            return offsets + first, offsets + first + _ITEM_HEADER + lengths + lengths % 2
        if basic[1] == 4 * self.count:
            starts = np.frombuffer(read_at(*basic), "<u4").astype(np.int64) + first
            return starts, np.append(starts[1:], _walk(read_at, int(starts[-1]), MAX_FRAGMENTS)[-1:])
        if self.count == 1:
            borders = _walk(read_at, first, MAX_FRAGMENTS)[[0, -1]]
        else:
            borders = _walk(read_at, first, self.count)
        return borders[:-1], borders[1:]


def _item(read_at: ReadAt, offset: int) -> tuple[tuple[int, int], int]:
    """(start and length of an item's value, where the next item begins). Raises `UnreadableSlide`."""
    head = read_at(offset, _ITEM_HEADER)
    if len(head) < _ITEM_HEADER or head[:4] != _ITEM:
        raise UnreadableSlide(BROKEN)
    length = int.from_bytes(head[4:], "little")
    if length == _UNDEFINED:
        raise UnreadableSlide(BROKEN)
    return (offset + _ITEM_HEADER, length), offset + _ITEM_HEADER + length


def _walk(read_at: ReadAt, offset: int, at_most: int) -> _Offsets:
    """Where every item begins, at least one, up to the end of the sequence or of the file, and where the last one ends.

    Raises `UnreadableSlide`, also where there are more than `at_most` items.
    """
    borders = array("q", [offset])
    while ((head := read_at(offset, 4)) and head != _SEQUENCE_END) or len(borders) == 1:
        if len(borders) > at_most:
            raise UnreadableSlide(BROKEN)
        _, offset = _item(read_at, offset)
        borders.append(offset)
    return np.frombuffer(borders, np.int64)


def _payload(items: bytes) -> bytes:
    """The values of the items that `items` consists of, joined."""
    values, offset = [], 0
    while offset + _ITEM_HEADER <= len(items) and items[offset : offset + 4] == _ITEM:
        start = offset + _ITEM_HEADER
        offset = start + int.from_bytes(items[start - 4 : start], "little")
        values.append(items[start:offset])
    if not values or offset > len(items):
        raise UnreadableSlide(BROKEN)
    return b"".join(values)
