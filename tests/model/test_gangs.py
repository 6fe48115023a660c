"""Several ranks keep together: real checkpointers whose collectives, threads and store calls take turns by chance.

What must hold: ranks never wait for each other in vain, they restore the same snapshot, they end alike, and what is
committed is the state of one step, whichever rank is killed, asked to terminate or refused by the store, and whenever.
``CHECKPOINT_FAULTS=long`` plays thousands of other stories.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.training import restoring
from checkpoint_sidecar.training.saver import Saver
from checkpoint_sidecar.training.saving import BackgroundSave
from checkpoint_sidecar.training.signals import Terminated
from model.gang import Gang, run_in
from model.ledger import HELD, LIVE
from model.mutants import Mutant
from model.promises import require
from model.rank import in_gangs, train
from model.turns import Actor
from model.world import FATES, World, in_world
from support.builders import OWNER

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
SEEDS = [random.randrange(2**32) for _ in range(3000)] if LONG else range(80)
MOST_GANGS = 4
DISTURBANCES = (
    "a kill",
    "a SIGTERM",
    "a failing request",
    "a failing request",
    "a start",
    "a wait",
    "damage",
    "a failing copy",
    "a failing thread",
)
LONGEST_WAIT_SECONDS = 3600.0
"""Seconds of the model's clock after which a rank that still waits will wait forever."""


class Stage:
    """A world, gangs in it, and a chance that decides what happens next."""

    def __init__(self, number: int, patch: pytest.MonkeyPatch) -> None:
        self.chance = random.Random(number)
        self.world = World()
        in_world(self.world, patch)
        in_gangs(self.world, patch)
        self.gangs: list[Gang] = []
        self.calm = True
        self.seen: Counter[str] = Counter()

    def start(self) -> Gang:
        number = len(self.gangs) + 1
        saved = self.world.promises.ledger.lineage()
        steps = (saved[0].step if saved else 0) + self.chance.choice([1, 3, 6])
        gang = Gang(f"gang {number}", self.chance.choice([1, 2, 2, 3]), steps, every=self.chance.choice([1, 2, 3]))
        self.world.tell(f"{gang.name} starts: {gang.size} ranks to step {gang.steps}, a save every {gang.every}")
        self.gangs.append(gang)
        for rank in range(gang.size):
            run_in(self.world, gang, rank, "", lambda rank=rank: train(self.world, gang, rank, OWNER))  # type: ignore[misc]
        return gang

    def actors(self) -> list[Actor]:
        return [actor for gang in self.gangs for rank in gang.actors.values() for actor in rank if not actor.ended]

    def tell(self, disturbances: int) -> None:
        """Give turns until all ranks have ended, with so many disturbances on the way."""
        waited = 0.0
        while alive := self.actors():
            if disturbances and self.chance.random() < 0.03:
                disturbances -= 1
                self.disturb()
                continue
            ready = [actor for actor in alive if not actor.blocked()]
            if not ready:
                waited += 1.0
                self.world.seconds += 1.0
                waits = {actor.name: actor.next_call for actor in alive}
                require(waited < LONGEST_WAIT_SECONDS, "P7", f"all wait in vain: {waits}")
                continue
            waited = 0.0
            self.go(self.chance.choice(ready))

    def go(self, actor: Actor) -> None:
        self.world.tell(f"  {actor.name}: {actor.next_call}")
        actor.go()
        if error := self.world.broken or actor.error:
            raise error
        for gang in self.gangs:
            require(not gang.apart, "P5", gang.apart)

    def disturb(self) -> None:
        gang = self.chance.choice(self.gangs)
        rank = self.chance.randrange(gang.size)
        what = self.chance.choice(DISTURBANCES)
        self.seen[what] += 1
        if what == "a kill" and gang.alive(rank):
            self.world.tell(f"rank {rank} of {gang.name} is killed")
            gang.killed.add(rank)
            for actor in gang.actors[rank]:
                actor.kill()
        elif what == "a SIGTERM":
            self.world.tell(f"rank {rank} of {gang.name} is asked to terminate")
            gang.terminated_at.setdefault(rank, self.world.seconds)
        elif what == "a failing request":
            calls = ("create", "upload", "put", "delete", "get", "read", "stat", "list")
            talking = [actor for actor in self.actors() if actor.next_call.startswith(calls)]
            if talking:
                actor = self.chance.choice(talking)
                actor.fate = self.chance.choice(FATES)
                self.world.tell(f"  {actor.name}: of its next request {actor.fate}")
        elif what == "a start" and len(self.gangs) < MOST_GANGS:
            started = self.start()
            if self.chance.random() < 0.5:
                started.failing[started.size - 1] = "a failing restore"
        elif what in ("a failing copy", "a failing thread"):
            gang.failing[rank] = what
            self.world.tell(f"rank {rank} of {gang.name}: {what}, the next time")
        elif what == "damage":
            self.damage()
        else:
            self.world.seconds += self.chance.choice([1.0, 25.0])
        self.calm = False

    def damage(self) -> None:
        """One rank's part of a snapshot rots."""
        saved = [s.path for s in self.world.promises.ledger.saved.values() if s.state in HELD]
        parts = [info.key for path in saved for info in self.world.store.list(f"{path}/__")]
        if parts:
            key = self.chance.choice(parts)
            found = self.world.store.stat(key)
            assert found is not None
            self.world.damage(key, b"?" * found.size)
            self.world.tell(f"{key} is damaged")

    def judge(self) -> None:
        for gang in self.gangs:
            restored = set(gang.restored.values())
            require(len(restored) <= 1, "P5", f"ranks of {gang.name} went on from {gang.restored}")
            ends = {rank: type(error).__name__ for rank, error in gang.ends.items()}
            self.seen.update(ends.values())
            alike = len(set(ends.values())) <= 1 or gang.killed
            require(alike, "P5", f"ranks of {gang.name} ended as {ends}")
            foreign = [e for e in gang.ends.values() if not isinstance(e, CheckpointError | Terminated | None)]
            require(not foreign, "P7", f"{gang.name} ended with {foreign!r}")
            if self.calm:
                require(not any(gang.ends.values()), "P7", f"{gang.name} ended with {gang.ends}, undisturbed")
        self.world.promises.check(self.world)
        for saved in self.world.promises.ledger.saved.values():
            if saved.state in HELD and saved.id not in self.world.promises.damage:
                self.whole(saved.path, saved.step)

    def whole(self, path: str, step: int) -> None:
        """All ranks' parts of a snapshot are of one moment."""
        store = self.world.store
        parts = [store.get(info.key, max_bytes=1000).data for info in store.list(f"{path}/__")]
        found = [json.loads(part) for part in parts]
        self.seen["resized"] += len(found) not in {gang.size for gang in self.gangs}
        require({part["step"] for part in found} == {step}, "P1", f"the snapshot of step {step} holds {found}")
        require([part["rank"] for part in found] == list(range(len(found))), "P1", f"step {step} holds {found}")

    def ask(self) -> None:
        """Require that a gang that starts now, alone, continues from what was committed and finishes."""
        for actor in self.actors():
            actor.kill()
        ledger = self.world.promises.ledger
        damaged = self.world.promises.damage
        usable = (s for s in ledger.lineage() if s.state == LIVE and not ledger.quarantined(s) and s.id not in damaged)
        expected = next((s.step for s in usable), 0)
        if not expected and ledger.newest:
            return  # everything is damaged; other tests cover such a start
        self.calm = True
        last = self.start()
        self.gangs = [last]
        self.tell(0)
        self.judge()
        require(set(last.restored.values()) == {expected}, "P1", f"a new start restores {last.restored}")
        require(ledger.lineage()[0].step == last.steps, "P1", f"step {last.steps} is not saved")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def tell(number: int) -> Stage:
    with pytest.MonkeyPatch.context() as patch:
        stage = Stage(number, patch)
        try:
            stage.start()
            stage.tell(stage.chance.choice([0, 1, 3, 6]))
            stage.judge()
            stage.ask()
        except BaseException as error:
            error.add_note("\n".join(stage.world.story))
            raise
        finally:
            for actor in stage.actors():
                actor.kill()
        return stage


