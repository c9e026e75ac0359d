"""Audit events as JSON lines in one file that only grows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsisam_service.audit.events import AuditEvent

_MODE = 0o600


class JsonLines:
    """Appends (`O_APPEND`) and syncs the data to the disk after each batch, which is all that waits at that moment.

    A file that was renamed or removed, as log rotation does, is left alone from the next batch on: a new one is made
    under the path. Several processes may write to one file.
    """

    name = "file"
    check_s: float | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._torn = False

    def send(self, events: Sequence[AuditEvent]) -> None:
        """Raises `OSError`; what was not written wholly is written again."""
        descriptor = self._current()
        content = b"".join(_line(event) for event in events)
        if self._torn:  # a full disk cut the last line; it must not swallow the next one
            content = b"\n" + content
        written = 0
        try:
            while written < len(content):
                written += os.write(descriptor, content[written:])
        finally:
            self._torn = written < len(content) and (written > 0 or self._torn)
        os.fdatasync(descriptor)

    def check(self) -> None:
        """A file has no connection to lose."""

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _current(self) -> int:
        """The descriptor of the file that is under the path now."""
        if self._descriptor is not None:
            try:
                there, held = os.stat(self._path), os.fstat(self._descriptor)
                if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                    return self._descriptor
            except FileNotFoundError:
                pass
            self.close()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        self._torn = _ends_in_a_line(self._path)
        return self._descriptor


def _ends_in_a_line(path: Path) -> bool:
    """Whether the last line was cut, by a disk that was full when an earlier process wrote it."""
    try:
        if not path.stat().st_size:  # nor has a device or a pipe any
            return False
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:  # it may be for writing only
        return False


def _line(event: AuditEvent) -> bytes:
    words: dict[str, Any] = {
        "time": event.time.isoformat(timespec="milliseconds"),
        "sequence": event.sequence,
        "pid": os.getpid(),
        "action": event.action,
        "who": event.who,
        "role": event.role,
        "address": event.address,
        "route": event.route,
        "slide": event.slide,
        "transfer": event.transfer or "",
        "status": event.status,
        "outcome": event.outcome,
        "ms": round(event.ms, 1),
        "request_id": event.request_id,
        "lost": event.lost,
    }
    return json.dumps({name: value for name, value in words.items() if value != ""}).encode() + b"\n"
