"""How fast the operator may do what costs others: reading snapshots back, and deleting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimit:
    """So much per second, whoever takes it. Safe from several threads.

    What is taken is paid for by the next one who takes: a single large amount never waits for more than came before it.

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
        """Take ``amount``, and return how many seconds to wait before it is used."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + amount / self._per_second
            return begin - now
