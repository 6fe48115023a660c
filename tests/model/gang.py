"""Several ranks: real ``Checkpointer`` objects whose collectives, threads and clocks are turns of the model.

A gang is one start of the process group. Each rank is an actor that trains, each save in the background another one,
and a collective is a meeting that ends when all ranks have come, or with an error when one of them never can. The
process of a rank, with the stand-ins for torch, is in ``rank``.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model.actors import launch
from model.turns import Actor
from model.world import World


@dataclass
class Gang:
    """One start of the process group.

    Attributes:
        actors: By rank, everything that runs in its process: the training loop first, then saves.
        terminated_at: By rank, when it was asked to terminate.
        restored: By rank, the step it went on from.
        ends: By rank, how its training loop ended.
        killed: Ranks that were.
        failing: By rank, what fails in it the next time.
        apart: How its ranks fell out of step, or empty.
    """

    name: str
    size: int
    steps: int
    every: int
    actors: dict[int, list[Actor]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    created: dict[int, int] = field(default_factory=dict)
    terminated_at: dict[int, float] = field(default_factory=dict)
    restored: dict[int, int] = field(default_factory=dict)
    ends: dict[int, BaseException | None] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    failing: dict[int, str] = field(default_factory=dict)
    apart: str = ""

    def alive(self, rank: int) -> bool:
        """Whether the rank's process runs: it lives as long as its training loop, and then as its last save does."""
        return any(not actor.ended for actor in self.actors[rank])

    @property
    def over(self) -> bool:
        return not any(self.alive(rank) for rank in range(self.size))


class Group:
    """What ``dist.new_group`` returns: ranks that meet."""

    def __init__(self, gang: Gang) -> None:
        self.gang = gang
        self._meetings: list[dict[int, tuple[str, Any]]] = []
        self._attended = dict.fromkeys(range(gang.size), 0)
        self._left: set[int] = set()

    def leave(self, rank: int) -> None:
        """The rank closes its connections."""
        self._left.add(rank)

    def meet(self, kind: str, value: Any = None) -> list[Any]:
        """Every rank's value, by rank.

        Raises:
            RuntimeError: A rank that did not come never will: its process has ended, or it has left the group.
        """
        actor, rank = me(), my_rank()
        actor.stop_before(f"meet for {kind}")
        number = self._attended[rank]
        self._attended[rank] += 1
        while len(self._meetings) <= number:
            self._meetings.append({})
        meeting = self._meetings[number]
        meeting[rank] = kind, copy.deepcopy(value)
        kinds = {each for each, _ in meeting.values()}
        if len(kinds) > 1:
            self.gang.apart = f"ranks of {self.gang.name} meet for {sorted(kinds)} at once"
            raise RuntimeError(self.gang.apart)
        actor.wait_until(lambda: len(meeting) == self.gang.size or self._missing(meeting), f"the others in {kind}")
        if len(meeting) < self.gang.size:
            raise RuntimeError("[gloo] Connection closed by peer")
        return [copy.deepcopy(meeting[each][1]) for each in range(self.gang.size)]

    def _missing(self, meeting: dict[int, Any]) -> bool:
        away = (rank for rank in range(self.gang.size) if rank not in meeting)
        return any(rank in self._left or not self.gang.alive(rank) for rank in away)


places: dict[threading.Thread, tuple[Gang, int, Actor]] = {}


def _place() -> tuple[Gang, int, Actor]:
    """Return the calling thread's gang, rank and actor; a pool's thread belongs to the actor that has the turn."""
    return places.get(threading.current_thread()) or next(each for each in places.values() if each[2].has_the_turn)


def me() -> Actor:
    return _place()[2]


def my_gang() -> Gang:
    return _place()[0]


def my_rank() -> int:
    return _place()[1]


def fail_at(what: str) -> None:
    """Fail once, in a rank in which this is to fail."""
    if my_gang().failing.get(my_rank()) == what:
        del my_gang().failing[my_rank()]
        raise RuntimeError(f"{what} of rank {my_rank()}")


def run_in(world: World, gang: Gang, rank: int, name: str, body: Callable[[], None]) -> Actor:
    """Start an actor in a rank's process."""

    def known(actor: Actor) -> None:
        places[threading.current_thread()] = gang, rank, actor
        body()

    actor = launch(world, f"{gang.name} rank {rank} {name}", known)
    gang.actors.setdefault(rank, []).append(actor)
    return actor
