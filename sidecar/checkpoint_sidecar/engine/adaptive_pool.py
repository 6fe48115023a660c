"""A thread pool that grows while its threads wait for the store, and stays small while they compute.

A thread that waits for the network leaves the processor idle, so more threads transfer more. Threads that compute
(checksums, the kernel's copies, encryption) gain nothing beyond the number of cores: they compete for caches, and take
the processor and the interpreter's lock from the training loop.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

_POLL_SECONDS = 0.2
"""How often a waiting thread checks whether the work was cancelled."""

_LONGEST_LINE, _SHORT_LINE = 8, 2
"""At the first length ``start`` waits, and at the second it continues."""

_MOSTLY_WAITING = 0.25
"""If a step computes for a smaller share of its time, the pool may add a thread."""

_SCHEDULING = "/proc/thread-self/schedstat"
"""Linux: nanoseconds this thread ran, nanoseconds it was ready to run, and how often it was scheduled."""

_MOST_SCHEDULING_BYTES = 100


def grown(width: int, most: int, *, busy: float, seconds: float) -> int:
    """Return how many threads may work at a time after a step has finished.

    Doubles with every round of steps that mostly waited, as TCP's slow start does.

    Args:
        width: How many may work now.
        most: Maximum.
        busy: Seconds during which the step ran on a processor or was ready to.
        seconds: Duration of the step.
    """
    return min(width + 1, most) if busy < _MOSTLY_WAITING * seconds else width


class _BusyTime:
    """This thread's processor time plus, on Linux, the time it waited for a processor."""

    def __enter__(self) -> Self:
        try:
            self._file = os.open(_SCHEDULING, os.O_RDONLY)
        except OSError:
            self._file = -1
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def seconds(self) -> float:
        try:
            running, ready, _ = os.pread(self._file, _MOST_SCHEDULING_BYTES, 0).split()
            return (int(running) + int(ready)) / 1e9
        except (OSError, ValueError):
            return time.thread_time()


class AdaptivePool:
    """Runs steps in threads, in the order in which they are started. No step begins after the first failure.

    Some steps wait in line, so that a thread that finishes one begins the next at once, and the calling thread, which
    competes with the others for the interpreter's lock, rarely has to wake.

    Call all methods except ``fail`` from one thread. Leaving the block waits for the running steps.

    Args:
        name: Prefix of the threads' names.
        first: How many steps run at a time at the beginning.
        most: Maximum of steps that run at a time, reached if they wait for most of their time.
        poll: Called regularly while a method waits; an error that it raises ends the waiting.
        on_failure: Called once, at the first failure; may make running steps fail too.
    """

    def __init__(
        self,
        name: str,
        *,
        first: int,
        most: int,
        poll: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._width = min(first, most)
        self._most = most
        self._poll = poll
        self._on_failure = on_failure
        self._threads: list[threading.Thread] = []
        self._line: deque[Callable[[], object]] = deque()
        self._running = 0
        self._closed = False
        lock = threading.Lock()
        self._step_added = threading.Condition(lock)
        self._awaited_came = threading.Condition(lock)
        self._awaited: Callable[[], bool] = lambda: False
        self.first_error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._step_added:
            self._closed = True
            if error is not None:
                self._line.clear()
            self._step_added.notify_all()
        for thread in self._threads:
            thread.join()

    def start(self, step: Callable[..., object], *arguments: object) -> None:
        """Put a step in line. Waits while the line is long.

        Raises:
            BaseException: The first failure of any step, or an error from ``poll``.
        """
        if len(self._line) >= _LONGEST_LINE:
            self._wait_until(lambda: len(self._line) <= _SHORT_LINE)
        self._raise_failure()
        with self._step_added:
            self._line.append(partial(step, *arguments))
            self._step_added.notify()
            self._add_thread()

    def wait_for_thread(self) -> None:
        """Wait until fewer steps are started than may run at a time, so that the next one need not stand in line.

        Raises:
            BaseException: See ``start``.
        """
        self._wait_until(lambda: len(self._line) + self._running < self._width)

    def wait(self) -> None:
        """Wait until every step has finished.

        Raises:
            BaseException: See ``start``.
        """
        self._wait_until(lambda: not self._line and not self._running)
        self._poll()

    def check(self) -> None:
        """Raise the error that ``start`` would raise, if any."""
        self._raise_failure()
        self._poll()

    def fail(self, error: BaseException) -> None:
        """Record a failure; the first one stops the pool."""
        with self._awaited_came:
            if self.first_error is not None:
                return
            self.first_error = error
            self._awaited_came.notify()
        self._on_failure()

    def _raise_failure(self) -> None:
        if self.first_error is not None:
            raise self.first_error

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._awaited_came:
            self._awaited = condition
            while not self._awaited_came.wait_for(lambda: self.first_error or condition(), _POLL_SECONDS):
                self._poll()
        self._raise_failure()

    def _add_thread(self) -> None:
        if len(self._threads) < min(len(self._line) + self._running, self._width):
            thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}")
            try:
                thread.start()
            except RuntimeError:
                # The system allows no more threads: those that there are do all of the work.
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    def _work(self) -> None:
        with _BusyTime() as busy_time:
            while step := self._next_step():
                began, busy = time.monotonic(), busy_time.seconds()
                try:
                    if self.first_error is None:
                        step()
                except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
                    self.fail(error)
                finally:
                    del step  # and what it holds, before the wait for the next one
                    self._finished(busy=busy_time.seconds() - busy, seconds=time.monotonic() - began)

    def _next_step(self) -> Callable[[], object] | None:
        with self._step_added:
            self._step_added.wait_for(lambda: self._line or self._closed)
            if not self._line:
                return None
            self._running += 1
            step = self._line.popleft()
            self._tell_waiting()
            return step

    def _finished(self, *, busy: float, seconds: float) -> None:
        with self._step_added:
            self._running -= 1
            self._width = grown(self._width, self._most, busy=busy, seconds=seconds)
            self._add_thread()
            self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Wake the thread that waits only for what it waits for: each time it wakes takes time from a running step."""
        if self._awaited():
            self._awaited_came.notify()
