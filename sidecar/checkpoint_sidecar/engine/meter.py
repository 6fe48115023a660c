"""Counts the bytes of a save or restore, and cancels it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import TransferCancelledError


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """The counters at one moment.

    Attributes:
        done: Bytes transferred.
        total: Bytes to transfer, as far as known.
        seconds: Time since counting began.
    """

    done: int
    total: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Average rate since counting began."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class TransferMeter:
    """Counts bytes for any number of threads, and stops them after ``cancel``.

    Args:
        total: Bytes to transfer; ``expect`` adds bytes that are not known at the start.
        clock: Seconds, monotonic.
    """

    def __init__(self, total: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._done = 0
        self._total = total
        self._cancelled = False
        self._lock = threading.Lock()

    def expect(self, count: int) -> None:
        """Add bytes to the total.

        Raises:
            TransferCancelledError: See ``cancel``.
        """
        with self._lock:
            self._total += count
            self._check()

    def add(self, count: int) -> None:
        """Count bytes as transferred: a part is stored, or a range is verified and delivered.

        Raises:
            TransferCancelledError: See ``cancel``.
        """
        with self._lock:
            self._done += count
            self._check()

    def cancel(self) -> None:
        """Cancel the transfer: every later report of bytes raises an error."""
        with self._lock:
            self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """Raise an error after ``cancel``. Called by threads that wait while others transfer.

        Raises:
            TransferCancelledError: See ``cancel``.
        """
        with self._lock:
            self._check()

    def snapshot(self) -> ProgressSnapshot:
        with self._lock:
            return ProgressSnapshot(self._done, self._total, self._clock() - self._began)

    def _check(self) -> None:
        if self._cancelled:
            raise TransferCancelledError(
                "transfer",
                f"{self._total} bytes",
                f"canceled after {self._done} bytes, because this process must end",
            )
