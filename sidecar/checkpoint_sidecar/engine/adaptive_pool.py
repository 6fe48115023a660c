"""Threads that move bytes side by side: few while they compute, more while they wait for the store.

Behind a network a thread waits for most of its time, and many of them carry what one cannot. Where it computes instead
(checksums, the kernel's copies, encryption), more threads than cores only take the caches from each other, and the
processor and the interpreter's lock from the training loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

_GLANCE_SECONDS = 0.2
"""How often somebody who waits looks whether the work was called off."""

_MOSTLY_WAITING = 0.25
"""Whoever computes for a smaller part of its time leaves room for one more."""

_SCHEDULING = Path("/proc/thread-self/schedstat")
"""Of Linux: nanoseconds on a processor and ready for one, and how often it was given one."""


def grown(width: int, most: int, *, busy: float, seconds: float) -> int:
    """How many threads work at a time after one of them was done.

    Doubles with every round of threads that mostly waited, as TCP's slow start does.

    Args:
        busy: Seconds in which it had, or wanted, a processor.
        seconds: How long it took.
    """
    return min(width + 1, most) if busy < _MOSTLY_WAITING * seconds else width


def _busy_seconds() -> float:
    """Of this thread so far: its processor time, and as far as the kernel tells the time in which it waited for one."""
    try:
        running, ready, _ = _SCHEDULING.read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(running) + int(ready)) / 1e9


class Crew:
    """Does steps in threads, in the order in which they are started. The first failure ends it.

    All methods but ``fail`` are for one thread. Leaving the block waits for the steps that run.

    Args:
        first: How many steps run at a time at the beginning.
        most: And in the end, if they wait for most of their time.
        glance: Called now and then while somebody waits; what it raises ends the waiting.
        on_failure: Called once, at the first failure; may make steps that run fail too.
    """

    def __init__(
        self,
        name: str,
        *,
        first: int,
        most: int,
        glance: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)
        self._width = min(first, most)
        self._most = most
        self._glance = glance
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

    def start(self, step: Callable[..., None], *arguments: object) -> None:
        """Begin a step, once it has its turn.

        Raises:
            BaseException: The first failure of any step, or what ``glance`` raised.
        """
        self._wait_until(lambda: self._working < self._width)
        with self._changed:
            self._working += 1
        self._pool.submit(self._work, step, *arguments)

    def wait(self) -> None:
        """Return when every step is done.

        Raises:
            BaseException: See ``start``.
        """
        self._wait_until(lambda: self._working == 0)
        self._glance()

    def check(self) -> None:
        """Raise what ``start`` would."""
        if self.first_error is not None:
            raise self.first_error
        self._glance()

    def fail(self, error: BaseException) -> None:
        """End all of it, if this is the first failure."""
        with self._changed:
            if self.first_error is not None:
                return
            self.first_error = error
            self._changed.notify_all()
        self._on_failure()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            while not self._changed.wait_for(lambda: self.first_error or condition(), _GLANCE_SECONDS):
                self._glance()
        if self.first_error is not None:
            raise self.first_error

    def _work(self, step: Callable[..., None], *arguments: object) -> None:
        began, busy = time.monotonic(), _busy_seconds()
        try:
            if self.first_error is None:
                step(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self.fail(error)
        finally:
            seconds, busy = time.monotonic() - began, _busy_seconds() - busy
            with self._changed:
                self._working -= 1
                self._width = grown(self._width, self._most, busy=busy, seconds=seconds)
                self._changed.notify_all()
