"""Stories told by hand, on the machine's stage: cases that chance meets too rarely, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest

from builders import OTHER_OWNER, OWNER
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.policy import OverwritePolicy
from model.actors import Outcome, Save, User, launch, operator, trainer
from model.ledger import Ledger, Saved
from model.turns import Actor
from model.world import World, in_world

ALL = 2000
HOUR = 3600.0


class Stage:
    """A world, its users, and whoever is sent on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.world = World()
        in_world(self.world, patch)
        self.user, self.other = User(), User(OTHER_OWNER)
        self.user.spec = {**self.user.spec, "restore": {}}
        self.outcomes: dict[Actor, Outcome] = {}
        self.names = 0

    @property
    def ledger(self) -> Ledger:
        return self.world.promises.ledger

    def saved(self, step: int) -> Saved:
        """The newest snapshot of a step, of any branch."""
        return next(s for s in reversed(self.ledger.saved.values()) if s.step == step)

    def shown(self, step: int) -> str:
        """The snapshot that the stock pointer of a step shows."""
        return self.world.store.get(layout.pointer_key(step), max_bytes=1 << 20).data.decode().split()[-1]

    def trainer(
        self, saves: int | Sequence[Save] = 0, *, owner: Owner = OWNER, overwrite: OverwritePolicy = "Never"
    ) -> Actor:
        """A trainer that has not made a call yet."""
        planned = [Save()] * saves if isinstance(saves, int) else saves
        outcome = Outcome()
        actor = self._cast("trainer", trainer(self.world, outcome, planned, owner=owner, overwrite=overwrite))
        self.outcomes[actor] = outcome
        return actor

    def train(self, saves: int | Sequence[Save] = 0, **options: Any) -> Outcome:
        """A trainer from its start to its end."""
        return self.outcome(self.trainer(saves, **options))

    def outcome(self, actor: Actor) -> Outcome:
        """What a trainer comes to when it goes on to its end."""
        self.go(actor)
        return self.outcomes[actor]

    def operator(self, *, user: User | None = None, passes: int = 3) -> Actor:
        return self._cast("operator", operator(self.world, user or self.user, passes, patient=True))

    def operate(self, **options: Any) -> None:
        """An operator from its start to its end."""
        self.go(self.operator(**options))

    def go(self, actor: Actor, turns: int = ALL) -> None:
        for _ in range(turns):
            if actor.ended:
                break
            actor.go()
        if error := self.world.broken or actor.error:
            raise error
        self.world.promises.check(self.world)

    def up_to(self, actor: Actor, call: str) -> Actor:
        """Let it go on until this is its next call."""
        while not actor.next_call.startswith(call):
            assert not actor.ended, f"{actor.name} ended before it came to {call!r}"
            self.go(actor, 1)
        return actor

    def passes(self, seconds: float) -> None:
        self.world.seconds += seconds

    def after_a_pass(self, operator: Actor) -> Actor:
        """Let an operator go on until it begins its next pass."""
        done = self.user.status
        while self.user.status is done:
            assert not operator.ended, f"{operator.name} makes no further pass"
            self.go(operator, 1)
        return operator

    def fail(self, actor: Actor, fate: str = "the request is lost") -> None:
        """Its next call fails."""
        self.world.troubled.add(actor.name)
        actor.fate = fate
        self.go(actor, 1)

    def damage(self, step: int) -> Saved:
        saved = self.saved(step)
        self.world.damage(f"{saved.path}/__0_0.distcp", b"?")
        return saved

    def wants(self, **fields: Any) -> None:
        """The user edits the spec, and an operator passes."""
        self.user.says(**fields)
        self.operate()

    def rolls_back(self, step: int, request: str) -> None:
        rollback = {"request": request, "to": "Snapshot", "snapshot": self.saved(step).id}
        self.wants(restore={"rollback": rollback})

    def _cast(self, kind: str, body: Any) -> Actor:
        self.names += 1
        return launch(self.world, f"{kind} {self.names}", body)


Story: TypeAlias = Callable[[Stage], None]


