"""The machine: hypothesis decides what happens next, turn by turn; the judge watches; a failure tells its story.

Trainers, operators and users act on one bucket. Between any two store calls of one, another may run, be killed, lose
a reply or have a request land late. At the end all actors are killed where they stand and three questions are asked:
does a new trainer, alone, reach the state it should (P1, P7, P8), does a new operator settle, and does the next
trainer still find what it needs?
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from checkpoint_sidecar.core import layout, orphans
from checkpoint_sidecar.core.errors import ObjectExistsError, RestoreError
from checkpoint_sidecar.core.log import Owner
from model.actors import Outcome, Save, launch, trainer
from model.ledger import HELD, LIVE, Saved
from model.operators import User, operator
from model.promises import require
from model.turns import Actor
from model.world import FATES, World, in_world
from support.builders import OTHER_OWNER, OWNER

MOST_ACTORS = 4
MOST_LAUNCHED = 10
ENOUGH_CALLS = 2000
"""More calls than any undisturbed actor makes; a trainer that needs more waits for another actor."""

SAVES = st.lists(
    st.builds(
        Save,
        st.sampled_from([100, 100, 100, 0]),
        st.sampled_from(["Schedule", "Manual", "Termination"]),
        st.sampled_from(["", "0.5", "0.25", "nan"]),
    ),
    min_size=1,
    max_size=4,
)
RETENTION = st.fixed_dictionaries(
    {"keepLast": st.integers(1, 3), "gracePeriod": st.sampled_from(["0s", "1h"])},
    optional={
        "keepEverySteps": st.just(200),
        "keepEvery": st.just("1h"),
        "keepBest": st.just([{"metric": "loss", "mode": "Min", "count": 1}]),
        "maxAge": st.just("2h"),
        "maxTotalSize": st.sampled_from(["1", "600"]),
        "dryRun": st.sampled_from([False, False, True]),
    },
)
WHO = st.integers(0, MOST_ACTORS - 1)
NEWEST_FIRST = st.sampled_from([0, 1, 2, 3, 5])
TURNS = st.sampled_from([1, 1, 1, 2, 3, 5, 8, 13, 40])
PATIENT = st.sampled_from([None, None, True, False])
"""Whether an operator joins, and whether it waits for outcomes without a limit."""
CHANGES = st.sampled_from(["create _log", "create _log", "create _log", "upload", "put", "delete", ""])
REQUESTS = st.one_of(CHANGES, st.sampled_from(["get step-", "stat", "read"]))


@dataclass
class Explored:
    """How much was seen, over all stories."""

    stories: int = 0
    turns: int = 0
    lost_races: int = 0
    states: set[str] = field(default_factory=set)
    happened: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        return {
            "stories": self.stories,
            "turns": self.turns,
            "lost races": self.lost_races,
            "distinct states": len(self.states),
            "happened": dict(sorted(self.happened.items())),
        }


class Machine(RuleBasedStateMachine):
    """One story: which actor acts, turn by turn, what the network and clocks do, and the questions of the end.

    Attributes:
        explored: Shared by all stories of one subclass.
    """

    explored: ClassVar[Explored]

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world = World()
        in_world(self.world, self.patch)
        self.user = User()
        self.other = User(OTHER_OWNER)
        self.former = copy.deepcopy(self.user)
        self.alive: list[Actor] = []
        self.launched = 0
        self.requests = 0
        self.broken = False
        self.digest = (-1, "")  # of the ledger, at the number of events when it was taken

    # The cast

    @initialize(
        retention=st.one_of(st.none(), RETENTION, RETENTION),
        overwrite=st.sampled_from(["Never", "Skip", "Replace"]),
        verify=st.sampled_from(["Checksums", "Checksums", "Sizes"]),
    )
    def begin(self, retention: dict[str, Any] | None, overwrite: str, verify: str) -> None:
        self.user.says(overwritePolicy=overwrite, restore={"verify": verify})
        if retention:
            self.user.says(retention=retention)
        self.world.tell(f"a user wants {self.user.spec}")

    def _cast(self, kind: str, body: Callable[[Actor], None]) -> Actor:
        self.launched += 1
        name = f"{kind} {self.launched}"
        self.world.skew[name] = (0.0, -100 * 3600.0, 100 * 3600.0)[self.launched % 3]
        actor = launch(self.world, name, body)
        self.world.tell(f"{actor.name} starts")
        self.alive.append(actor)
        self.explored.happened[f"{kind} started"] += 1
        return actor

    def _trainer(self, saves: list[Save]) -> Actor:
        return self._cast("trainer", trainer(self.world, Outcome(), saves, owner=self._owner()))

    def _operator(self, passes: int, *, patient: bool) -> Actor:
        user = self.user if self._owner() == OWNER else self.other
        return self._cast("operator", operator(self.world, user, passes, patient=patient))

    def _owner(self) -> Owner:
        return OTHER_OWNER if self.world.promises.ledger.owner == str(OTHER_OWNER) else OWNER

    @precondition(lambda self: self.launched < MOST_LAUNCHED)
    @rule(saves=SAVES, then=st.booleans())
    def training_goes_well(self, saves: list[Save], then: bool) -> None:
        """A trainer from its start to its end, and perhaps an operator after it."""
        self._turns(self._trainer(saves), ENOUGH_CALLS)
        if then:
            self._turns(self._operator(2, patient=True), ENOUGH_CALLS)

    # Turns

    def _company(self, saves: list[Save], patient: bool | None) -> None:
        """See to it that there are two at least, as long as the story is not too long."""
        if patient is not None and len(self.alive) < MOST_ACTORS and self.launched < MOST_LAUNCHED:
            self._operator(4, patient=patient)
        while len(self.alive) < 2 and self.launched < MOST_LAUNCHED:
            self._trainer(saves)

    def _pick(self, who: int) -> Actor:
        return self.alive[who % len(self.alive)]

    @precondition(lambda self: self.alive or self.launched < MOST_LAUNCHED)
    @rule(saves=SAVES, patient=PATIENT, order=st.lists(st.tuples(WHO, TURNS), min_size=5, max_size=30))
    def they_take_turns(self, saves: list[Save], patient: bool | None, order: list[tuple[int, int]]) -> None:
        self._company(saves, patient)
        for who, turns in order:
            if self.alive:
                self._turns(self._pick(who), turns)

    @precondition(lambda self: self.alive or self.launched < MOST_LAUNCHED)
    @rule(
        saves=SAVES,
        patient=PATIENT,
        races=st.lists(
            st.tuples(
                st.sampled_from(["create _log", "create _log", "create _log", "upload", "put", "delete", "read"]),
                st.permutations(range(MOST_ACTORS)),
                st.sampled_from([1, 1, 2, 10]),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def they_race(self, saves: list[Save], patient: bool | None, races: list[tuple[str, list[int], int]]) -> None:
        """Bring all actors to a call of one kind; then let each continue, in some order."""
        self._company(saves, patient)
        for what, order, turns in races:
            for actor in list(self.alive):
                self._up_to(actor, what)
            for actor in [self.alive[who] for who in order if who < len(self.alive)]:
                self._turns(actor, turns)

    @precondition(lambda self: self.alive)
    @rule(who=WHO)
    def one_goes_on_to_its_end(self, who: int) -> None:
        self._turns(self._pick(who), ENOUGH_CALLS)

    @precondition(lambda self: self.alive or self.launched < MOST_LAUNCHED)
    @rule(saves=SAVES, patient=PATIENT, who=WHO, what=REQUESTS, fate=st.sampled_from(FATES), turns=TURNS)
    def a_request_fails(
        self, saves: list[Save], patient: bool | None, who: int, what: str, fate: str, turns: int
    ) -> None:
        self._company(saves, patient)
        actor = self._pick(who)
        self._up_to(actor, what)
        self.world.troubled.add(actor.name)
        self.world.tell(f"    of the next request {fate}:")
        self.explored.happened[fate] += 1
        actor.fate = fate
        self._turns(actor, turns)

    @precondition(lambda self: self.alive)
    @rule(who=WHO, what=CHANGES)
    def one_is_killed(self, who: int, what: str) -> None:
        actor = self._pick(who)
        self._up_to(actor, what)
        if actor in self.alive:
            self._kill(actor)

    def _kill(self, actor: Actor) -> None:
        self.alive.remove(actor)
        self.world.tell(f"{actor.name} is killed before: {actor.next_call}")
        self.explored.happened["kills"] += 1
        actor.kill()

    def _up_to(self, actor: Actor, what: str) -> None:
        for _ in range(60):
            if actor.ended or actor.next_call.startswith(what):
                break
            self._turns(actor, 1)

    def _turns(self, actor: Actor, turns: int) -> None:
        for _ in range(turns):
            if actor.ended:
                break
            self.world.tell(f"  {actor.name}: {actor.next_call}")
            self.explored.turns += 1
            actor.go()
            self._raise(actor)
            self._count_state()
        if actor.ended and actor in self.alive:
            self.alive.remove(actor)
            self.world.tell(f"{actor.name} ends")

    def _raise(self, actor: Actor) -> None:
        with self._judging():
            if error := self.world.broken or actor.error:
                raise error

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """A promise that falls here ends the story without the questions of its end."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def _count_state(self) -> None:
        promises = self.world.promises
        if self.digest[0] != promises.events:
            self.digest = promises.events, f"{promises.ledger}{sorted(promises.damage)}"
        waiting = sorted(f"{a.name.partition(' ')[0]} {a.next_call.partition(' ')[0]}" for a in self.alive)
        late = sorted(late.label.partition(" of ")[0][:20] for late in self.world.late)
        state = f"{self.digest[1]}{waiting}{late}"
        self.explored.states.add(hashlib.blake2b(state.encode(), digest_size=8).hexdigest())

    # The world

    @precondition(lambda self: self.world.late)
    @rule(which=st.integers(0, 9))
    def land(self, which: int) -> None:
        late = self.world.late.pop(which % len(self.world.late))
        self.world.tell(f"a late request lands: {late.label}")
        self.explored.happened["late landings"] += 1
        with self._judging(), contextlib.suppress(ObjectExistsError):
            late.land()

    @rule(seconds=st.sampled_from([0.4, 1800.0, 3597.0, 3600.0, 10800.0, 90000.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.seconds += seconds
        self.world.tell(f"{seconds} s pass")
        self._interrupted(seconds)

    @rule(seconds=st.sampled_from([-7200.0, -3.0, 3.0, 7200.0]))
    def the_stores_clock_is_set(self, seconds: float) -> None:
        self.world.jump(seconds)
        self._interrupted(seconds)
        self.world.tell(f"the store's clock jumps by {seconds} s")

    def _interrupted(self, seconds: float) -> None:
        """Objects that a probe left an hour ago are tidied away, also from under one that was stopped for so long."""
        if seconds >= orphans.DEFAULT_GRACE_SECONDS / 2:
            self.world.troubled |= {actor.name for actor in self.alive}

    def _held_one(self, which: int) -> Saved:
        held = self._held()
        return held[-1 - which % len(held)]

    def _held(self) -> list[Saved]:
        return [s for s in self.world.promises.ledger.saved.values() if s.state in HELD]

    # The end

    @invariant()
    def what_may_be_restored_is_there(self) -> None:
        with self._judging():
            self.world.promises.check(self.world)

    def teardown(self) -> None:
        self.explored.stories += 1
        try:
            for actor in self.alive:
                actor.kill()
            if not self.broken:
                self._ask()
        finally:
            self.explored.happened.update(self.world.promises.kinds)
            self.explored.lost_races += self.world.lost_races
            note("\n".join(self.world.story))
            self.patch.undo()

    def _ask(self) -> None:
        self.world.tell("all processes are killed; one trainer starts, alone")
        self._ask_a_trainer()
        for hours in (0, 24):
            self.world.seconds += hours * 3600
            self._ask_an_operator()
        self._ask_a_trainer()
        self.world.promises.check(self.world)

    def _alone(self, actor: Actor) -> None:
        self._turns(actor, ENOUGH_CALLS)
        require(actor.ended, "P7", f"{actor.name}, alone, makes {ENOUGH_CALLS} calls and still waits")

    def _ask_a_trainer(self) -> None:
        """Require that a new trainer restores what the design says, from the bucket alone, and trains on."""
        ledger = self.world.promises.ledger
        over = self.world.promises.given_up
        request = ledger.pending.id if ledger.pending else ""
        fresh = over or bool(ledger.pending and not ledger.pending.target) or not ledger.newest
        checks = {"Sizes": self.world.promises.visible_damage, "Checksums": self.world.promises.damage}
        bad = checks[ledger.restore.get("verify", "Checksums")]
        expected = next((s.id for s in ledger.to_restore(request) if s.id not in bad and not over), "")
        outcome = Outcome()
        self._alone(self._cast("trainer", trainer(self.world, outcome, [Save()], owner=self._owner())))
        require(outcome.restored == expected, "P1", f"a new start restores {outcome.restored!r}, not {expected!r}")
        if expected or fresh:
            require(outcome.error is None, "P7", f"a new start fails: {outcome.error}")
            require(outcome.saved, "P7", "a new start saves nothing")
        else:
            require(isinstance(outcome.error, RestoreError), "P8", f"nothing is left, and a start says {outcome.error}")

    def _ask_an_operator(self) -> None:
        user = self.user if self._owner() == OWNER else self.other
        self._alone(self._operator(6, patient=True))
        require(not user.left, "P6", f"an operator never settles: {user.left}")
        ledger = self.world.promises.ledger
        wanted: dict[str, str] = {}
        for saved in ledger.lineage():
            if saved.state == LIVE and not ledger.quarantined(saved):
                wanted.setdefault(layout.pointer_key(saved.step), saved.id)
        there = {info.key for info in self.world.store.list("step-") if layout.pointer_step(info.key) is not None}
        others = {key for key in there if key in self.world.promises.foreign or self._of_former_run(key)}
        for key in sorted((there | wanted.keys()) - others):
            shown, right = self._shown(key), wanted.get(key, "")
            unproven = not shown and right in self.world.promises.damage  # it is compared with the manifest
            require(
                shown == right or unproven, "pointer", f"{key} shows {shown or 'nothing'!r}, not {right or 'nothing'!r}"
            )

    def _of_former_run(self, key: str) -> bool:
        """Whether a stock pointer shows what a writer that was stopped for long has left of a run that was given up."""
        data = self.world.store.get(key, max_bytes=1 << 20).data.decode()
        return any(identity in data for identity in self.world.promises.former)

    def _shown(self, key: str) -> str:
        """The snapshot that a stock pointer shows, or empty."""
        if self.world.store.stat(key) is None:
            return ""
        return self.world.store.get(key, max_bytes=1 << 20).data.decode().split()[-1]
