"""Threads that move bytes: few while they compute, more while they wait, in order, and all of them end at a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.engine.adaptive_pool import Crew, grown


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


def test_there_are_more_and_more_while_they_wait() -> None:
    together = Together()
    with Crew("test", first=1, most=8) as crew:
        for _ in range(40):
            crew.start(together.waiting)
        crew.wait()
    assert together.most == 8


def test_those_that_compute_stay_few() -> None:
    together = Together()
    with Crew("test", first=1, most=8) as crew:
        for _ in range(20):
            crew.start(together.computing)
        crew.wait()
    assert together.most == 1


@pytest.mark.parametrize(("first", "most"), [(4, 2), (2, 2), (1, 1)], ids=["more first than at most", "two", "one"])
def test_there_are_never_more_than_allowed(first: int, most: int) -> None:
    together = Together()
    with Crew("test", first=first, most=most) as crew:
        for _ in range(12):
            crew.start(together.waiting)
        crew.wait()
    assert together.most == most


def test_steps_begin_in_the_order_in_which_they_are_started() -> None:
    begun: list[int] = []
    with Crew("test", first=1, most=1) as crew:
        for number in range(50):
            crew.start(begun.append, number)
        crew.wait()
    assert begun == list(range(50))


def test_after_a_failure_nothing_begins_any_more_and_whoever_waits_learns_of_it() -> None:
    begun: list[int] = []

    def step(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ZeroDivisionError

    def start_all(crew: Crew) -> None:
        for number in range(50):
            crew.start(step, number)

    with Crew("test", first=1, most=1) as crew:
        with pytest.raises(ZeroDivisionError):
            start_all(crew)
        with pytest.raises(ZeroDivisionError):
            crew.wait()
    assert begun == [0, 1, 2, 3]


def test_the_first_failure_is_the_one_that_counts_and_is_told_once() -> None:
    told: list[str] = []
    with Crew("test", first=2, most=2, on_failure=lambda: told.append("failed")) as crew:
        crew.fail(ZeroDivisionError())
        crew.fail(KeyError())
        with pytest.raises(ZeroDivisionError):
            crew.check()
    assert told == ["failed"]


def test_a_failure_can_end_steps_that_wait() -> None:
    ended = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    with Crew("test", first=2, most=2, on_failure=ended.set) as crew:
        crew.start(ended.wait)
        crew.start(fail)
        with pytest.raises(ZeroDivisionError):
            crew.wait()


def test_who_waits_looks_whether_it_is_called_off() -> None:
    release, called_off = threading.Event(), threading.Event()

    def glance() -> None:
        if called_off.is_set():
            release.set()
            raise KeyboardInterrupt

    with Crew("test", first=1, most=1, glance=glance) as crew:
        crew.start(release.wait)
        called_off.set()
        with pytest.raises(KeyboardInterrupt):
            crew.start(release.wait)


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