def a_snapshot_in_use_outlives_the_request_it_was_restored_for(stage: Stage) -> None:
    stage.train(3)
    stage.rolls_back(100, "first")
    trainer = stage.up_to(stage.trainer(1), "upload")
    stage.user.says(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.rolls_back(200, "second")
    assert stage.saved(100).state == "Live"
    assert stage.saved(300).state == "Live"
    assert stage.outcome(trainer).saved == [stage.saved(200).id]


def the_newest_verified_snapshot_stays_while_the_newer_one_cannot_be_checked(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(1)
    stage.operate()
    stage.train(1)
    operator = stage.operator(passes=1)
    stage.fail(stage.up_to(operator, f"get {stage.saved(200).path}/manifest.json"))
    stage.go(operator)
    assert stage.saved(100).state == "Live"
    stage.operate()
    assert stage.saved(100).state == "Purged"


def a_replaced_snapshot_stays_until_its_replacement_is_verified(stage: Stage) -> None:
    stage.wants(overwritePolicy="Replace", retention={"keepLast": 2, "gracePeriod": "0s"})
    stage.train(2)
    stage.operate()
    replaced = stage.saved(200)
    stage.train([Save(0, "Manual"), Save()])
    replacement = stage.saved(200)
    assert replacement.replaces == replaced.id
    operator = stage.operator(passes=2)
    for _ in range(2):
        stage.fail(stage.up_to(operator, f"get {replacement.path}/manifest.json"))
    stage.go(operator)
    assert (stage.saved(300).verified, replacement.verified, replaced.state) == (True, False, "Live")
    stage.operate()
    assert (replacement.verified, replaced.state) == (True, "Purged")


def of_two_publishers_the_one_that_writes_last_corrects_itself(stage: Stage) -> None:
    stage.wants(overwritePolicy="Replace")
    slow = stage.up_to(stage.trainer(1), "create step-100/.metadata")
    stage.train([Save(0, "Manual")])
    assert stage.shown(100) == stage.saved(100).id
    stage.go(slow)
    assert stage.shown(100) == stage.saved(100).id


def pointers_follow_a_rollback_to_another_branch(stage: Stage) -> None:
    stage.train(3)
    first_branch = stage.saved(200).id
    stage.rolls_back(100, "first")
    stage.train(1)
    operator = stage.after_a_pass(stage.operator(passes=2))
    assert stage.shown(200) == stage.saved(200).id != first_branch
    stage.rolls_back(300, "second")
    stage.train(1)
    stage.go(operator)
    assert stage.shown(200) == first_branch


def an_attempt_that_commits_while_it_is_taken_for_dead_is_not_fenced(stage: Stage) -> None:
    stage.wants()
    trainer = stage.trainer(3)
    stage.fail(stage.up_to(trainer, "upload"), "the reply is lost")
    stage.fail(stage.up_to(trainer, "delete step-"))  # so that something is left to collect
    stage.up_to(trainer, "create _log")  # the commit of its second save
    stage.passes(25 * HOUR)
    operator = stage.up_to(stage.operator(passes=1), "create _log")
    assert operator.next_call == trainer.next_call
    stage.go(trainer, 1)
    stage.go(operator)
    assert stage.outcome(trainer).error is None
    assert len(stage.outcomes[trainer].saved) == 2


def nothing_is_deleted_a_moment_before_its_grace_period_ends(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "1h"})
    stage.train(2)
    stage.operate()
    assert stage.saved(100).state == "Retired"
    stage.passes(HOUR - 3)
    stage.operate()
    assert stage.saved(100).state == "Retired"
    stage.passes(4)
    stage.operate()
    assert stage.saved(100).state == "Purged"


def a_purge_ends_where_the_run_changes_hands(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(2)
    stage.up_to(stage.operator(passes=1), f"delete {stage.saved(100).path}").kill()
    assert stage.saved(100).state == "Purging"
    slow = stage.up_to(stage.up_to(stage.operator(passes=1), "get _log/"), "put _probe/")  # about to go on with it
    stage.other.says(storage={"url": "s3://bucket/run", "takeOverFrom": str(OWNER)})
    taking = stage.up_to(stage.operator(user=stage.other, passes=1), f"delete {stage.saved(100).path}")
    stage.go(slow)
    assert stage.saved(100).state == "Purging"
    stage.go(taking)
    assert stage.saved(100).state == "Purged"
