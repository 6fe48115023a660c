"""How many large requests a store is given at once: fewer when it asks to slow down, then gradually more again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

_LOOK_SECONDS = 0.1
"""How often somebody who waits for a permit looks whether it is still wanted."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Additive increase, multiplicative decrease, as TCP does it.

    Attributes:
        limit: Requests at once; infinite until the store has asked to slow down, for the callers' threads bound them.
        slowed: How often it was lowered.
    """

    limit: float = math.inf
    slowed: int = 0

    def allows(self, under_way: int) -> bool:
        """Whether one more request may begin."""
        return under_way + 1 <= self.limit

    def after_success(self) -> Pace:
        """One more at once for every round of successful requests."""
        return replace(self, limit=self.limit + 1 / self.limit)

    def after_overload(self, *, slowed: int, under_way: int) -> Pace:
        """Half as many at once.

        Args:
            slowed: What ``slowed`` was when the refused request began. The requests of one burst are refused together,
                which says no more than one refusal.
            under_way: Requests at the time, the refused one among them.
        """
        if slowed != self.slowed:
            return self
        return Pace(max(1.0, min(self.limit, under_way) / 2), self.slowed + 1)


class Pacer:
    """Hands out the permits to send; one for all threads that use a store.

    Args:
        overload: Whether a failure says that the store has too much to do.
    """

    def __init__(self, overload: Callable[[BaseException], bool]) -> None:
        self._overload = overload
        self._changed = threading.Condition()
        self._under_way = 0
        self.pace = Pace()
        self.last_success = -math.inf
        """By the monotonic clock."""

    @contextmanager
    def permit(self, unwanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for a permit, and hold it for one request.

        Args:
            unwanted: Whether the request need not be made any more; then it begins at once, to find that out itself.
        """
        with self._changed:
            while not (self.pace.allows(self._under_way) or unwanted()):
                self._changed.wait(_LOOK_SECONDS)
            self._under_way += 1
            slowed = self.pace.slowed
        try:
            yield
        except BaseException as error:
            if self._overload(error):
                with self._changed:
                    self.pace = self.pace.after_overload(slowed=slowed, under_way=self._under_way)
            raise
        else:
            with self._changed:
                self.pace = self.pace.after_success()
                self.last_success = time.monotonic()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
