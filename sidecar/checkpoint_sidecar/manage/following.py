"""Waiting for new snapshots of a run, as an evaluator does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from checkpoint_sidecar.core.errors import RunNotFoundError, StoreError
from checkpoint_sidecar.core.run import Run, Snapshot

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
_GROWTH = 1.5

logger = logging.getLogger(__name__)


class StopSignal(Protocol):
    """A ``threading.Event``, or anything that waits like one."""

    def is_set(self) -> bool:
        """Return whether to stop."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the signal, at most so many seconds; return whether to stop."""


@dataclass(frozen=True, slots=True)
class Polling:
    """How to wait.

    Attributes:
        stop: Ends the wait when it is set; None for no such signal.
        idle_seconds: Ends the wait when nothing was committed for so long; None for no limit.
        newest_only: Leave out snapshots that a newer one has followed already.
        longest_wait: Longest pause between two requests, in seconds; pauses begin at ``FIRST_WAIT_SECONDS``.
    """

    stop: StopSignal | None = None
    idle_seconds: float | None = None
    newest_only: bool = False
    longest_wait: float = LONGEST_WAIT_SECONDS


def follow(poll: Callable[[], Run], polling: Polling, *, after: int) -> Iterator[Snapshot]:
    """Yield live snapshots as they are committed.

    Args:
        poll: Reads the log.
        after: Number of a log entry; commits after it count.

    Raises:
        RunNotFoundError: The run was deleted. A run that does not exist yet is waited for.
        LogReplacedError: Another run has taken its place.
        LogError: The log cannot be read.
        StoreError: The store refuses to be read. A lost connection is waited for.
    """
    wait, found_at, seen = FIRST_WAIT_SECONDS, time.monotonic(), False
    while polling.stop is None or not polling.stop.is_set():
        found: Snapshot | None = None
        try:
            run = poll()
        except RunNotFoundError:
            if seen:
                raise
        except StoreError as error:
            if not error.retryable:
                raise
            logger.warning("still waiting for snapshots: %s", error)
        else:
            seen = True
            found = _next(run, after, newest_only=polling.newest_only)
        if found is not None:
            after, wait = found.number, FIRST_WAIT_SECONDS
            yield found
            found_at = time.monotonic()
            continue
        pause = min(wait, polling.longest_wait)
        if polling.idle_seconds is not None:
            left = found_at + polling.idle_seconds - time.monotonic()
            if left <= 0:
                return
            pause = min(pause, left)
        if polling.stop is None:
            time.sleep(pause)
        elif polling.stop.wait(pause):
            return
        wait *= _GROWTH


def _next(run: Run, after: int, *, newest_only: bool) -> Snapshot | None:
    new = [s for s in run.snapshots.values() if s.number > after and s.live]
    return new[-1 if newest_only else 0] if new else None
