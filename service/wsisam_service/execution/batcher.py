"""One thread owns the device; what waits when the device is free goes together in one call.

There is no timer: a lone item starts at once on an idle device, and batches form by themselves while it is busy. Queues
are served in order, so decodes overtake encodes; but now and then a queue that has waited has its turn, or decodes
without end would leave no encode done. Within a queue the requests that wait take turns, one item each, so
that a click waits for a few items of a large request and not for all of it. Admission is a count of work taken in and
not yet answered, checked at the door (DESIGN section 8).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from prometheus_client import Histogram

from wsisam_service import metrics
from wsisam_service.errors import Overloaded, WorkerUnavailable
from wsisam_service.logs import request_id

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_SMOOTHING = 0.2
"""Weight of the newest batch in the measured seconds per item."""
PATIENCE, MIN_PATIENCE_S = 4, 0.5
"""A queue waits for those before it as long as this many of its own calls take, and at least so long: a fifth of a busy
device at most is its own.
"""
BROKEN_AFTER = 3
"""Calls in a row that end in a CUDA error before the device counts as broken. Most such errors stay as long as the
process lives; those of one odd input pass, and what others ask is answered in between.
"""


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Result]):
    """One item's result. Items of one call have the same `started` and `ended`; all on `time.perf_counter`."""

    result: _Result
    submitted: float
    started: float
    ended: float


@dataclass(slots=True, eq=False)
class _Waiting(Generic[_Item, _Result]):
    group: str
    item: _Item
    future: Future[Answer[_Result]]
    submitted: float
    turn: int = 0


class DeviceQueue(Generic[_Item, _Result]):
    """One kind of device work. `run(group, items)` is called in the device's thread with items of one group (a model)
    and gives as many results, in order; `seconds` observes how long each call took.
    """

    def __init__(
        self,
        kind: str,
        run: Callable[[str, Sequence[_Item]], Sequence[_Result]],
        *,
        max_batch: int,
        seconds: Histogram | None = None,
    ) -> None:
        self.kind = kind
        self.run = run
        self.max_batch = max_batch
        self.seconds = seconds
        self.seconds_per_item = 0.0
        self.waiting: deque[_Waiting[_Item, _Result]] = deque()
        """By turn: a request's first item has the turn after the one that runs, each further one the turn after."""
        self._turn = 0
        self._last_turns: dict[str, int] = {}
        self._ended = 0.0

    def overdue(self, now: float) -> bool:
        """Whether what waits has seen others served for long enough."""
        if not self.waiting:
            return False
        call_s = self.seconds_per_item * min(self.max_batch, len(self.waiting))
        since = max(self._ended, min(entry.submitted for entry in self.waiting))
        return now - since > max(MIN_PATIENCE_S, PATIENCE * call_s)

    def add(self, entries: Sequence[_Waiting[_Item, _Result]], request: str) -> None:
        """Let `entries` of `request` wait, each in its turn."""
        self._last_turns = {name: turn for name, turn in self._last_turns.items() if turn > self._turn}
        for turn, entry in enumerate(entries, 1 + self._last_turns.get(request, self._turn)):
            entry.turn = self._last_turns[request] = turn
        in_order = not self.waiting or not entries or self.waiting[-1].turn <= entries[0].turn
        self.waiting.extend(entries)
        if not in_order:
            self.waiting = deque(sorted(self.waiting, key=lambda entry: entry.turn))

    def take(self) -> list[_Waiting[_Item, _Result]]:
        """The item whose turn it is and others of its group, up to a batch; those whose callers left are dropped."""
        batch: list[_Waiting[_Item, _Result]] = []
        others: list[_Waiting[_Item, _Result]] = []
        while self.waiting and len(batch) < self.max_batch:
            entry = self.waiting.popleft()
            if batch and entry.group != batch[0].group:
                others.append(entry)
            elif entry.future.set_running_or_notify_cancel():
                batch.append(entry)
                self._turn = max(self._turn, entry.turn)
        self.waiting.extendleft(reversed(others))
        return batch

    def measured(self, seconds: float, items: int) -> None:
        """Report one call that has ended, and take it into the average that Retry-After is made of."""
        self._ended = time.perf_counter()
        metrics.BATCH_SIZE.labels(kind=self.kind).observe(items)
        if self.seconds is not None:
            self.seconds.observe(seconds)
        newest = seconds / items
        first = self.seconds_per_item == 0.0
        self.seconds_per_item = newest if first else (1 - _SMOOTHING) * self.seconds_per_item + _SMOOTHING * newest


