"""The device's thread: batches, order, refusal, cancellation, and failures that leave nobody waiting."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial

import pytest
from prometheus_client import REGISTRY

from wsisam_service.errors import Overloaded, WorkerUnavailable
from wsisam_service.execution import batcher as batcher_module
from wsisam_service.execution.batcher import BROKEN_AFTER, Answer, Batcher, DeviceQueue
from wsisam_service.logs import RequestIds, current_request

TIMEOUT_S = 20.0
PATIENT_CALLS = 4
"""Calls of 0.1 s for which an encode waits before it is overdue."""


class Device:
    """Squares numbers; holds its first call until released, and does what `trouble` says before each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[int]]] = []
        self.busy = threading.Event()
        self.release = threading.Event()
        self.trouble: Callable[[Sequence[int]], None] = lambda items: None

    def queue(self, kind: str, max_batch: int = 8) -> DeviceQueue[int, int]:
        def run(group: str, items: Sequence[int]) -> list[int]:
            self.calls.append((kind, group, list(items)))
            self.busy.set()
            assert self.release.wait(TIMEOUT_S)
            self.trouble(items)
            return [item * item for item in items]

        return DeviceQueue(kind, run, max_batch=max_batch)


class Clock:
    """Stands in for the module `time`: a call of the device takes 0.1 s of it, and nothing else takes any."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def pass_by(self, _: object) -> None:
        self.now += 0.1


def _in_flight(kind: str) -> float | None:
    return REGISTRY.get_sample_value("wsisam_inflight", {"kind": kind})


class Bench:
    """A batcher of a decode and an encode queue whose device is busy with item 0 of the encode queue."""

    def __init__(self, limit: int = 100) -> None:
        self.device = Device()
        self.freed = 0
        self.decodes, self.encodes = self.device.queue("decode"), self.device.queue("encode")
        limits = {"decode": limit, "encode": limit}
        self.batcher = Batcher([self.decodes, self.encodes], limits=limits, free_memory=self._free)
        self.first = self.batcher.submit(self.encodes, "m", [0])
        assert self.device.busy.wait(TIMEOUT_S)

    def _free(self) -> None:
        self.freed += 1


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.device.release.set()
    bench.batcher.close()


def results(futures: Sequence[Future[Answer[int]]]) -> list[int]:
    return [future.result(TIMEOUT_S).result for future in futures]


def test_what_waits_goes_in_one_call_and_decodes_overtake(bench: Bench) -> None:
    encodes = bench.batcher.submit(bench.encodes, "m", [1, 2])
    decodes = bench.batcher.submit(bench.decodes, "m", [3]) + bench.batcher.submit(bench.decodes, "m", [4, 5])
    bench.device.release.set()
    assert results(encodes + decodes) == [1, 4, 9, 16, 25]
    assert bench.device.calls[1:] == [("decode", "m", [3, 4, 5]), ("encode", "m", [1, 2])]


def test_decodes_without_end_leave_every_encode_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(batcher_module, "time", clock)
    bench = Bench()
    bench.device.trouble = clock.pass_by
    over = threading.Event()

    def again(_: object = None) -> None:
        if not over.is_set():
            bench.batcher.submit(bench.decodes, "m", [7])[0].add_done_callback(again)

    for _ in range(3):  # always two that wait while one runs
        again()
    bench.encodes.max_batch = 1
    encodes = bench.batcher.submit(bench.encodes, "m", [1, 2])
    bench.device.release.set()
    try:
        done = results(encodes)
    finally:
        over.set()
        bench.batcher.close()
    assert done == [1, 4]
    kinds = [kind for kind, _, _ in bench.device.calls[1:]]
    first, second = (number for number, kind in enumerate(kinds) if kind == "encode")
    assert first > PATIENT_CALLS, "decodes still overtake"
    assert second > first + PATIENT_CALLS


def test_what_waits_is_overdue_after_half_a_second_or_four_of_its_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "time", clock := Clock())
    queue = DeviceQueue[int, int]("encode", lambda _, items: items, max_batch=2)
    batcher = Batcher([queue], limits={"encode": 9}, free_memory=lambda: None)
    batcher._queues = ()  # nobody serves it
    batcher.submit(queue, "m", [1, 2, 3])
    assert not queue.overdue(clock.now + 0.49)
    assert queue.overdue(clock.now + 0.51)
    queue.seconds_per_item = 0.2  # 0.4 s a call
    assert not queue.overdue(clock.now + 1.59)
    assert queue.overdue(clock.now + 1.61)
    batcher.close()


def as_request(bench: Bench, request: str, items: Sequence[int]) -> list[Future[Answer[int]]]:
    token = current_request.set(RequestIds(request))
    try:
        return bench.batcher.submit(bench.decodes, "m", items)
    finally:
        current_request.reset(token)


def test_a_click_waits_for_one_item_of_each_large_request_and_not_for_all_of_it(bench: Bench) -> None:
    bench.decodes.max_batch = 1
    submit = partial(as_request, bench)
    futures = submit("script", range(10, 15)) + submit("other script", range(20, 25)) + submit("script", [15])
    futures += submit("click", [1]) + submit("two clicks", [2, 3])
    bench.device.release.set()
    wait(futures, TIMEOUT_S)
    order = [item for _, _, (item,) in bench.device.calls[1:]]
    assert order == [10, 20, 1, 2, 11, 21, 3, 12, 22, 13, 23, 14, 24, 15]


def test_who_comes_again_waits_like_anybody_who_comes(bench: Bench) -> None:
    bench.decodes.max_batch = 1
    later: list[Future[Answer[int]]] = []

    def trouble(items: Sequence[int]) -> None:
        if 23 in items:
            later.extend(as_request(bench, "again", [11]) + as_request(bench, "new", [1]))

    bench.device.trouble = trouble
    futures = as_request(bench, "again", [10]) + as_request(bench, "script", range(20, 26))
    bench.device.release.set()
    wait(futures, TIMEOUT_S)
    wait(later, TIMEOUT_S)
    assert [item for _, _, (item,) in bench.device.calls[1:]] == [10, 20, 21, 22, 23, 24, 11, 1, 25]


def test_a_batch_is_of_one_model_and_of_the_queues_size(bench: Bench) -> None:
    futures = [bench.batcher.submit(bench.decodes, "ab"[item % 2], [item])[0] for item in range(20)]
    bench.device.release.set()
    assert results(futures) == [item * item for item in range(20)]
    batches = [("a", [0, 2, 4, 6, 8, 10, 12, 14]), ("b", [1, 3, 5, 7, 9, 11, 13, 15]), ("a", [16, 18]), ("b", [17, 19])]
    assert [(group, items) for _, group, items in bench.device.calls[1:]] == batches, "in the order that they came"


def test_a_cancelled_item_is_never_run(bench: Bench) -> None:
    gone, stays = bench.batcher.submit(bench.decodes, "m", [1, 2])
    assert gone.cancel()
    assert len(bench.decodes.waiting) == 1
    bench.device.release.set()
    assert results([stays]) == [4]
    assert ("decode", "m", [2]) in bench.device.calls


def test_what_has_begun_can_no_longer_be_cancelled(bench: Bench) -> None:
    assert not bench.first[0].cancel()
    bench.device.release.set()
    assert results(bench.first) == [0]
    assert bench.batcher.healthy


def test_an_answered_item_is_let_go_at_once_and_not_by_the_collector() -> None:
    class Pixels:
        pass

    queue = DeviceQueue[Pixels, Pixels]("encode", lambda _, items: items, max_batch=1)
    batcher = Batcher([queue], limits={"encode": 1}, free_memory=lambda: None)
    gc.disable()
    try:
        (future,) = batcher.submit(queue, "m", [Pixels()])
        item = weakref.ref(future.result(TIMEOUT_S).result)
        del future
        batcher.submit(queue, "m", [Pixels()])[0].result(TIMEOUT_S)  # so the thread is done with the call before
        assert item() is None
    finally:
        gc.enable()
        batcher.close()


def test_one_bad_item_does_not_fail_the_others(bench: Bench) -> None:
    def trouble(items: Sequence[int]) -> None:
        if 2 in items:
            raise ValueError("two")

    bench.device.trouble = trouble
    one, two, three = bench.batcher.submit(bench.decodes, "m", [1, 2, 3])
    bench.device.release.set()
    assert results([one, three]) == [1, 9]
    assert isinstance(two.exception(TIMEOUT_S), ValueError)


def test_too_few_results_fail_their_batch_and_nobody_gets_anothers(bench: Bench) -> None:
    short: DeviceQueue[int, int] = DeviceQueue("decode", lambda group, items: [], max_batch=8)
    bench.batcher._queues = (short,)
    futures = bench.batcher.submit(short, "m", [1, 2])
    bench.device.release.set()
    assert all(isinstance(future.exception(TIMEOUT_S), RuntimeError) for future in futures)


def test_out_of_memory_is_met_by_smaller_batches(bench: Bench) -> None:
    def trouble(items: Sequence[int]) -> None:
        if len(items) > 2:
            raise MemoryError

    bench.device.trouble = trouble
    futures = bench.batcher.submit(bench.decodes, "m", range(1, 9))
    bench.device.release.set()
    assert results(futures) == [item * item for item in range(1, 9)]
    assert bench.freed >= 1
    assert bench.decodes.max_batch == 2


def test_out_of_memory_with_one_item_frees_and_tries_again(bench: Bench) -> None:
    def trouble(items: Sequence[int]) -> None:
        if bench.freed == 0:
            raise RuntimeError("CUDA out of memory")

    bench.device.trouble = trouble
    futures = bench.batcher.submit(bench.decodes, "m", [3])
    bench.device.release.set()
    assert results(futures) == [9]


def test_retry_after_is_made_of_the_seconds_of_an_item_and_new_calls_count_a_fifth(bench: Bench) -> None:
    bench.decodes.measured(0.8, 4)
    assert bench.decodes.seconds_per_item == pytest.approx(0.2)
    bench.decodes.measured(1.2, 1)
    assert bench.decodes.seconds_per_item == pytest.approx(0.4)


def test_beyond_the_limit_work_is_refused_with_the_time_it_would_wait() -> None:
    bench = Bench(limit=3)
    bench.device.release.set()
    results(bench.first)
    bench.decodes.seconds_per_item = 4.0
    with bench.batcher.admit("decode", 2):
        with pytest.raises(Overloaded) as refused, bench.batcher.admit("decode", 2):
            pass
        with bench.batcher.admit("decode", 1), bench.batcher.admit("encode", 3):
            pass
    assert refused.value.retry_after_s in (8, 9)
    with bench.batcher.admit("decode", 256):
        assert _in_flight("decode") == 256
    assert _in_flight("decode") == 0
    bench.batcher.close()


def test_a_crash_of_the_thread_answers_everybody(bench: Bench) -> None:
    def trouble(items: Sequence[int]) -> None:
        raise SystemExit

    bench.device.trouble = trouble
    waiting = bench.batcher.submit(bench.encodes, "m", [1]) + bench.batcher.submit(bench.decodes, "m", [2])
    bench.device.release.set()
    done, hanging = wait([*bench.first, *waiting], TIMEOUT_S)
    assert not hanging
    assert all(isinstance(future.exception(), WorkerUnavailable) for future in done)
    bench.batcher.close()
    assert not bench.batcher.healthy
    with pytest.raises(WorkerUnavailable):
        bench.batcher.submit(bench.decodes, "m", [1])


def test_a_device_is_healthy_after_an_odd_input_and_not_once_every_call_fails(bench: Bench) -> None:
    def trouble(items: Sequence[int]) -> None:
        if 13 in items:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if 99 in items:
            raise RuntimeError("CUDA error: out of memory")
        if 5 in items:
            raise RuntimeError("an odd prompt")

    def call(*items: int) -> bool:
        wait(bench.batcher.submit(bench.decodes, "m", items), TIMEOUT_S)
        return bench.batcher.healthy

    bench.device.trouble = trouble
    bench.device.release.set()
    assert all(map(call, [5] * (BROKEN_AFTER + 1))), "what is not the device's fault does not count"
    assert all(map(call, [13, 1, *[99] * BROKEN_AFTER, 13, 13, 2, 13, 13]))
    assert not call(13)
    assert call(3), "what works again is not restarted"
    assert all(call(*[13] * BROKEN_AFTER) for _ in range(BROKEN_AFTER - 1)), "a batch of odd items is one call"
    assert not call(13, 13)


def test_closing_answers_what_waits(bench: Bench) -> None:
    waiting = bench.batcher.submit(bench.decodes, "m", [1])
    closing = threading.Thread(target=bench.batcher.close)
    closing.start()
    assert isinstance(waiting[0].exception(TIMEOUT_S), WorkerUnavailable)
    bench.device.release.set()
    closing.join(TIMEOUT_S)
    assert results(bench.first) == [0]
