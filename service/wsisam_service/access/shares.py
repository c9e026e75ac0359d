"""Each identity's fair share: requests a minute, and requests under way that keep the model busy."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

from wsisam_service.access.allowances import Allowances
from wsisam_service.access.identity import Identity
from wsisam_service.errors import RateLimited


class Shares:
    """Counts by identity. `per_minute` requests may come at once and then come back evenly; 0 is no limit. `work`
    requests that keep the model busy may be under way at a time. Used by one event loop; `clock` gives seconds.
    """

    def __init__(self, *, per_minute: int, work: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowances = Allowances(per_minute, clock=clock)
        self._work = work
        self._working: Counter[str] = Counter()

    def count(self, identity: Identity) -> None:
        """Count one request. Raises `RateLimited`."""
        if wait_s := self._allowances.wait_s(identity.id):
            raise RateLimited(f"at most {self._allowances.per_minute} requests a minute", retry_after_s=wait_s)
        self._allowances.take(identity.id)

    @contextlib.contextmanager
    def working(self, identity: Identity) -> Iterator[None]:
        """Count one request that keeps the model busy as under way. Raises `RateLimited`."""
        if self._working[identity.id] >= self._work:
            raise RateLimited(f"at most {self._work} requests for the model at a time", retry_after_s=1)
        self._working[identity.id] += 1
        try:
            yield
        finally:
            self._working[identity.id] -= 1
            if not self._working[identity.id]:
                del self._working[identity.id]
