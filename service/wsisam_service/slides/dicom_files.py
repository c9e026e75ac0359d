"""DICOM files under a root: grouped into series by what their headers say, and read frame by frame."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import pydicom

from wsisam_service.dicom.frames import FrameTable, PixelData
from wsisam_service.dicom.header import (
    Header,
    Identifiers,
    damage_is_a_problem,
    has_magic,
    read_header,
    read_identifiers,
    read_whole_header,
    transfer_syntax,
)
from wsisam_service.dicom.image import SlideImage, is_full, is_shown, slide_image
from wsisam_service.dicom.per_frame import frame_places
from wsisam_service.dicom.source import DicomSource
from wsisam_service.errors import ServiceError, UnreadableSlide
from wsisam_service.slides.dicom_slide import DicomReader, series_fingerprint, series_name
from wsisam_service.slides.items import DicomIds, OpenedSlide, RootName, Stamp
from wsisam_service.slides.lanes import SHARED_LANE, Lane
from wsisam_service.slides.source import REPLACED, ByteSource, stream
from wsisam_service.slides.tiles import TileCache

DICOM_SUFFIXES = (".dcm", ".dicom")
HELD_FILES = 8
"""Files that one open slide holds open; a view reads from two levels, and slides may have hundreds of files."""

_THREADS = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="frames")

Open = Callable[[str], ByteSource]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that may be DICOM. `relative` is its path from the root."""

    relative: str
    path: str
    stamp: Stamp

    def open(self, open_bytes: Open) -> ByteSource:
        """The bytes of the file that was found, and no others'. Raises `UnreadableSlide`, OSError."""
        source = open_bytes(self.path)
        if source.stamp != self.stamp:
            raise UnreadableSlide(REPLACED)
        return source


def named_like_dicom(name: str) -> bool:
    """Archives call files .dcm, by a UID, or without a suffix; content decides."""
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (suffix in (*DICOM_SUFFIXES, "") or suffix[1:].isdigit())


class DicomSeries:
    """A `SlideItem`: the whole slide images of one series. `again` finds the series as it is now."""

    lane: Lane = SHARED_LANE

    def __init__(
        self,
        root: RootName,
        files: Mapping[str, FoundFile],
        ids: Identifiers,
        open_bytes: Open,
        again: Callable[[DicomSeries], tuple[DicomSeries, Stamp] | None],
        *,
        folders: Mapping[str, int] | None = None,
    ) -> None:
        """`files` by SOP instance UID; `folders` has when each of theirs had changed, where that is known."""
        self.root = root
        self.files = files
        self.ids = DicomIds(ids.study_uid, ids.series_uid, ids.accession)
        self.relative = f"dicom/{ids.series_uid}"
        self.name = series_name(ids.series_uid)
        self.folders = folders
        self._open = open_bytes
        self._again = again

    @property
    def stamp(self) -> Stamp:
        """Of all files together."""
        told = "\n".join(f"{uid} {file.path} {file.stamp}" for uid, file in sorted(self.files.items()))
        digest = hashlib.sha256(told.encode("utf-8", "surrogateescape"))  # a file's name need not be UTF-8
        return sum(file.stamp[0] for file in self.files.values()), digest.hexdigest()

    def renewed(self) -> tuple[DicomSeries, Stamp] | None:
        return self._again(self)

    def open(self, tiles: TileCache) -> OpenedSlide:
        with damage_is_a_problem():
            return self._opened(tiles)

    def _opened(self, tiles: TileCache) -> OpenedSlide:
        images, parts = [], {}
        for uid, file in sorted(self.files.items()):
            header = read_header(stream(file.open(self._open)))
            if is_shown(header.dataset):
                image = _image(header)
                images.append(image)
                size = image.tile[0] * image.tile[1] * 3
                parts[uid] = _Part(file, PixelData.of(header.dataset, header.pixels_at, image.count, size))
        reader = DicomReader(images, self._source, _FileFrames(parts, self._open), tiles)
        return OpenedSlide(reader, lambda: series_fingerprint(self.files))

    def _source(self, level_uids: Sequence[str]) -> DicomSource:
        """Outlives the open slide, so it holds UIDs only."""
        ids = self.ids
        return DicomSource(ids.study, ids.series, ids.accession, headers=lambda: self._headers(level_uids))

    def _headers(self, uids: Sequence[str]) -> list[pydicom.Dataset]:
        try:
            return [read_whole_header(stream(self.files[uid].open(self._open))) for uid in uids]
        except OSError as error:
            raise UnreadableSlide("The slide's file cannot be read.") from error


