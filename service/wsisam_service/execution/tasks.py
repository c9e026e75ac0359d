"""Waiting for several pieces of work: all or the first failure, and those that others wait for too."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from typing import Any


async def together(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of `calls`; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def all_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Until `tasks` have ended, well or badly. A caller that is cancelled meanwhile leaves them running, which
    `asyncio.gather` would not.
    """
    if tasks:
        await asyncio.wait(tasks)
