"""A circuit breaker: what fails again and again is left alone for a while, so that nobody waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitOpen(Exception):
    """The call was not made, because the ones before it failed."""


class Breaker:
    """Open for `pause_s` after `failures` failed calls in a row; then one call tries and decides for the next pause."""

    def __init__(self, *, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failed = 0
        self._closed_at = 0.0

    def check(self) -> None:
        """Raises `CircuitOpen` where the call should not be made."""
        if self._failed < self._failures:
            return
        now = self._clock()
        if now < self._closed_at:
            raise CircuitOpen(f"left alone for {self._closed_at - now:.1f} s more")
        self._closed_at = now + self._pause_s  # this call tries; those beside it go on waiting

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        if self._failed >= self._failures:
            self._closed_at = self._clock() + self._pause_s
