"""Roots of files: a folder, a single file, or an fsspec URL; what lies in them, without ever leaving them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from wsisam_service.errors import ServiceError
from wsisam_service.slides.dicom_files import (
    DICOM_SUFFIXES,
    DamagedDicom,
    DicomIndex,
    DicomSeries,
    FoundFile,
    group,
    named_like_dicom,
)
from wsisam_service.slides.items import OpenedSlide, SlideItem, Stamp
from wsisam_service.slides.lanes import SHARED_LANE, Lane
from wsisam_service.slides.opening import SLIDE_SUFFIXES, open_slide
from wsisam_service.slides.source import (
    ByteSource,
    failures_as_os_errors,
    fingerprint,
    local_stamp,
    open_bytes,
    remote_stamp,
)
from wsisam_service.slides.tiles import TileCache


@dataclass(frozen=True, slots=True)
class SlideFile:
    """A `SlideItem` in one file. `relative` is its path from the root with "/" between names."""

    root: Root
    relative: str
    path: str
    ids: None = None
    lane: Lane = SHARED_LANE

    @property
    def name(self) -> str:
        """File name without folders; what is not UTF-8 in it shows as replacement characters."""
        name = self.relative.rsplit("/", 1)[-1]
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def renewed(self) -> tuple[SlideFile, Stamp] | None:
        stamp = self.root.stamp(self.path)
        return None if stamp is None else (self, stamp)

    def open(self, tiles: TileCache) -> OpenedSlide:
        source = self.root.open(self.path)
        return OpenedSlide(open_slide(source, tiles), lambda: fingerprint(source))


class Root:
    """One root. `identity` goes into slide ids: a folder's own name or a URL without credentials, so that gateways
    that mount the same folder in different places agree."""

    def __init__(self, location: str) -> None:
        self.filesystem: AbstractFileSystem
        self.filesystem, path = url_to_fs(location)
        self.local = isinstance(self.filesystem, LocalFileSystem)
        self.base: str = os.path.realpath(path) if self.local else path.rstrip("/")
        self._single_file: str | None = None
        if self.local and os.path.isfile(self.base):
            self._single_file = path  # a link goes by its own name, and may lead elsewhere tomorrow
            self.base = os.path.dirname(path)
        self.identity = self._folder_name(path) if self.local else _without_credentials(location)
        self._dicom = DicomIndex(self.open)

    def readable(self) -> bool:
        """Whether the root can be listed now."""
        if self.local:
            return os.access(self.base, os.R_OK | os.X_OK)
        try:
            with failures_as_os_errors():
                self.filesystem.invalidate_cache()
                return bool(self.filesystem.exists(self.base))
        except OSError:
            return False

    def items(self) -> Iterator[tuple[SlideItem, Stamp]]:
        """Every file that is named like a slide, and every series of DICOM files, with their stamps; hidden files and
        folders apart. Raises OSError.
        """
        dicom = []
        for relative, path, listed in self._local_paths() if self.local else self._remote_paths():
            stamp = self.stamp(path, listed)
            if stamp is None:
                continue
            if relative.lower().endswith(SLIDE_SUFFIXES):
                yield SlideFile(self, relative, path), stamp
            else:
                dicom.append(FoundFile(relative, path, stamp))
        self._dicom.forget_others(dicom)
        for item in self._dicom_items(dicom):
            yield item, item.stamp

    def open(self, path: str) -> ByteSource:
        """Raises OSError."""
        return open_bytes(self.filesystem, path)

    def stamp(self, path: str, listed: Mapping[str, Any] | None = None) -> Stamp | None:
        """The stamp of the file there now; None where it is gone or leads out of its root. `listed` as `remote_stamp`
        takes it. Raises OSError.
        """
        if self.local:
            if not self._holds(path):
                return None
            try:
                status = os.stat(path)
            except OSError:
                return None
            return local_stamp(status) if stat.S_ISREG(status.st_mode) else None
        try:
            return remote_stamp(self.filesystem, path, listed)
        except FileNotFoundError:
            if not self.readable():  # HTTP's says so of a server that does not answer, too
                raise
            return None

    def _dicom_items(self, files: Iterable[FoundFile]) -> Iterator[DicomSeries | DamagedDicom]:
        identified = []
        for file, found in self._dicom.identify(files):
            if isinstance(found, ServiceError):
                yield DamagedDicom(self, file, found, self.stamp)
            else:
                identified.append((file, found))
        for ids, members in group(identified):
            yield DicomSeries(self, members, ids, self.open, self._series_again)

    def _series_again(self, series: DicomSeries) -> tuple[DicomSeries, Stamp] | None:
        """The series as its folders have it now. Behind a URL, as it was listed: each look there is a request."""
        if not self.local:
            return series, series.stamp
        folders = {folder: _changed_ns(folder) for folder in {os.path.dirname(f.path) for f in series.files.values()}}
        if folders == series.folders and all(self.stamp(file.path) == file.stamp for file in series.files.values()):
            return series, series.stamp
        found = []
        for folder in folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    stamp = self.stamp(entry.path) if _may_be_dicom(entry.name) else None
                    if stamp is not None:
                        found.append(FoundFile(self._relative(entry.path), entry.path, stamp))
        known = [(file, ids) for file, ids in self._dicom.identify(found) if not isinstance(ids, ServiceError)]
        for ids, members in group(known):
            if ids.series_uid == series.ids.series:
                now = DicomSeries(self, members, ids, self.open, self._series_again, folders=folders)
                return now, now.stamp
        return None

    def _holds(self, path: str) -> bool:
        """Whether a local file lies in this root. Where a root is one file, whoever named it said where it may lead."""
        if self._single_file is not None:
            return path == self._single_file
        return os.path.realpath(path).startswith(os.path.join(self.base, ""))

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.base).replace(os.sep, "/")

    def _folder_name(self, path: str) -> str:
        return os.path.basename(os.path.abspath(self.base if self._single_file is not None else path))

    def _local_paths(self) -> Iterator[tuple[str, str, None]]:
        if self._single_file is not None:
            yield os.path.basename(self._single_file), self._single_file, None
            return
        os.scandir(self.base).close()  # os.walk keeps silent about a root that cannot be read
        for folder, folders, names in os.walk(self.base):  # does not follow links to folders
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if _named_like_a_slide(name) or _may_be_dicom(name):
                    path = os.path.join(folder, name)
                    yield self._relative(path), path, None

    def _remote_paths(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Each with what the listing says of the file, for a look at it is a request."""
        own_name = self.base.rsplit("/", 1)[-1]
        with failures_as_os_errors():
            self.filesystem.invalidate_cache()
            found: Mapping[str, Mapping[str, Any]] = self.filesystem.find(self.base, detail=True)
            if not found:
                self.filesystem.ls(self.base)  # find keeps silent about a root that cannot be listed
        for path, listed in found.items():
            relative = path[len(self.base) :].lstrip("/") or own_name
            *folders, name = relative.split("/")
            wanted = name.lower().endswith((*SLIDE_SUFFIXES, *DICOM_SUFFIXES)) and not name.startswith(".")
            if wanted and not any(folder.startswith(".") for folder in folders):
                yield relative, path, listed


def _named_like_a_slide(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SLIDE_SUFFIXES)


def _changed_ns(folder: str) -> int:
    """When something last came to a folder or left it; 0 where it is gone."""
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0


def _may_be_dicom(name: str) -> bool:
    return named_like_dicom(name) and not _named_like_a_slide(name)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path.rstrip('/')}"
