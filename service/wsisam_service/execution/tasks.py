"""Waiting for work that others wait for too."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any


async def all_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Until `tasks` have ended, well or badly. A caller that is cancelled meanwhile leaves them running, which
    `asyncio.gather` would not.
    """
    if tasks:
        await asyncio.wait(tasks)
