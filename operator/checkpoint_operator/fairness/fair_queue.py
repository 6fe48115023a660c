"""A queue that serves its lanes in turns, however many keys each of them holds."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

Lane = Hashable
Group = Hashable


class FairQueue(Generic[K]):
    """Waiting keys. Lanes take turns, and within a lane groups do; a group is first in, first out.

    A lane with a thousand keys delays another lane by one key, not by a thousand.
    """

    def __init__(self) -> None:
        self._lanes: OrderedDict[Lane, OrderedDict[Group, deque[K]]] = OrderedDict()

    def put(self, key: K, lane: Lane, group: Group) -> None:
        """Add a key at the end of its group."""
        self._lanes.setdefault(lane, OrderedDict()).setdefault(group, deque()).append(key)

    def take(self, ready: Callable[[Lane, Group], bool]) -> K | None:
        """Remove and return the next key whose lane and group are ready, or None.

        The lane and the group that were served go to the end.
        """
        for lane, groups in self._lanes.items():
            for group, keys in groups.items():
                if not ready(lane, group):
                    continue
                key = keys.popleft()
                groups.move_to_end(group)
                if not keys:
                    del groups[group]
                self._lanes.move_to_end(lane)
                if not groups:
                    del self._lanes[lane]
                return key
        return None

    def clear(self) -> None:
        """Forget all keys."""
        self._lanes.clear()
