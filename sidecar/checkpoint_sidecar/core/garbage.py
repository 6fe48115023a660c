"""Pauses Python's cyclic garbage collector while millions of small objects are made that all stay alive.

Each full collection walks all of them, so that unpickling plans of many ranks takes several times as long, and stops
the training thread meanwhile.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CollectionPause:
    """One reason not to collect. The collector runs again when the last reason ends, if it ran before the first.

    Threads may pause at the same time. ``begin`` and ``end`` may each be called repeatedly.
    """

    def __init__(self) -> None:
        self._active = False

    def begin(self) -> None:
        global _resume  # noqa: PLW0603 - as global as the collector
        with _lock:
            if self._active:
                return
            if not _paused:
                _resume = gc.isenabled()
                gc.disable()
            self._active = True
            _paused.append(self)

    def end(self) -> None:
        with _lock:
            if not self._active:
                return
            self._active = False
            _paused.remove(self)
            if not _paused and _resume:
                gc.enable()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Do not collect inside a block."""
    pause = CollectionPause()
    pause.begin()
    try:
        yield
    finally:
        pause.end()


_lock = threading.Lock()
_paused: list[CollectionPause] = []
_resume = False
