"""Slides that another process has been told to forget: asked for every few seconds, and forgotten here too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from wsisam_service.jobs import FIRST_MARK, Purges

_log = logging.getLogger(__name__)

POLL_S = 5.0
"""Between questions."""


async def follow(
    ask: Callable[[str | None], Awaitable[Purges | None]], forget: Callable[[Sequence[str]], Awaitable[object]]
) -> None:
    """`forget` the key fingerprints that `ask` gives, again and again until it is cancelled; returns at once where
    `ask` says that nobody else purges. What fails is tried again in the next round.
    """
    mark: str | None = None
    waiting: dict[str, None] = {}
    failing = False
    while True:
        try:
            purges = await ask(mark)
            if purges is None:
                return
            mark = purges.mark
            waiting |= dict.fromkeys(purges.slides)
            if waiting:
                await forget(list(waiting))
                waiting.clear()
            failing = False
        except Exception as error:
            mark = mark or FIRST_MARK  # copies may be made here before the first answer
            if not failing:
                _log.warning("what others purge cannot be followed now: %s", type(error).__name__)
            failing = True
        await asyncio.sleep(POLL_S)
