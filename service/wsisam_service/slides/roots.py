"""Slide roots: a folder, a single file, or an fsspec URL; what lies in them, without ever leaving them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from wsisam_service.slides.opening import SLIDE_SUFFIXES
from wsisam_service.slides.source import ByteSource, open_bytes

Stamp = tuple[int, str]
"""A file's size, and whatever its file system changes when the content changes."""

_CHANGE_KEYS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")


@dataclass(frozen=True, slots=True)
class SlideFile:
    """A file under a root. `relative` is its path from the root with "/" between names."""

    root: Root
    relative: str
    path: str

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.relative.rsplit("/", 1)[-1]

    def stamp(self) -> Stamp | None:
        """The file's stamp now; None where it is gone or leads out of its root. Raises OSError."""
        return self.root.stamp(self.path)

    def open(self) -> ByteSource:
        """Raises OSError."""
        return open_bytes(self.root.filesystem, self.path)


class Root:
    """One root. `identity` goes into slide ids: a folder's own name or a URL without credentials, so that gateways
    that mount the same folder in different places agree."""

    def __init__(self, location: str) -> None:
        self.filesystem: AbstractFileSystem
        self.filesystem, path = url_to_fs(location)
        self.local = isinstance(self.filesystem, LocalFileSystem)
        self.base: str = os.path.realpath(path) if self.local else path.rstrip("/")
        self._single_file = self.local and os.path.isfile(self.base)
        if self._single_file:
            self.base = os.path.dirname(self.base)
            self._file_name = os.path.basename(path)
        self.identity = self._folder_name(path) if self.local else _without_credentials(location)

    def readable(self) -> bool:
        """Whether the root can be listed now."""
        try:
            return os.access(self.base, os.R_OK | os.X_OK) if self.local else bool(self.filesystem.exists(self.base))
        except OSError:
            return False

    def files(self) -> Iterator[tuple[SlideFile, Stamp]]:
        """Every file that is named like a slide, with its stamp; hidden files and folders apart. Raises OSError."""
        for relative, path in self._local_paths() if self.local else self._remote_paths():
            stamp = self.stamp(path)
            if stamp is not None:
                yield SlideFile(self, relative, path), stamp

    def stamp(self, path: str) -> Stamp | None:
        """See `SlideFile.stamp`."""
        if self.local:
            real = os.path.realpath(path)
            if not real.startswith(os.path.join(self.base, "")) or not os.path.isfile(real):
                return None
            status = os.stat(real)
            return status.st_size, str(status.st_mtime_ns)
        try:
            info: Mapping[str, Any] = self.filesystem.info(path)
        except FileNotFoundError:
            return None
        return int(info.get("size") or 0), " ".join(str(info[key]) for key in _CHANGE_KEYS if key in info)

    def _folder_name(self, path: str) -> str:
        folder = os.path.dirname(os.path.abspath(path)) if self._single_file else os.path.abspath(path)
        return os.path.basename(folder)

    def _local_paths(self) -> Iterator[tuple[str, str]]:
        if self._single_file:
            yield self._file_name, os.path.join(self.base, self._file_name)
            return
        os.scandir(self.base).close()  # os.walk keeps silent about a root that cannot be read
        for folder, folders, names in os.walk(self.base):  # does not follow links to folders
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in filter(_named_like_a_slide, names):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, self.base).replace(os.sep, "/"), path

    def _remote_paths(self) -> Iterator[tuple[str, str]]:
        self.filesystem.invalidate_cache()
        paths: Sequence[str] = self.filesystem.find(self.base)
        for path in paths:
            relative = path[len(self.base) :].lstrip("/")
            folders, name = relative.split("/")[:-1], relative.rsplit("/", 1)[-1]
            if _named_like_a_slide(name) and not any(folder.startswith(".") for folder in folders):
                yield relative, path


def _named_like_a_slide(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SLIDE_SUFFIXES)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path.rstrip('/')}"
