"""The embedding store in a folder: survives restarts, bounded in bytes, may be shared by processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from wsisam_service.jobs import CacheTier
from wsisam_service.stores.embeddings import Clock, expiry, has_part

_T = TypeVar("_T")

_MAGIC = b"wsisam-blob-1\n"
_HEADER_BYTES = 4096
"""Most of a file that is read to see its header; keys are far shorter."""
_SUFFIX = ".blob"
_STALE_TEMPORARY_S = 600.0
"""A temporary file of this age was left by a process that died."""
_RESCAN_FRACTION = 0.05
"""Part of the bound that one process writes before it looks again at what others have written."""
_SWEEP_S = 3600.0
"""What has expired and nobody asks for any more goes at the first write after so long."""


class FolderStore:
    """Blobs as files of one folder, two levels deep, that survive restarts and may be shared by processes.

    A file is written whole under another name and renamed, so a reader sees all of it or nothing. Its header holds
    key, expiry and checksum; a file that does not fit its header is removed. Modification times tell the use. Several
    processes on one folder may together exceed the bound by `_RESCAN_FRACTION` of it for each.
    """

    tier: CacheTier = "folder"

    def __init__(self, folder: Path, max_bytes: int, *, clock: Clock = time.time) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._bytes: int | None = None  # unknown before the first scan
        self._unseen = 0
        self._swept_s = 0.0
        # One thread: the bound is kept by whoever writes, and the disk is shared anyway. Reads have their own.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="folder-write")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="folder-read")

    @property
    def size_bytes(self) -> int:
        return self._bytes or 0

    async def get(self, key: str) -> bytes | None:
        return await _in(self._readers, lambda: self._read(key))

    async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
        await _in(self._writer, lambda: self._write(key, blob, expiry(self._clock, ttl_s)))

    async def contains(self, key: str) -> bool:
        return await _in(self._readers, lambda: self._contains(key))

    async def delete_matching(self, part: str) -> int:
        return await _in(self._writer, lambda: self._remove(lambda header: has_part(header.key, part)))

    async def aclose(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()

    def _path(self, key: str) -> Path:
        name = sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name[2:4] / (name + _SUFFIX)

    def _read(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        header = _parse_header(content)
        blob = content[header.length :] if header is not None else b""
        if header is None or header.key != key or not header.alive(self._clock) or header.crc != zlib.crc32(blob):
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            os.utime(path)
        return blob

    def _contains(self, key: str) -> bool:
        header = _read_header(self._path(key))
        return header is not None and header.key == key and header.alive(self._clock)

    def _write(self, key: str, blob: bytes, expires: float) -> None:
        if self._clock() - self._swept_s > _SWEEP_S:
            self._swept_s = self._clock()
            self._remove(lambda header: not header.alive(self._clock))
        content = _make_header(key, expires, zlib.crc32(blob)) + blob
        if len(content) > self._max_bytes:
            return
        self._make_room(len(content))
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(content)
            replaced = _file_size(path)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._bytes = self.size_bytes + len(content) - replaced
        self._unseen += len(content)

    def _make_room(self, wanted: int) -> None:
        """Remove files used longest ago until `wanted` bytes fit; looks at the disk only when it may be necessary."""
        known = self._bytes is not None and self._unseen <= self._max_bytes * _RESCAN_FRACTION
        if known and self.size_bytes + wanted <= self._max_bytes:
            return
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        # A tenth more than needed, so that a full folder is not scanned at every write.
        target = self._max_bytes - wanted
        if total > target:
            target = min(target, int(self._max_bytes * 0.9))
        for _, size, path in files:
            if total <= target:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._bytes, self._unseen = total, 0

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, bytes and path of every blob; removes temporary files that nobody will finish."""
        for path in self._folder.glob("??/??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = path.stat()
                if path.suffix == _SUFFIX:
                    yield status.st_mtime, status.st_size, path
                elif status.st_mtime < time.time() - _STALE_TEMPORARY_S:
                    path.unlink()

    def _remove(self, meant: Callable[[_Header], bool]) -> int:
        """Remove the files whose header is `meant`; how many there were."""
        removed = 0
        for _, size, path in list(self._files()):
            header = _read_header(path)
            if header is not None and meant(header):
                path.unlink(missing_ok=True)
                self._bytes = max(0, self.size_bytes - size) if self._bytes is not None else None
                removed += 1
        return removed


@dataclass(frozen=True, slots=True)
class _Header:
    """First line: magic. Second line: JSON of key, expiry (seconds since the epoch, 0 for never) and CRC-32."""

    key: str
    expires: float
    crc: int
    length: int

    def alive(self, clock: Clock) -> bool:
        return self.expires == 0 or self.expires > clock()


def _make_header(key: str, expires: float, crc: int) -> bytes:
    return _MAGIC + json.dumps({"key": key, "expires": expires, "crc": crc}).encode() + b"\n"


def _parse_header(content: bytes) -> _Header | None:
    """The header at the start of a file's content; None where it is not one of ours or not whole."""
    end = content.find(b"\n", len(_MAGIC))
    if not content.startswith(_MAGIC) or end < 0:
        return None
    try:
        fields = json.loads(content[len(_MAGIC) : end])
        return _Header(str(fields["key"]), float(fields["expires"]), int(fields["crc"]), end + 1)
    except (ValueError, KeyError, TypeError):
        return None


def _read_header(path: Path) -> _Header | None:
    try:
        with path.open("rb") as file:
            return _parse_header(file.read(_HEADER_BYTES))
    except FileNotFoundError:
        return None


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def _in(pool: ThreadPoolExecutor, call: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, call)