def tell_all(numbers: Iterable[int]) -> Counter[str]:
    """How often things happened in these stories."""
    return sum((tell(number).seen for number in numbers), Counter())


@pytest.mark.timeout(7200 if LONG else 120)
def test_ranks_keep_together_whatever_happens_to_any_of_them() -> None:
    seen = tell_all(SEEDS)
    few = {what for what in (*DISTURBANCES, "Terminated", "FencedError", "RankLostError", "resized") if seen[what] < 5}
    assert not few, f"stories that never come to this prove nothing by being content: {seen}"


MUTANTS = (
    Mutant(
        5,
        "a rank that cannot prepare to read keeps it to itself",
        186,
        restoring.SnapshotLoading.run,
        "in self._agreement.gather_errors(error) if",
        "in [error] if",
    ),
    Mutant(
        5,
        "ranks do not compare how a save ended",
        5,
        Saver._settle,
        "self._agreement.gather((ended, self._fenced(), self._watch.stop() is not None))",
        "[(ended, self._fenced(), self._watch.stop() is not None)]",
    ),
    Mutant(5, "only rank 0 learns of a later attempt", 5, Saver._settle, "said[0][1]", "self._fenced()"),
    Mutant(
        5,
        "a rank whose copy fails keeps it to itself",
        13,
        Saver._begin,
        "self._agreement.raise_any(failure)",
        "failure and (_ for _ in ()).throw(failure)",
    ),
    Mutant(
        5,
        "each rank ends by its own signal",
        0,
        Saver.terminate,
        "self._agreement.vote(Vote(step, saving=self._saves.running, stop=self._watch.stop()))",
        "Agreed.decode(Vote(step, saving=self._saves.running, stop=self._watch.stop()).encode())",
    ),
    Mutant(
        5, "what is uploaded is not a copy", 1, BackgroundSave.stage, "staged = self._copy(state)", "staged = state"
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.wrong)
def test_without_one_of_its_rules_a_gang_falls_apart(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(mutant.caught_by, int)
    mutant.apply(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        tell_all((mutant.caught_by, *range(60)))
