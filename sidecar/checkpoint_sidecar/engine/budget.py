"""Limits on memory: one that several threads share, and one for what is worked on at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_GLANCE_SECONDS = 0.2

Item = TypeVar("Item")


def groups_within(limit: int, items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The items in order, as many at a time as make at most ``limit`` bytes, and at least one."""
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
    """Hands out allowances, first come first served, so that together they stay below a limit.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes handed out and not yet given back."""
        return self._used

    def acquire(self, count: int, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until ``count`` bytes are free. More than the limit are granted when nobody else holds any.

        Args:
            meanwhile: Called now and then; what it raises ends the waiting.
        """
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while not self._changed.wait_for(
                    lambda: self._waiting[0] is turn and self._has_room_for(count), _GLANCE_SECONDS
                ):
                    meanwhile()
                self._used += count
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def release(self, count: int) -> None:
        """Give back what ``acquire`` granted."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def _has_room_for(self, count: int) -> bool:
        return count == 0 or self._used == 0 or self._used + count <= self._limit
