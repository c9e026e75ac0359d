"""Threads for work that may wait: for files, and for each PACS apart, so that nobody else is held up."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from wsisam_service.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """`threads` that wait for disks, apart from those whose work needs processors only."""

    listing: ThreadPoolExecutor | None = None
    """Threads that open slides for a listing, apart from those that people wait for. Only lanes that bound how much is
    done in them have some."""

    def __init__(self, name: str, *, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns. Raises what it raises, and `Overloaded`."""
        context = contextvars.copy_context()
        return await asyncio.wrap_future(self._threads.submit(context.run, lambda: call(*args, **kwargs)))


class BoundedLane(Lane):
    """A lane with at most `waiting` calls in its threads and before them, beyond which `refusal` is told. `listing`
    threads are for slides that are opened for a listing.
    """

    def __init__(self, name: str, *, threads: int, waiting: int, refusal: str, listing: int = 0) -> None:
        super().__init__(name, threads=threads)
        if listing:
            self.listing = ThreadPoolExecutor(listing, thread_name_prefix=f"{name}-listing")
        self._refusal = refusal
        self._free = waiting

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._free <= 0:
            raise Overloaded(self._refusal, retry_after_s=2)
        self._free -= 1
        try:
            return await super().run(call, *args, **kwargs)
        finally:
            self._free += 1


SHARED_LANE = Lane("slides", threads=16)
"""For files, which everybody shares. At most half of its threads read views at any time (`segmenter.CONCURRENT_READS`),
and slides are opened elsewhere, so that a look whether a file is still the same waits for no slow disk of others."""
OPENING_LANE = Lane("openings", threads=6)
"""For opening files, once for all who ask meanwhile."""
READINESS_LANE = Lane("readiness", threads=1)
"""For whether the roots can be read, which says nothing of how busy the other lanes are."""
SENT_LANE = Lane("pictures-sent", threads=max(2, os.cpu_count() or 1))
"""For pictures that came with their request: to decode them, to read views of them, and what is found on them. None of
it waits for a disk.
"""
LISTING_LANE = BoundedLane(
    "listings", threads=8, waiting=256, refusal="Too many requests wait to learn which slides there are."
)
"""For what looks through the roots, and waits a moment for a PACS that has not told yet."""
_DRAWING_THREADS = max(1, (os.cpu_count() or 1) - 1)
"""One core stays free for clicks; the codecs of one picture spread over the readers' own threads anyway."""
PICTURE_LANE = BoundedLane(
    "pictures", threads=_DRAWING_THREADS, waiting=256, refusal="Too many pictures are waiting to be drawn."
)
"""For regions and thumbnails of files, which may take half a minute where a slide has no smaller levels."""
TILE_LANE = BoundedLane(
    "iiif", threads=_DRAWING_THREADS, waiting=256, refusal="Too many tiles are waiting to be drawn."
)
"""For IIIF pictures of files: viewers ask for tiles, which should not wait for the former."""


def own_lane(for_files: Lane, of_slide: Lane) -> Lane:
    """Where to work on a slide of lane `of_slide`: `for_files`, but one that may wait long does so there."""
    return for_files if of_slide.listing is None else of_slide
