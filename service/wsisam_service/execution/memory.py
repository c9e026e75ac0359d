"""glibc's allocator, told to give memory back. Elsewhere nothing happens.

Views come and go in blocks of megabytes. By default glibc learns from the first ones that are freed to keep such blocks
in its heaps, where smaller ones pin them: over 150 views a service took 3.3 GB in place of 2.2 (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import ctypes
import functools
import sys

_M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1 << 20
"""Blocks from this size on are mapped by themselves and go back to the system when they are freed."""


def keep_large_blocks_apart() -> None:
    """For the rest of the process. Call it before a model is loaded."""
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return what is free at the end of the heaps, such as what loading a model left behind."""
    malloc_trim = getattr(_libc(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
