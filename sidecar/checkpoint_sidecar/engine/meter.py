"""How far a save or a restore has got, in bytes, and calling it off."""

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
        done: Bytes that have arrived.
        total: Bytes that are to arrive, as far as is known yet.
        seconds: Since the counting began.
    """

    done: int
    total: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """The average since the counting began."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class TransferMeter:
    """Counts bytes for any number of threads, which learn from it when their work is no longer wanted.

    Args:
        total: Bytes that are to arrive; ``expect`` adds what is not known at the start.
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
        """This many more bytes are to arrive.

        Raises:
            TransferCancelledError: See ``cancel``.
        """
        with self._lock:
            self._total += count
            self._check()

    def add(self, count: int) -> None:
        """This many bytes have arrived: a part is stored, a range is verified and in its place.

        Raises:
            TransferCancelledError: See ``cancel``.
        """
        with self._lock:
            self._done += count
            self._check()

    def cancel(self) -> None:
        """Call it off: whoever next reports bytes gets an error, and cleans up as after any other."""
        with self._lock:
            self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """For who waits for others that move the bytes.

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
                "move data",
                f"{self._done} of {self._total} bytes",
                "it was called off, because this process has to end",
            )
