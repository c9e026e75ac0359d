"""L1: views ready for the decoder, kept in device memory within a bound in bytes (DESIGN section 2)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic

from wsisam_service import metrics
from wsisam_service.execution.backend import V
from wsisam_service.stores.embeddings import has_part


@dataclass(frozen=True, slots=True, eq=False)
class ReadyView(Generic[V]):
    """A view in device memory, and its (h, w) in pixels."""

    view: V
    view_size: tuple[int, int]


@dataclass(slots=True)
class _Entry(Generic[V]):
    ready: ReadyView[V]
    nbytes: int


class DeviceCache(Generic[V]):
    """Prepared views by view key; those used longest ago go first. Used by the event loop, and by the device's thread
    when it runs out of memory.

    Views that a running decode holds stay in memory until it ends, so a device needs room for a batch beside the bound.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry[V]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> ReadyView[V] | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.ready

    def put(self, key: str, ready: ReadyView[V]) -> None:
        with self._lock:
            self._drop(key)
            self._entries[key] = _Entry(ready, 0)
            self._measure(key)

    def remeasure(self, key: str) -> None:
        """Take account of a view that has grown in a decode."""
        with self._lock:
            if key in self._entries:
                self._measure(key)

    def drop_matching(self, part: str) -> int:
        """Forget the views that have `part` between the colons of their key; how many there were."""
        with self._lock:
            matching = [key for key in self._entries if has_part(key, part)]
            for key in matching:
                self._drop(key)
            self._report()
        return len(matching)

    def shrink(self) -> None:
        """Let go of the half used longest ago, for a device that ran out of memory."""
        with self._lock:
            self._trim(self._bytes // 2)

    def _measure(self, key: str) -> None:
        entry = self._entries[key]
        nbytes = entry.ready.view.nbytes
        self._bytes += nbytes - entry.nbytes
        entry.nbytes = nbytes
        if nbytes > self._max_bytes:
            self._drop(key)  # it would push out everything and still not fit
        self._trim(self._max_bytes)

    def _trim(self, max_bytes: int) -> None:
        while self._bytes > max_bytes:
            self._drop(next(iter(self._entries)))
        self._report()

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.nbytes

    def _report(self) -> None:
        metrics.CACHE_BYTES.labels(tier="l1").set(self._bytes)
