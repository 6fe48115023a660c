"""A thread pool that grows while its threads wait for the store, and stays small while they compute.

A thread that waits for the network leaves the processor idle, so more threads transfer more. Threads that compute
(checksums, the kernel's copies, encryption) gain nothing beyond the number of cores: they compete for caches, and take
the processor and the interpreter's lock from the training loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_SECONDS = 0.2
"""How often a waiting thread checks whether the work was cancelled."""

_MOSTLY_WAITING = 0.25
"""If a step computes for a smaller share of its time, the pool may add a thread."""

_SCHEDULING = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds this thread ran, nanoseconds it was ready to run, and how often it was scheduled."""


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


def _busy_seconds() -> float:
    """Return this thread's processor time so far plus, on Linux, the time it waited for a processor."""
    try:
        running, ready, _ = _SCHEDULING.read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(running) + int(ready)) / 1e9


class AdaptivePool:
    """Runs steps in threads, in the order in which they are started. No step begins after the first failure.

    Call all methods except ``fail`` from one thread. Leaving the block waits for the running steps.

    Args:
        name: Prefix of the threads' names.
        first: How many steps run at a time at the beginning.
        most: Maximum of steps that run at a time, reached if they wait for most of their time.
        poll: Called regularly during ``start`` and ``wait``; an error that it raises ends the waiting.
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
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)
        self._width = min(first, most)
        self._most = most
        self._poll = poll
        self._on_failure = on_failure
        self._working = 0
        self._changed = threading.Condition()
        self.first_error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def start(self, step: Callable[..., object], *arguments: object) -> None:
        """Start a step as soon as a thread is free.

        Raises:
            BaseException: The first failure of any step, or an error from ``poll``.
        """
        self._wait_until(lambda: self._working < self._width)
        with self._changed:
            self._working += 1
        self._pool.submit(self._work, step, *arguments)

    def wait(self) -> None:
        """Wait until every step has finished.

        Raises:
            BaseException: See ``start``.
        """
        self._wait_until(lambda: self._working == 0)
        self._poll()

    def check(self) -> None:
        """Raise the error that ``start`` would raise, if any."""
        if self.first_error is not None:
            raise self.first_error
        self._poll()

    def fail(self, error: BaseException) -> None:
        """Record a failure; the first one stops the pool."""
        with self._changed:
            if self.first_error is not None:
                return
            self.first_error = error
            self._changed.notify_all()
        self._on_failure()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            while not self._changed.wait_for(lambda: self.first_error or condition(), _POLL_SECONDS):
                self._poll()
        if self.first_error is not None:
            raise self.first_error

    def _work(self, step: Callable[..., object], *arguments: object) -> None:
        began, busy = time.monotonic(), _busy_seconds()
        try:
            if self.first_error is None:
                step(*arguments)
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            self.fail(error)
        finally:
            seconds, busy = time.monotonic() - began, _busy_seconds() - busy
            with self._changed:
                self._working -= 1
                self._width = grown(self._width, self._most, busy=busy, seconds=seconds)
                self._changed.notify_all()
