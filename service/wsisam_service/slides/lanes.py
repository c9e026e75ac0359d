"""Threads for work that may wait: what waits for a PACS waits in that PACS's own threads, and holds up nobody else."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from wsisam_service.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """The threads that everybody shares: for work that waits for local disks and processors only."""

    listing: ThreadPoolExecutor | None = None
    """Threads that open slides for a listing, apart from those that people wait for. Only lanes that bound how much is
    done in them have some."""

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns. Raises what it raises, and `Overloaded`."""
        return await asyncio.to_thread(call, *args, **kwargs)


class BoundedLane(Lane):
    """`threads` of its own, and at most `waiting` calls in them and before them."""

    def __init__(self, name: str, *, threads: int, waiting: int, listing: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.listing = ThreadPoolExecutor(listing, thread_name_prefix=f"{name}-listing")
        self._free = waiting

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._free <= 0:
            raise Overloaded("Too many requests wait for the PACS.", retry_after_s=2)
        self._free -= 1
        context = contextvars.copy_context()
        try:
            done = self._threads.submit(context.run, lambda: call(*args, **kwargs))
            return await asyncio.wrap_future(done)
        finally:
            self._free += 1


SHARED_LANE = Lane()
