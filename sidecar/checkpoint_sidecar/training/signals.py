"""Notices SIGTERM whatever the main thread is doing, and exits before SIGKILL.

Python runs signal handlers in the main thread, between two bytecodes: a loop that waits for the GPU or for a collective
learns of SIGTERM only when that returns, and then no longer knows how much of the grace period is gone. The
interpreter's wake-up descriptor is written from the C handler at once, so a thread that reads it knows the moment. The
descriptor may be taken over by other code (asyncio does so), so the Python handler notifies the same thread again.

That thread is also the last resort. A call of ours that is in C code when the grace period ends, in a collective or a
request, cannot be interrupted; the thread then logs what is lost and ends the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from checkpoint_sidecar.training import exits
from checkpoint_sidecar.training.vote import UNLIMITED, Stop

logger = logging.getLogger(__name__)

_SIGTERM = int(signal.SIGTERM)

ECHO_SECONDS = 3.0
"""A SIGTERM within this time of the first is the same request: an init process that signals its whole group
reaches a worker directly and once more through torchrun."""

START_SECONDS = 5.0
"""Time that a start has to exit after SIGTERM: it has nothing to save."""

_LAST_SECONDS = 0.4
"""Margin before SIGKILL: the last resort must be quicker."""

_POLL_SECONDS = 0.1
_AFTER_HANDLER = b"\xff"  # no signal has this number
_ASKED = b"\xfe"


class Terminated(SystemExit):
    """Training stops because a pod of it was asked to terminate, or because the training code asked for it.

    Leaves ``Checkpointer.step`` on all ranks. The process exits with code 143, like one killed by SIGTERM, so that its
    controller sees a failure and replaces it. Catch it only to clean up, and raise it again.

    Attributes:
        step: The last step that was trained.
        saved_step: The step of the newest snapshot: where the next attempt continues. None if there is none.
    """

    def __init__(self, step: int, saved_step: int | None) -> None:
        super().__init__(128 + _SIGTERM)
        self.step = step
        self.saved_step = saved_step


class TerminationWatch:
    """Knows whether and when this process was asked to terminate.

    Args:
        grace_seconds: Time from SIGTERM to SIGKILL.
        lost: Returns what the last resort logs about the training that is lost.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        grace_seconds: float,
        *,
        lost: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grace = grace_seconds
        self._lost = lost
        self._clock = clock
        self._first: float | None = None
        self._by_descriptor = False
        self._repeated = False
        self._asked = False
        self._joined = False
        self._until = float("inf")
        self._starting = False
        self._inside: list[str] = []
        self._handler: _Handler | None = None
        self._writing: socket.socket | None = None
        self._left: socket.socket | None = None
        self._previous_wakeup = -1

    def install(self, *, starting: bool = False) -> None:
        """Take over SIGTERM until ``remove``; a handler that was there before is still called.

        Only the main thread may do so; in another one this logs that SIGTERM will not be noticed.

        Args:
            starting: Until ``training`` is called SIGTERM raises ``Terminated`` in the main thread, because there is
                nothing to save. Otherwise it only starts the grace period.
        """
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "SIGTERM is not watched, because the Checkpointer was opened outside the main thread: "
                "an eviction will cost the steps since the last save"
            )
            return
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        self._writing = writing
        self._starting = starting
        _installed.add(self)
        # This order misses nothing: the thread reads what the handler reports, and the handler has already
        # reported what the descriptor reports too late.
        threading.Thread(target=self._read, args=(reading,), name="watch-sigterm", daemon=True).start()
        self.keep()
        self._previous_wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def keep(self) -> None:
        """Take SIGTERM back from a handler that was installed since, which is called all the same."""
        current = signal.getsignal(signal.SIGTERM)
        if self._writing is None or (self._handler is not None and current is self._handler):
            return
        if threading.current_thread() is threading.main_thread():
            self._handler = _Handler(self, current)
            signal.signal(signal.SIGTERM, self._handler)

    def remove(self) -> None:
        """Give SIGTERM back. Idempotent.

        Only the main thread may take the descriptor away. In another one it stays open, or the interpreter would write
        to whatever has its number next, and the handler gives SIGTERM back when the first one comes.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        _installed.discard(self)
        self._starting = False
        if threading.current_thread() is not threading.main_thread():
            self._left = writing
            return
        installed: Any = signal.getsignal(signal.SIGTERM)
        if isinstance(installed, _Handler) and installed is self._handler:
            signal.signal(signal.SIGTERM, installed.before())
        current = signal.set_wakeup_fd(-1)
        wanted = self._previous_wakeup if current == writing.fileno() else current  # another library's since
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile, without a word
            signal.set_wakeup_fd(wanted)
        for other in _installed:
            if other._previous_wakeup == writing.fileno():
                other._previous_wakeup = self._previous_wakeup
        # The reader sees the end of the stream; it closes its own end.
        writing.close()

    def training(self) -> None:
        """Note that the start has ended, so that there is something to save."""
        self._starting = False

    def ask(self, within_seconds: float | None = None) -> None:
        """Request a last save and the end of training. Safe in signal handlers."""
        if within_seconds is not None:
            self._until = min(self._until, self._clock() + within_seconds)
        self._asked = True
        self._wake(_ASKED)

    def join(self, stop: Stop) -> None:
        """Note that another rank was asked to terminate: this rank has no more time than that one."""
        self._until = min(self._until, self._clock() + stop.remaining_seconds)
        self._joined = True
        self._wake(_ASKED)

    def stop(self) -> Stop | None:
        """Return the rest of the grace period, or None while there is no request to terminate."""
        if self._first is None and not self._asked and not self._joined:
            return None
        until = min(self._until, float("inf") if self._first is None else self._first + self._grace)
        return Stop(min(UNLIMITED, until - self._clock()), repeated=self._repeated, save=self._asked)

    @contextmanager
    def inside(self, operation: str) -> Iterator[None]:
        """While the main thread is in a call of ours, it ends with the grace period, whatever it waits for."""
        self._inside.append(operation)
        try:
            yield
        finally:
            self._inside.pop()

    @property
    def installed(self) -> bool:
        return self._writing is not None

    @property
    def starting(self) -> bool:
        return self._starting

    def wake(self) -> None:
        """Wake the thread after a handler was called."""
        self._wake(_AFTER_HANDLER)

    def _wake(self, byte: bytes) -> None:
        if self._writing is not None:
            with contextlib.suppress(OSError):  # it is full, so that the reader is awake
                self._writing.send(byte)

    # In the thread

    def _read(self, reading: socket.socket) -> None:
        announced = False
        with reading:
            while True:
                if select.select([reading], [], [], _POLL_SECONDS if announced else None)[0]:
                    numbers = reading.recv(64)
                    if not numbers:
                        return
                    self._pass_on(numbers.translate(None, _AFTER_HANDLER + _ASKED))
                    if self.installed:
                        self._note(numbers)
                if not announced and (self._first is not None or self._asked or self._joined):
                    announced = True
                    self._announce()
                if announced:
                    self._leave_in_time()

    def _pass_on(self, numbers: bytes) -> None:
        if self._previous_wakeup != -1 and numbers:
            with contextlib.suppress(OSError):  # the reader is gone, or has enough to read
                os.write(self._previous_wakeup, numbers)

    def _note(self, numbers: bytes) -> None:
        """Note a signal: by the descriptor, and where that is taken away by the handler, which may come much later."""
        self._by_descriptor |= _SIGTERM in numbers
        if (_SIGTERM if self._by_descriptor else _AFTER_HANDLER[0]) not in numbers:
            return
        now = self._clock()
        if self._first is None:
            self._first = now
        self._repeated |= now - self._first > ECHO_SECONDS

    def _announce(self) -> None:
        if self._starting:
            logger.warning("SIGTERM: leaving, nothing was trained yet")
        elif self._first is not None:
            logger.warning("SIGTERM: stopping after this step, %g s are left", self._grace)
        elif self._asked:
            logger.warning("asked to save and stop: stopping after this step")
        else:
            logger.warning("another rank was asked to terminate: stopping after this step")

    def _leave_in_time(self) -> None:
        """End the process if its time is over and a call of ours is what it still waits for."""
        stop = self.stop() if self._inside else None
        if stop is None:
            return
        remaining = stop.remaining_seconds
        if self._starting and self._first is not None:
            remaining = min(remaining, START_SECONDS - (self._clock() - self._first))
        if remaining <= _LAST_SECONDS:
            logger.critical("%s does not end in time, so the process does: %s", self._inside[-1], self._lost())
            exits.leave_now(128 + _SIGTERM)


class _Handler:
    """The Python handler of a watch, and the handler that it replaced."""

    def __init__(self, watch: TerminationWatch, previous: Any) -> None:
        self._watch = watch
        self._previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._watch.wake()
        previous = self.before()
        if not self._watch.installed and signal.getsignal(number) is self:
            signal.signal(number, previous)
            signal.raise_signal(number)
            return
        if callable(previous):
            previous(number, frame)
        if self._watch.starting:
            raise Terminated(0, None)

    def before(self) -> Any:
        """Return the previous handler, skipping those of watches that were removed since."""
        previous = self._previous
        while isinstance(previous, _Handler) and not previous._watch.installed:
            previous = previous._previous
        return signal.SIG_DFL if previous is None else previous


# A forked child (a DataLoader worker, say) inherits handler and descriptor: terminating it would wake up the parent.
# Between the fork and their removal SIGTERM has to wait.
_installed: weakref.WeakSet[TerminationWatch] = weakref.WeakSet()


_masks = threading.local()


def _hold() -> None:
    if _installed:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release() -> None:
    before = vars(_masks).pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget_in_child() -> None:
    for watch in list(_installed):
        watch.remove()
    _release()


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget_in_child)