class Batcher:
    """Runs the queues' work: the first one first, overdue ones in between. `limits` bounds admitted work of each kind;
    `free_memory` lets go of device memory when a call ran out of it.
    """

    def __init__(
        self, queues: Sequence[DeviceQueue[Any, Any]], *, limits: Mapping[str, int], free_memory: Callable[[], None]
    ) -> None:
        self._queues = tuple(queues)
        self._limits = dict(limits)
        self._free_memory = free_memory
        self._admitted = dict.fromkeys(limits, 0)
        self._changed = threading.Condition()
        self._stopped: str | None = None
        self._device_errors = 0
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the device's thread takes work and the device does it."""
        return self._stopped is None and self._thread.is_alive() and self._device_errors < BROKEN_AFTER

    @contextlib.contextmanager
    def admit(self, kind: str, count: int) -> Iterator[None]:
        """Count `count` items of `kind` as in flight. Raises `Overloaded` beyond the limit, at once, with the time the
        work already admitted will take by the last measurements. A request larger than the limit gets in when alone.
        """
        with self._changed:
            if self._admitted[kind] and self._admitted[kind] + count > self._limits[kind]:
                raise Overloaded(f"too many {kind}s are waiting", retry_after_s=self._retry_after_s())
            self._admitted[kind] += count
        metrics.INFLIGHT.labels(kind=kind).inc(count)
        try:
            yield
        finally:
            with self._changed:
                self._admitted[kind] -= count
            metrics.INFLIGHT.labels(kind=kind).dec(count)

    def submit(
        self, queue: DeviceQueue[_Item, _Result], group: str, items: Sequence[_Item]
    ) -> list[Future[Answer[_Result]]]:
        """Queue `items`, one future each. Cancelling a future before its call starts drops its item."""
        now = time.perf_counter()
        entries = [_Waiting[_Item, _Result](group, item, Future(), now) for item in items]
        with self._changed:
            if self._stopped is not None:
                raise WorkerUnavailable(self._stopped)
            queue.add(entries, request_id())
            self._report_depth(queue)
            self._changed.notify()
        for entry in entries:
            # Without the entry, which holds the future: in a circle both would keep their views' megabytes.
            entry.future.add_done_callback(partial(self._forget, queue))
        return [entry.future for entry in entries]

    def close(self) -> None:
        """Finish the call that runs, answer the rest with an error, end the thread."""
        self._stop("the service is shutting down")
        self._thread.join()

    def _retry_after_s(self) -> int:
        seconds = sum(self._admitted.get(queue.kind, 0) * queue.seconds_per_item for queue in self._queues)
        return max(1, math.ceil(seconds))

    def _forget(self, queue: DeviceQueue[_Item, _Result], future: Future[Answer[_Result]]) -> None:
        """Drop an item whose caller left while it waited."""
        if not future.cancelled():
            return
        with self._changed:
            queue.waiting = deque(entry for entry in queue.waiting if entry.future is not future)
            self._report_depth(queue)

    def _serve(self) -> None:
        """The device's thread."""
        try:
            while self._serve_next():
                pass
        except BaseException:
            _log.exception("the device's thread has crashed")
        finally:
            self._stop("the device's thread has stopped")

    def _serve_next(self) -> bool:
        """Wait for a batch and run it; False when stopped. A function of its own, so that no local of an idle thread
        keeps the last batch's tensors alive.
        """
        work = self._next()
        if work is None:
            return False
        queue, batch = work
        try:
            self._run(queue, batch)
        finally:
            # Nothing that goes wrong, not even what `Exception` does not cover, may leave a caller hanging.
            _fail(batch, WorkerUnavailable("the device's thread has stopped"))
        return True

    def _next(self) -> tuple[DeviceQueue[Any, Any], list[_Waiting[Any, Any]]] | None:
        """The next batch of an overdue queue, else of the first that has one; waits for work. None when stopped."""
        with self._changed:
            while self._stopped is None:
                now = time.perf_counter()
                for queue in (*(queue for queue in self._queues[1:] if queue.overdue(now)), *self._queues):
                    batch = queue.take()
                    self._report_depth(queue)
                    if batch:
                        return queue, batch
                self._changed.wait()
        return None

    def _run(
        self, queue: DeviceQueue[_Item, _Result], batch: list[_Waiting[_Item, _Result]], *, again: bool = False
    ) -> None:
        """One call, answered; where it fails, its items again in smaller calls so that only the bad one fails. What is
        tried `again` no longer counts as an error of the device: several bad items of one batch would be many.
        """
        started = time.perf_counter()
        try:
            results = queue.run(batch[0].group, [entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} {queue.kind} items")
        except Exception as error:
            self._device_errors += not again and is_device_error(error)
            self._run_again(queue, batch, error)
            return
        ended = time.perf_counter()
        self._device_errors = 0
        queue.measured(ended - started, len(batch))
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(Answer(result, entry.submitted, started, ended))

    def _run_again(
        self, queue: DeviceQueue[_Item, _Result], batch: list[_Waiting[_Item, _Result]], error: Exception
    ) -> None:
        if is_out_of_memory(error):
            self._run_with_less_memory(queue, batch, error)
            return
        if len(batch) == 1:
            batch[0].future.set_exception(error)
        else:
            _log.warning("a %s batch of %d failed, trying its items singly: %r", queue.kind, len(batch), error)
            for entry in batch:
                self._run(queue, [entry], again=True)

    def _run_with_less_memory(
        self, queue: DeviceQueue[_Item, _Result], batch: list[_Waiting[_Item, _Result]], error: Exception
    ) -> None:
        """Free what can be freed and go on with halves; the queue keeps to the smaller batches."""
        _log.warning("out of device memory in a %s batch of %d", queue.kind, len(batch))
        self._free_memory()
        half = len(batch) // 2
        if half:
            queue.max_batch = min(queue.max_batch, half)
            self._run(queue, batch[:half])
            self._run(queue, batch[half:])
            return
        try:
            self._run_single(queue, batch[0])
        except Exception as again:
            refused = Overloaded("the device is out of memory", retry_after_s=1) if is_out_of_memory(again) else again
            refused.__cause__ = error
            batch[0].future.set_exception(refused)

    def _run_single(self, queue: DeviceQueue[_Item, _Result], entry: _Waiting[_Item, _Result]) -> None:
        started = time.perf_counter()
        (result,) = queue.run(entry.group, [entry.item])
        self._device_errors = 0
        entry.future.set_result(Answer(result, entry.submitted, started, time.perf_counter()))

    def _stop(self, reason: str) -> None:
        with self._changed:
            self._stopped = self._stopped or reason
            left = [entry for queue in self._queues for entry in queue.waiting]
            for queue in self._queues:
                queue.waiting.clear()
                self._report_depth(queue)
            self._changed.notify()
        _fail([entry for entry in left if entry.future.set_running_or_notify_cancel()], WorkerUnavailable(reason))

    def _report_depth(self, queue: DeviceQueue[Any, Any]) -> None:
        metrics.QUEUE_DEPTH.labels(kind=queue.kind).set(len(queue.waiting))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host ran out of memory; told by name, since torch is not imported here."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())
    )


def is_device_error(error: Exception) -> bool:
    """Whether CUDA itself failed. After an illegal access, a lost device or a failed assertion every call does."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def _fail(batch: Sequence[_Waiting[Any, Any]], error: Exception) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)