def _image(header: Header) -> SlideImage:
    syntax = transfer_syntax(header.dataset)
    if header.per_frame is None or is_full(header.dataset):
        return slide_image(header.dataset, syntax)
    return slide_image(header.dataset, syntax, frame_places(header.per_frame))


class DamagedDicom:
    """A `SlideItem` that cannot be opened: a file that says it is DICOM and is none, or not all of it."""

    lane: Lane = SHARED_LANE
    ids = None

    def __init__(
        self,
        root: RootName,
        file: FoundFile,
        problem: ServiceError,
        stamp_now: Callable[[str], Stamp | None],
    ) -> None:
        self.root = root
        self.relative = file.relative
        self.name = series_name(file.relative)
        self.stamp = file.stamp
        self._path = file.path
        self._problem = problem
        self._stamp_now = stamp_now

    def renewed(self) -> tuple[DamagedDicom, Stamp] | None:
        stamp = self._stamp_now(self._path)
        return None if stamp is None else (self, stamp)

    def open(self, tiles: TileCache) -> OpenedSlide:
        raise self._problem.anew()


class DicomIndex:
    """Which series the files of one root make. A header is read again only when its file has changed."""

    def __init__(self, open_bytes: Open) -> None:
        self._open = open_bytes
        self._known: dict[str, tuple[Stamp, Identifiers | ServiceError | None]] = {}
        self._lock = threading.Lock()

    def identify(self, files: Iterable[FoundFile]) -> Iterator[tuple[FoundFile, Identifiers | ServiceError]]:
        """What each whole slide image is, or what is wrong with it; other files are left out. Raises OSError."""
        for file in files:
            with self._lock:
                known = self._known.get(file.path)
            if known is None or known[0] != file.stamp:
                known = file.stamp, self._read(file)
                with self._lock:
                    self._known[file.path] = known
            if known[1] is not None:
                yield file, known[1]

    def forget_others(self, files: Iterable[FoundFile]) -> None:
        """Forget every file that is not among `files`."""
        there = {file.path for file in files}
        with self._lock:
            self._known = {path: known for path, known in self._known.items() if path in there}

    def _read(self, file: FoundFile) -> Identifiers | ServiceError | None:
        try:
            opened = stream(self._open(file.path))
            if not has_magic(opened):
                named = file.relative.lower().endswith(DICOM_SUFFIXES)
                return UnreadableSlide("The file is not DICOM.") if named else None
            with damage_is_a_problem():  # no file may break the listing of others
                return read_identifiers(opened)
        except FileNotFoundError:
            return None  # gone since it was listed
        except OSError:
            return UnreadableSlide("The slide's file cannot be read.")
        except ServiceError as problem:
            return problem.anew()


def group(identified: Iterable[tuple[FoundFile, Identifiers]]) -> list[tuple[Identifiers, dict[str, FoundFile]]]:
    """The files of each series by SOP instance UID. Of copies the first path counts."""
    series: dict[str, dict[str, FoundFile]] = defaultdict(dict)
    first: dict[str, Identifiers] = {}
    for file, ids in sorted(identified, key=lambda one: one[0].relative):
        first.setdefault(ids.series_uid, ids)
        series[ids.series_uid].setdefault(ids.sop_uid, file)
    return [(first[uid], files) for uid, files in series.items()]


@dataclass(frozen=True, slots=True)
class _Part:
    file: FoundFile
    pixels: PixelData


class _FileFrames:
    """A `FrameSource` over files."""

    threads = _THREADS

    def __init__(self, parts: Mapping[str, _Part], open_bytes: Open) -> None:
        self._parts = parts
        self._source = lru_cache(HELD_FILES)(lambda sop_uid: parts[sop_uid].file.open(open_bytes))
        self._tables: dict[str, FrameTable | UnreadableSlide] = {}

    def calls(self, count: int) -> int:
        return count

    def frames(self, sop_uid: str, numbers: Sequence[int]) -> list[bytes]:
        try:
            source = self._source(sop_uid)
            table = self._tables.get(sop_uid)
            if table is None:
                table = self._tables[sop_uid] = self._table(sop_uid, source)
            if isinstance(table, UnreadableSlide):
                raise UnreadableSlide(table.detail)
            return [table.read(source.read_at, number) for number in numbers]
        except OSError as error:
            raise UnreadableSlide("The slide's file cannot be read.") from error

    def _table(self, sop_uid: str, source: ByteSource) -> FrameTable | UnreadableSlide:
        """Or what is wrong with it, which is as costly to learn."""
        try:
            return self._parts[sop_uid].pixels.table(source.read_at)
        except UnreadableSlide as problem:
            return problem.with_traceback(None)
