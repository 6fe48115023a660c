"""The rate limit (AIMD): fewer large requests at once when a store asks to slow down, then gradually more again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

_POLL_SECONDS = 0.1
"""How often a thread that waits for a permit checks whether the request is still wanted."""


@dataclass(frozen=True, slots=True)
class AimdLimit:
    """Additive increase, multiplicative decrease, as in TCP.

    Attributes:
        limit: Concurrent requests; infinite until the store asks to slow down, since the callers' threads limit them.
        slowed: How often the limit was lowered.
    """

    limit: float = math.inf
    slowed: int = 0

    def allows(self, under_way: int) -> bool:
        """Return whether one more request may begin."""
        return under_way + 1 <= self.limit

    def after_success(self) -> AimdLimit:
        """Return a limit that grows by one per round of successful requests."""
        return replace(self, limit=self.limit + 1 / self.limit)

    def after_overload(self, *, slowed: int, under_way: int) -> AimdLimit:
        """Return half the limit.

        Args:
            slowed: Value of ``slowed`` when the refused request began. Refusals of one burst count as a single refusal.
            under_way: Running requests, including the refused one.
        """
        if slowed != self.slowed:
            return self
        return AimdLimit(max(1.0, min(self.limit, under_way) / 2), self.slowed + 1)


class AimdLimiter:
    """Grants permits for large requests; all threads that use a store share one limiter.

    Args:
        overload: Returns whether a failure means that the store is overloaded.
    """

    def __init__(self, overload: Callable[[BaseException], bool]) -> None:
        self._overload = overload
        self._changed = threading.Condition()
        self._under_way = 0
        self.rate = AimdLimit()
        self.last_success = -math.inf
        """Time of the last success, by the monotonic clock."""

    @contextmanager
    def permit(self, unwanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for a permit, and hold it for one request.

        Args:
            unwanted: Returns whether the request is no longer needed; then it begins at once and detects that itself.
        """
        with self._changed:
            while not (self.rate.allows(self._under_way) or unwanted()):
                self._changed.wait(_POLL_SECONDS)
            self._under_way += 1
            slowed = self.rate.slowed
        try:
            yield
        except BaseException as error:
            if self._overload(error):
                with self._changed:
                    self.rate = self.rate.after_overload(slowed=slowed, under_way=self._under_way)
            raise
        else:
            with self._changed:
                self.rate = self.rate.after_success()
                self.last_success = time.monotonic()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
