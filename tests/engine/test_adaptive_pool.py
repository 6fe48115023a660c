"""Threads that move bytes: few while they compute, more while they wait, in order, and all of them end at a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.engine import adaptive_pool
from checkpoint_sidecar.engine.adaptive_pool import AdaptivePool, grown


class Together:
    """How many steps run at a time, and the most there ever were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = 0

    def waiting(self, seconds: float = 0.02) -> None:
        self._run(lambda: time.sleep(seconds))

    def computing(self, seconds: float = 0.01) -> None:
        self._run(lambda: _compute(seconds))

    def _run(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        work()
        with self._lock:
            self._now -= 1


def _compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize(
    ("step", "most"),
    [
        pytest.param(Together.waiting, 8, id="more and more that wait"),
        pytest.param(Together.computing, 1, id="few that compute"),
    ],
)
def test_as_many_steps_run_at_a_time_as_wait_for_most_of_it(step: Callable[[Together], None], most: int) -> None:
    together = Together()
    with AdaptivePool("test", first=1, most=8) as pool:
        for _ in range(40):
            pool.start(step, together)
        pool.wait()
    assert together.most == most


@pytest.mark.parametrize(("first", "most"), [(4, 2), (2, 2), (1, 1)], ids=["more first than at most", "two", "one"])
def test_there_are_never_more_than_allowed(first: int, most: int) -> None:
    together = Together()
    with AdaptivePool("test", first=first, most=most) as pool:
        for _ in range(12):
            pool.start(together.waiting)
        pool.wait()
    assert together.most == most


def test_steps_begin_in_the_order_in_which_they_are_started() -> None:
    begun: list[int] = []
    with AdaptivePool("test", first=1, most=1) as pool:
        for number in range(50):
            pool.start(begun.append, number)
        pool.wait()
    assert begun == list(range(50))


def test_a_short_line_of_steps_waits_for_the_threads() -> None:
    release, begun, started = threading.Event(), list[int](), list[int]()

    def step(number: int) -> None:
        begun.append(number)
        release.wait()

    def poll() -> None:
        raise KeyboardInterrupt

    def start_all(pool: AdaptivePool) -> None:
        for number in range(50):
            pool.start(step, number)
            started.append(number)

    with AdaptivePool("test", first=1, most=1, poll=poll) as pool:
        with pytest.raises(KeyboardInterrupt):
            start_all(pool)
        release.set()
    assert len(started) in (8, 9)  # eight in line, and perhaps one that runs
    assert begun == started


def test_a_step_that_must_not_wait_in_line_is_started_when_a_thread_is_free() -> None:
    ended: list[int] = []

    def step(number: int) -> None:
        time.sleep(0.01)
        ended.append(number)

    with AdaptivePool("test", first=1, most=1) as pool:
        for number in range(4):
            pool.wait_for_thread()
            assert ended == list(range(number))
            pool.start(step, number)


def test_leaving_with_an_error_drops_what_is_in_line() -> None:
    release, begun = threading.Event(), list[int]()

    def step(number: int) -> None:
        begun.append(number)
        release.wait()

    def fail() -> None:
        with AdaptivePool("test", first=1, most=1) as pool:
            pool.start(step, 0)
            while not begun:
                time.sleep(0.001)
            pool.start(step, 1)
            threading.Timer(0.05, release.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert begun == [0]


@pytest.mark.parametrize("threads", [0, 1])
def test_where_the_system_allows_few_threads_these_do_the_work(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, start = list[int](), threading.Thread.start
    allowed = iter(range(threads))

    def start_few(thread: threading.Thread) -> None:
        if next(allowed, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    def run() -> None:
        with AdaptivePool("test", first=4, most=4) as pool:
            for number in range(20):
                pool.start(begun.append, number)
            pool.wait()

    monkeypatch.setattr(threading.Thread, "start", start_few)
    if threads:
        run()
        assert begun == list(range(20))
    else:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run()
        assert begun == []


def test_steps_run_without_the_figures_of_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    unreadable = tmp_path / "schedstat"
    unreadable.write_text("not a figure")
    for path in (unreadable, tmp_path / "missing"):
        monkeypatch.setattr(adaptive_pool, "_SCHEDULING", str(path))
        with AdaptivePool("test", first=1, most=1) as pool:
            pool.start(begun.append, len(begun))
            pool.wait()
    assert begun == [0, 1]


def test_after_a_failure_nothing_begins_any_more_and_the_waiting_thread_raises_it() -> None:
    begun: list[int] = []

    def step(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ZeroDivisionError

    def start_all(pool: AdaptivePool) -> None:
        for number in range(50):
            pool.start(step, number)

    with AdaptivePool("test", first=1, most=1) as pool:
        with pytest.raises(ZeroDivisionError):
            start_all(pool)
        with pytest.raises(ZeroDivisionError):
            pool.wait()
    assert begun == [0, 1, 2, 3]


def test_the_first_failure_is_the_one_that_counts_and_is_reported_once() -> None:
    reported: list[str] = []
    with AdaptivePool("test", first=2, most=2, on_failure=lambda: reported.append("failed")) as pool:
        pool.fail(ZeroDivisionError())
        pool.fail(KeyError())
        with pytest.raises(ZeroDivisionError):
            pool.check()
    assert reported == ["failed"]


def test_a_failure_can_end_steps_that_wait() -> None:
    ended = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    with AdaptivePool("test", first=2, most=2, on_failure=ended.set) as pool:
        pool.start(ended.wait)
        pool.start(fail)
        with pytest.raises(ZeroDivisionError):
            pool.wait()


def test_a_waiting_thread_polls_for_cancellation() -> None:
    release, cancelled = threading.Event(), threading.Event()

    def poll() -> None:
        if cancelled.is_set():
            release.set()
            raise KeyboardInterrupt

    with AdaptivePool("test", first=1, most=1, poll=poll) as pool:
        pool.start(release.wait)
        cancelled.set()
        with pytest.raises(KeyboardInterrupt):
            pool.wait_for_thread()


@given(
    width=st.integers(1, 64),
    most=st.integers(1, 64),
    seconds=st.floats(0, 1e6),
    share=st.floats(0, 1),
)
def test_it_only_ever_grows_by_one_and_never_beyond_the_most(
    width: int, most: int, seconds: float, share: float
) -> None:
    width = min(width, most)
    after = grown(width, most, busy=share * seconds, seconds=seconds)
    assert width <= after <= min(width + 1, most)
