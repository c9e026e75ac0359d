"""The audit trail: events go into bounded buffers, from which a thread for each sink takes them. No click waits."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from wsisam_service import metrics
from wsisam_service.audit.events import AuditEvent, now

_log = logging.getLogger(__name__)

BATCH = 256
"""Events of one call of a sink."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
"""Between attempts at a sink that fails."""
CLOSE_S = 5.0
"""For what waits when the service ends."""


class Sink(Protocol):
    """Where events go. Used by one thread."""

    name: str
    """In metrics, logs and `/readyz`."""
    check_s: float | None
    """How often `check` is called while nothing is to be sent; None for never."""

    def send(self, events: Sequence[AuditEvent]) -> None:
        """Deliver all of `events`, in order; where it raises, all of them come again."""
        ...

    def check(self) -> None:
        """Raises where the sink could not be used now."""
        ...

    def close(self) -> None: ...


class AuditTrail:
    """All sinks, each with room for `max_waiting` events while it cannot be reached. Without sinks nothing is kept."""

    def __init__(self, sinks: Sequence[Sink], *, max_waiting: int) -> None:
        self._pumps = [_Pump(sink, max_waiting, self._numbered) for sink in sinks]
        self._numbers = itertools.count(1)

    def start(self) -> None:
        for pump in self._pumps:
            pump.start()
        self.record(AuditEvent("start"))

    def record(self, event: AuditEvent) -> None:
        """Tell every sink, by and by. Never waits and never raises."""
        event = self._numbered(event)
        for pump in self._pumps:
            pump.put(event)

    def states(self) -> list[str]:
        """A line for each sink: whether it takes events, how many wait and how many were lost."""
        return [pump.state() for pump in self._pumps]

    def close(self) -> None:
        """Deliver what waits, as far as `CLOSE_S` allows."""
        self.record(AuditEvent("stop"))
        deadline = time.monotonic() + CLOSE_S
        for pump in self._pumps:
            pump.close(deadline)

    def _numbered(self, event: AuditEvent) -> AuditEvent:
        return replace(event, sequence=next(self._numbers), time=now())


class _Pump:
    """One sink, its buffer and its thread. Events without room are lost, counted, and the sink is told how many."""

    def __init__(self, sink: Sink, max_waiting: int, numbered: Callable[[AuditEvent], AuditEvent]) -> None:
        self._sink = sink
        self._max_waiting = max_waiting
        self._numbered = numbered
        self._waiting: deque[AuditEvent] = deque()
        self._lost, self._untold = 0, 0
        self._failing_since: float | None = None
        self._closing, self._deadline = False, 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"audit-{sink.name}", daemon=True)

    def start(self) -> None:
        metrics.AUDIT_FAILING.labels(self._sink.name).set(0)
        self._thread.start()

    def put(self, event: AuditEvent) -> None:
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                self._lost += 1
                self._untold += 1
                metrics.AUDIT_EVENTS.labels(self._sink.name, "lost").inc()
                return
            self._waiting.append(event)
            metrics.AUDIT_WAITING.labels(self._sink.name).set(len(self._waiting))
            self._changed.notify()

    def state(self) -> str:
        with self._changed:
            waiting, lost, since = len(self._waiting), self._lost, self._failing_since
        condition = "ok" if since is None else f"failing for {time.monotonic() - since:.0f} s"
        return f"audit {self._sink.name}: {condition}, {waiting} waiting, {lost} lost"

    def close(self, deadline: float) -> None:
        if not self._thread.is_alive():
            return
        with self._changed:
            self._closing, self._deadline = True, deadline
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._waiting:
            _log.error("the audit %s did not take its last %d events", self._sink.name, len(self._waiting))

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(self._sink.check_s)
                if not self._waiting and self._closing:
                    break
                batch = list(itertools.islice(self._waiting, BATCH))
            try:
                if batch:
                    self._sink.send(batch)
                else:
                    self._sink.check()
            except Exception as error:
                self._failed(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause_s)
                if self._closing:
                    if time.monotonic() >= self._deadline:
                        break
                    time.sleep(FIRST_PAUSE_S)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            self._succeeded(len(batch))
        self._sink.close()

    def _failed(self, error: Exception) -> None:
        with self._changed:
            first = self._failing_since is None
            if first:
                self._failing_since = time.monotonic()
        if first:
            metrics.AUDIT_FAILING.labels(self._sink.name).set(1)
            # The kind of error only: an OSError carries a path.
            _log.error("the audit %s fails, its events wait: %s", self._sink.name, type(error).__name__)

    def _succeeded(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._waiting.popleft()
            recovered, self._failing_since = self._failing_since is not None, None
            untold, self._untold = self._untold, 0
            if untold:
                self._waiting.append(self._numbered(AuditEvent("lost", lost=untold)))
            metrics.AUDIT_WAITING.labels(self._sink.name).set(len(self._waiting))
        metrics.AUDIT_EVENTS.labels(self._sink.name, "delivered").inc(count)
        if recovered:
            metrics.AUDIT_FAILING.labels(self._sink.name).set(0)
            _log.info("the audit %s takes events again", self._sink.name)
