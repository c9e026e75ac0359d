"""Headers of DICOM files, parsed by pydicom within bounds: what identifies an instance, and everything but its pixels.

A file may lie about every length. So a header is read through a counter that stops long before memory does, and a
deflated data set, which could inflate to anything, is not read at all.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import pydicom
from pydicom import config
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian

from wsisam_service.dicom.per_frame import PER_FRAME_GROUPS, take_per_frame_groups
from wsisam_service.errors import ServiceError, UnreadableSlide

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of VL Whole Slide Microscopy images."""
_NOT_LITTLE_ENDIAN = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}

MAX_SUMMARY_BYTES = 1 << 20
MAX_HEADER_BYTES = 32 << 20
"""Mostly colour profiles and tables of offsets."""
MAX_PER_FRAME_BYTES = 128 << 20
"""A sparse level has some 100 to 300 bytes per tile here."""
_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"

_META_END, _SERIES_UID_TAG, PIXELS = 0x00030000, 0x0020000E, 0x7FE00008
_SUMMARY_TAGS: list[Any] = [
    Tag(name) for name in ("SOPClassUID", "SOPInstanceUID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID")
]
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64

config.settings.reading_validation_mode = config.IGNORE  # its warnings quote values
logging.getLogger("pydicom").disabled = True  # so does its log
warnings.filterwarnings("ignore", module="pydicom")

BROKEN = "The DICOM file is damaged."


@contextmanager
def damage_is_a_problem(said: str = BROKEN) -> Iterator[None]:
    """`UnreadableSlide` in place of whatever pydicom raises, here or on looking at a value, for what is damaged."""
    try:
        yield
    except (OSError, ServiceError):
        raise
    except Exception as error:
        raise UnreadableSlide(said) from error


@dataclass(frozen=True, slots=True)
class Identifiers:
    """What names an instance; every UID is one by `is_uid`."""

    study_uid: str
    series_uid: str
    sop_uid: str
    accession: str | None


def is_uid(text: str) -> bool:
    """Whether `text` is numbers with dots between them, which may stand in an address."""
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def has_magic(file: IO[bytes]) -> bool:
    """Whether `file` says at its start that it is DICOM. Raises OSError."""
    file.seek(0)
    return file.read(_PREAMBLE_BYTES + len(_MAGIC))[_PREAMBLE_BYTES:] == _MAGIC


def read_identifiers(file: IO[bytes]) -> Identifiers | None:
    """What identifies the whole slide image in `file`; None where it is DICOM of another kind.

    Raises `UnreadableSlide`, OSError.
    """
    header = _parse(_Bounded(file, MAX_SUMMARY_BYTES), before=_SERIES_UID_TAG + 1, tags=_SUMMARY_TAGS)
    with damage_is_a_problem():
        kind = str(header.file_meta.get("MediaStorageSOPClassUID", "") or header.get("SOPClassUID", ""))
    if not kind:
        raise UnreadableSlide(BROKEN)
    return identifiers(header) if kind == WHOLE_SLIDE else None


def identifiers(header: pydicom.Dataset) -> Identifiers:
    """Raises `UnreadableSlide` where a UID is missing or none."""
    with damage_is_a_problem():
        uids = [str(header.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        accession = str(header.get("AccessionNumber") or "").strip() or None
    if not all(map(is_uid, uids)):
        raise UnreadableSlide("The DICOM header gives no usable study, series or instance UID.")
    return Identifiers(uids[0], uids[1], uids[2], accession)


@dataclass(frozen=True, slots=True)
class Header:
    """What comes before the pixel data, whose element begins at `pixels_at`; the per-frame groups as raw bytes."""

    dataset: pydicom.Dataset
    per_frame: bytes | None
    pixels_at: int


def read_header(file: IO[bytes]) -> Header:
    """The header of a file, its meta group included. Raises `UnreadableSlide`, OSError."""
    dataset = _parse(_Bounded(file, MAX_HEADER_BYTES), before=PER_FRAME_GROUPS)
    implicit = transfer_syntax(dataset) == ImplicitVRLittleEndian
    per_frame = take_per_frame_groups(cast(Any, _Bounded(file, MAX_PER_FRAME_BYTES)), implicit=implicit)
    dataset.update(_read_on(_Bounded(file, MAX_HEADER_BYTES), implicit=implicit, before=PIXELS))
    return Header(dataset, per_frame, file.tell())


def read_whole_header(file: IO[bytes]) -> pydicom.Dataset:
    """Everything but the pixel data as one data set. Raises `UnreadableSlide`, OSError."""
    return _parse(_Bounded(file, MAX_HEADER_BYTES + MAX_PER_FRAME_BYTES), before=PIXELS)


def transfer_syntax(header: pydicom.Dataset) -> str:
    """How the pixels of a file with this header are stored. Raises `UnreadableSlide`."""
    with damage_is_a_problem():
        return str(header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))


def _parse(file: _Bounded, *, before: int, tags: list[Any] | None = None) -> pydicom.Dataset:
    """A file's meta group, and the elements before the tag `before`, where `file` then is."""
    if not has_magic(cast(Any, file)):
        raise UnreadableSlide("The file is not DICOM.")
    meta = _read_on(file, implicit=False, before=_META_END)
    with damage_is_a_problem():
        syntax = str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
    if syntax in _NOT_LITTLE_ENDIAN:
        raise UnreadableSlide("Deflated and big endian DICOM data sets are not read.")
    header = _read_on(file, implicit=syntax == ImplicitVRLittleEndian, before=before, tags=tags)
    with damage_is_a_problem():
        header.file_meta = FileMetaDataset(meta)
    return header


def _read_on(file: _Bounded, *, implicit: bool, before: int, tags: list[Any] | None = None) -> pydicom.Dataset:
    """The elements from here to the tag `before`."""
    with damage_is_a_problem():
        return read_dataset(
            cast(Any, file),
            is_implicit_VR=implicit,
            is_little_endian=True,
            stop_when=lambda tag, *_: tag >= before,
            specific_tags=tags,
        )


class _Bounded:
    """A binary file of which at most `max_bytes` are read; skipping is free."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise UnreadableSlide("The DICOM header is larger than a header can be.")
        self._left -= size
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
