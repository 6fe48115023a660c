"""Limits on memory: a budget that threads share, and groups of items that fit into a limit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_POLL_SECONDS = 0.2

Item = TypeVar("Item")


def groups_within(limit: int, items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield the items in order, in groups of at most ``limit`` bytes or of a single item."""
    group: list[Item] = []
    size = 0
    for item in items:
        if group and size + size_of(item) > limit:
            yield group
            group, size = [], 0
        group.append(item)
        size += size_of(item)
    if group:
        yield group


class MemoryBudget:
    """Grants memory in order of request, so that all grants together stay within a limit.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes granted and not yet released."""
        return self._used

    def acquire(self, count: int, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until ``count`` bytes are free. A request above the limit is granted once no other grant is held.

        Args:
            meanwhile: Called regularly while waiting; an error that it raises ends the waiting.
        """
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while not self._changed.wait_for(
                    lambda: self._waiting[0] is turn and self._has_room_for(count), _POLL_SECONDS
                ):
                    meanwhile()
                self._used += count
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def release(self, count: int) -> None:
        """Release bytes that ``acquire`` granted."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def _has_room_for(self, count: int) -> bool:
        return count == 0 or self._used == 0 or self._used + count <= self._limit
