"""How often something may happen: so many times a minute under each name."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MINUTE_S = 60.0
MAX_NAMES = 10_000
"""Names remembered; beyond them the one that was heard of longest ago starts afresh."""


@dataclass(slots=True)
class _Allowance:
    """What is left of a minute's at `at_s`; a minute later all of it is back."""

    left: float
    at_s: float


class Allowances:
    """`per_minute` may come at once and then come back evenly; 0 is no limit. Used by one event loop; `clock` gives
    seconds.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._known: OrderedDict[str, _Allowance] = OrderedDict()

    def wait_s(self, name: str) -> int:
        """Seconds until `name` may again, rounded up; 0 where it may now."""
        if not self.per_minute or name not in self._known:
            return 0
        left = self._left(name)
        return 0 if left >= 1 else max(1, math.ceil((1 - left) * MINUTE_S / self.per_minute))

    def take(self, name: str) -> None:
        """Count one under `name`, whether or not it may."""
        if not self.per_minute:
            return
        left = self._left(name) if name in self._known else self.per_minute
        self._known[name] = _Allowance(max(0.0, left - 1), self._clock())
        self._known.move_to_end(name)
        if len(self._known) > MAX_NAMES:
            self._known.popitem(last=False)

    def _left(self, name: str) -> float:
        known = self._known[name]
        return min(self.per_minute, known.left + (self._clock() - known.at_s) * self.per_minute / MINUTE_S)
