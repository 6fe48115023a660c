"""Noticing SIGTERM while the main thread sits in C code.

Python runs signal handlers in the main thread, between two bytecodes: a loop that waits for the GPU or for a collective
learns of SIGTERM only when that returns, and then no longer knows how much of the grace period is gone. The
interpreter's wake-up descriptor is written from the C handler at once, so a thread that reads it knows the moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from checkpoint_sidecar.training.vote import Stop

logger = logging.getLogger(__name__)

_SIGTERM = int(signal.SIGTERM)

ECHO_SECONDS = 3.0
"""Within this time of the first, another SIGTERM is the same request: an init process that signals its whole group
reaches a worker directly and once more through torchrun."""


class Terminated(SystemExit):
    """Training stops because a pod of it was asked to terminate. Leaves ``Checkpointer.step`` on all ranks.

    The process exits with code 143, like one killed by SIGTERM, so that its controller sees a failure and replaces it.
    Catch it only to clean up, and let it go on.

    Attributes:
        step: The last step that was trained.
        saved_step: The step of the newest snapshot: where the next attempt goes on. None if there is none.
    """

    def __init__(self, step: int, saved_step: int | None) -> None:
        super().__init__(128 + _SIGTERM)
        self.step = step
        self.saved_step = saved_step


class TerminationWatch:
    """Knows whether and when this process was asked to terminate.

    Args:
        grace_seconds: From SIGTERM to SIGKILL.
        clock: Seconds, monotonic.
    """

    def __init__(self, grace_seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace_seconds
        self._clock = clock
        self._first: float | None = None
        self._repeated = False
        self._undo: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over SIGTERM until ``remove``; a handler that was there before is still called.

        Only the main thread may do so; in another one this logs that SIGTERM will not be noticed.
        """
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "SIGTERM is not watched, because the Checkpointer was opened outside the main thread: "
                "an eviction will cost the steps since the last save"
            )
            return
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        previous_handler = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _calling(previous_handler))
        previous_wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

        def undo() -> None:
            signal.set_wakeup_fd(previous_wakeup)
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous_handler is None else previous_handler)
            # The reader sees the end of the stream; it closes its own end.
            writing.close()

        self._undo = undo
        _installed.add(self)
        threading.Thread(target=self._read, args=(reading, previous_wakeup), name="watch-sigterm", daemon=True).start()

    def remove(self) -> None:
        """Give SIGTERM back. Idempotent."""
        if self._undo is not None:
            self._undo()
            self._undo = None
            _installed.discard(self)

    def stop(self) -> Stop | None:
        """What is left of the grace period, or None while nobody asked to terminate."""
        if self._first is None:
            return None
        return Stop(self._grace - (self._clock() - self._first), repeated=self._repeated)

    def _read(self, reading: socket.socket, previous_wakeup: int) -> None:
        with reading:
            while numbers := reading.recv(64):
                if previous_wakeup != -1:
                    with contextlib.suppress(OSError):  # whoever reads there is gone, or has more than enough to read
                        os.write(previous_wakeup, numbers)
                if _SIGTERM not in numbers:
                    continue
                now = self._clock()
                if self._first is None:
                    self._first = now
                    logger.warning("SIGTERM: stopping after this step, %g s are left", self._grace)
                self._repeated |= now - self._first > ECHO_SECONDS


def _calling(previous: Any) -> Callable[[int, FrameType | None], None]:
    """A handler that only lets the C handler do its work, and passes the signal on to a former handler."""

    def handle(number: int, frame: FrameType | None) -> None:
        if callable(previous):
            previous(number, frame)

    return handle


# A forked child (a DataLoader worker, say) inherits handler and descriptor: terminating it would wake up the parent.
_installed: weakref.WeakSet[TerminationWatch] = weakref.WeakSet()


def _forget_in_child() -> None:
    for watch in list(_installed):
        watch.remove()


os.register_at_fork(after_in_child=_forget_in_child)
