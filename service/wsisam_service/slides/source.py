"""The bytes of one slide file, local or behind a URL, read at any offset from any thread."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from wsisam_service.errors import UnreadableSlide
from wsisam_service.slides.items import Stamp

FINGERPRINT_BYTES = 1 << 20
"""Length of the two ends of the file that go into its fingerprint."""
STREAM_BUFFER_BYTES = 1 << 17
CHECK_S = 1.0
"""For this long a remote file that is read counts as unchanged: each look at it is a request."""
_ETAG_KEYS = ("ETag", "etag", "Content-MD5")
_CHANGE_KEYS = (
    *_ETAG_KEYS,
    *("mtime", "LastModified", "last_modified", "Last-Modified", "modificationTime", "modify", "updated", "created"),
)
"""What file systems call that which changes with the content, the surest first. Only the first that is told counts:
some stores round times differently from one kind of answer to the other."""
REPLACED = "The slide's file has been replaced; ask again."


class ByteSource(Protocol):
    """Random access to a file's bytes; safe for concurrent use."""

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        ...

    @property
    def stamp(self) -> Stamp:
        """That of the file which was opened."""
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


def local_stamp(status: os.stat_result) -> Stamp:
    """The stamp of a local file: its size, and when it was last written to."""
    return status.st_size, str(status.st_mtime_ns)


def remote_stamp(filesystem: AbstractFileSystem, path: str, listed: Mapping[str, Any] | None = None) -> Stamp:
    """The stamp of a file behind a URL, as it is told now, or was a moment ago in a listing: `listed` is what that said
    of the file. Raises OSError.
    """
    info = listed
    with failures_as_os_errors():
        if listed is None:
            filesystem.invalidate_cache()  # S3's and others answer from their last listing, however old
        if info is None or not any(info.get(key) for key in _ETAG_KEYS):  # listings may tell times in another way
            info = filesystem.info(path)
    told = next((str(info[key]) for key in _CHANGE_KEYS if info.get(key)), "")
    return int(info.get("size") or 0), told.strip('"')  # as Azure's listings have their ETags


class LocalBytes:
    """A local file, held open: where another takes its name, this goes on giving the old bytes. One that is written
    over in place gives none any more: reading raises `UnreadableSlide`.

    The descriptor closes when the last user lets go, so a reader can be dropped while another thread still reads.
    """

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self.stamp = self._stamp_now()
        self.size = self.stamp[0]

    def read_at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if self._stamp_now() != self.stamp:
            raise UnreadableSlide(REPLACED)
        return data

    def _stamp_now(self) -> Stamp:
        return local_stamp(os.fstat(self._descriptor))


class RemoteBytes:
    """A file of any fsspec file system; each read is one range request. One that another has replaced gives no bytes
    any more, `CHECK_S` later at most: reading raises `UnreadableSlide`. `clock` gives seconds.
    """

    def __init__(self, filesystem: AbstractFileSystem, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._filesystem = filesystem
        self._path = path
        self._clock = clock
        self._checked_s = clock()
        self.stamp = remote_stamp(filesystem, path)
        self.size = self.stamp[0]

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        with failures_as_os_errors():
            data = bytes(self._filesystem.cat_file(self._path, start=offset, end=end))
        now = self._clock()
        if now - self._checked_s >= CHECK_S:
            if remote_stamp(self._filesystem, self._path) != self.stamp:
                raise UnreadableSlide(REPLACED)
            self._checked_s = now
        if len(data) != end - offset:  # a server may ignore the range, and give all
            raise OSError("The server does not give the bytes that it is asked for.")
        return data


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
