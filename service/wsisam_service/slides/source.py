"""The bytes of one slide file, local or behind a URL, read at any offset from any thread."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import weakref
from collections.abc import Iterator
from typing import Protocol

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from wsisam_service.errors import UnreadableSlide

FINGERPRINT_BYTES = 1 << 20
"""Length of the two ends of the file that go into its fingerprint."""
STREAM_BUFFER_BYTES = 1 << 17


class ByteSource(Protocol):
    """Random access to a file's bytes; safe for concurrent use."""

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file. Raises OSError, `UnreadableSlide`."""
        ...


@contextlib.contextmanager
def failures_as_os_errors() -> Iterator[None]:
    """OSError in place of what a remote file system raises of its own kind: aiohttp's and botocore's are none."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError("The remote file system failed.") from error


class LocalBytes:
    """A local file, held open: where another takes its name, this goes on giving the old bytes. One that is written
    over in place gives none any more: reading raises `UnreadableSlide`.

    The descriptor closes when the last user lets go, so a reader can be dropped while another thread still reads.
    """

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._written = self._last_written()
        self.size = self._written[0]

    def read_at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if self._last_written() != self._written:
            raise UnreadableSlide("The slide's file has been replaced; ask again.")
        return data

    def _last_written(self) -> tuple[int, int]:
        """(size, time in ns)"""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


class RemoteBytes:
    """A file of any fsspec file system; each read is one range request."""

    def __init__(self, filesystem: AbstractFileSystem, path: str) -> None:
        self._filesystem = filesystem
        self._path = path
        with failures_as_os_errors():
            self.size = int(filesystem.size(path) or 0)

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        with failures_as_os_errors():
            return bytes(self._filesystem.cat_file(self._path, start=offset, end=end))


def open_bytes(filesystem: AbstractFileSystem, path: str) -> ByteSource:
    """The bytes of `path` in `filesystem`. Raises OSError."""
    if isinstance(filesystem, LocalFileSystem):
        return LocalBytes(path)
    return RemoteBytes(filesystem, path)


def fingerprint(source: ByteSource) -> str:
    """SHA-256 over the size as decimal ASCII, a newline, and the first and the last MiB (DESIGN.md section 4)."""
    length = min(source.size, FINGERPRINT_BYTES)
    digest = hashlib.sha256(f"{source.size}\n".encode("ascii"))
    digest.update(source.read_at(0, length))
    digest.update(source.read_at(source.size - length, length))
    return digest.hexdigest()


def stream(source: ByteSource) -> io.BufferedReader:
    """A seekable binary file over `source`, for libraries that want one. It has no name that could reach a log."""
    return io.BufferedReader(_Stream(source), STREAM_BUFFER_BYTES)


class _Stream(io.RawIOBase):
    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if start + offset < 0:
            raise OSError("seek before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed wants WriteableBuffer
        data = self._source.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
