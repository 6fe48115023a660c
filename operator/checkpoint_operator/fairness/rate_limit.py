"""Rate limit for background work: reading snapshots back, and deleting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimit:
    """An amount per second, shared by all callers. Thread-safe.

    Each caller waits for the amounts before it, not for its own: a single large amount is not delayed.

    Args:
        per_second: More than 0.
        clock: Seconds that only go forward.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def reserve(self, amount: float) -> float:
        """Take ``amount``. Return how many seconds to wait before using it."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + amount / self._per_second
            return begin - now
