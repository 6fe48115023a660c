"""Makes a process fail at its end if a requested save is missing.

Closing a ``Checkpointer`` raises the errors of its saves. This module serves scripts that do not close it.

The end of a process consists of, in this order: hooks of ``threading``, the end of non-daemon threads, functions of
``atexit``, and the last flush of standard output and error. If that flush fails, the interpreter changes the exit code
to 120 (see ``sys.exit``). This is the only way to change the exit code after all other cleanup.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its own hook, before ours below
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)

EXIT_SECONDS = 5.0
"""How long the end of the process waits for abandoned threads; those of a pool are not daemons."""


class Unfinished(Protocol):
    """Work that the end of the process waits for."""

    def finish_at_exit(self) -> Exception | None:
        """Wait until the work has ended or was abandoned. Returns an error that was not raised, or None."""


_unfinished: set[Unfinished] = set()
_unreported: list[Exception] = []
_given_up: list[Callable[[], int]] = []


def expect(work: Unfinished) -> None:
    """Make the end of the process wait for this work."""
    _unfinished.add(work)


def forget(work: Unfinished) -> None:
    """Stop waiting for work that has ended and whose result was reported."""
    _unfinished.discard(work)


def fail(error: Exception) -> None:
    """Make this process fail at its end, because no caller could notice the error."""
    _unreported.append(error)


def give_up_threads(exit_code: Callable[[], int]) -> None:
    """End the process without waiting for threads that hang in requests or collectives, after everything else.

    Threads of pools would keep the process alive; others may crash it while the interpreter shuts down.

    Args:
        exit_code: Returns the exit code; called at the end.
    """
    _given_up.append(exit_code)


def leave_now(code: int) -> None:
    """End this process at once, after flushing its output."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


class _FailingAtTheEnd:
    """Standard error whose last flush, by the interpreter, fails."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()
        # The interpreter flushes outside any Python frame; a child of multiprocessing flushes inside one.
        caller = sys._getframe(0).f_back
        if caller is None or caller.f_globals.get("__name__") == "multiprocessing.util":
            raise OSError("something that this process was asked to save is not saved: see the log")


def _finish() -> None:
    errors = [error for work in list(_unfinished) if (error := work.finish_at_exit()) is not None]
    errors += _unreported
    for error in errors:
        logger.critical("this process fails, because not everything is saved: %s", error)
    if errors:
        sys.stderr = _FailingAtTheEnd(sys.stderr)
    if _given_up:
        threading.Thread(target=_cut_short, args=(_given_up[-1](),), daemon=True).start()


def _cut_short(code: int) -> None:
    # After SIGTERM the grace period has ended already.
    time.sleep(EXIT_SECONDS if code == 1 else 0.5)
    leave_now(code)


def _leave_threads() -> None:
    if _given_up:
        leave_now(_given_up[-1]())


def _forget_all() -> None:
    _unfinished.clear()
    _unreported.clear()
    _given_up.clear()


# Private, but the only hook that runs while threads can still be started, which an upload needs: concurrent.futures,
# which uses it too, refuses to start any from then on. Hooks run in reverse order, so this one runs before that one's.
threading._register_atexit(_finish)  # type: ignore[attr-defined]
atexit.register(_leave_threads)
# A forked child, such as a worker of a data loader, has saved nothing.
os.register_at_fork(after_in_child=_forget_all)
