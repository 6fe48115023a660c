"""Stories told by hand, on the machine's stage: cases that chance meets too rarely, step by step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import LogMissingError, LogReplacedError, PrefixClaimedError
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.policy import OverwritePolicy
from model.actors import Outcome, Save, launch, trainer
from model.ledger import Ledger, Saved
from model.operators import User, operator
from model.turns import Actor
from model.world import CHANGED, URL, World, in_world
from support.builders import OTHER_OWNER, OWNER
from support.others import drop_in, nested_run, note, old_leftover, stock

ALL = 2000
HOUR = 3600.0


class Stage:
    """A world, its users, and the actors of one story."""

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
        self,
        saves: int | Sequence[Save] = 0,
        *,
        owner: Owner = OWNER,
        overwrite: OverwritePolicy = "Never",
        floor: int = 0,
    ) -> Actor:
        """A trainer that has not made a call yet."""
        planned = [Save()] * saves if isinstance(saves, int) else saves
        outcome = Outcome()
        body = trainer(self.world, outcome, planned, owner=owner, overwrite=overwrite, floor=floor)
        actor = self._cast("trainer", body)
        self.outcomes[actor] = outcome
        return actor

    def train(self, saves: int | Sequence[Save] = 0, **options: Any) -> Outcome:
        """A trainer from its start to its end."""
        return self.outcome(self.trainer(saves, **options))

    def outcome(self, actor: Actor) -> Outcome:
        """Let a trainer run to its end, and return its outcome."""
        self.go(actor)
        return self.outcomes[actor]

    def operator(self, *, user: User | None = None, passes: int = 3, reads_back: bool = False) -> Actor:
        body = operator(self.world, user or self.user, passes, patient=True, reads_back=reads_back)
        return self._cast("operator", body)

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
        """Let it run until this is its next call."""
        while not actor.next_call.startswith(call):
            assert not actor.ended, f"{actor.name} ended before it came to {call!r}"
            self.go(actor, 1)
        return actor

    def until(self, step: int, state: str, actor: Actor) -> Actor:
        """Let it run until the newest snapshot of a step is in this state."""
        while self.saved(step).state != state:
            assert not actor.ended, f"{actor.name} ended, and step {step} is not {state}"
            self.go(actor, 1)
        return actor

    def passes(self, seconds: float) -> None:
        self.world.seconds += seconds

    def after_a_pass(self, operator: Actor, user: User | None = None) -> Actor:
        """Let an operator run until it begins its next pass."""
        user = user or self.user
        done = user.status
        while user.status is done:
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

    def rot(self, step: int) -> str:
        """Damage that no size shows; returns the key."""
        key = f"{self.saved(step).path}/__0_0.distcp"
        found = self.world.store.stat(key)
        assert found is not None
        self.world.damage(key, b"?" * found.size)
        return key

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


def of_two_operators_that_remove_one_pointer_neither_fails(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "1h"})
    stage.train(2)
    slow = stage.up_to(stage.until(100, "Retired", stage.operator(passes=1)), "read step-100/.metadata")
    stage.operate()
    assert stage.world.store.stat(layout.pointer_key(100)) is None
    stage.go(slow)  # an operator that fails without a cause breaks P7
    assert stage.saved(100).state == "Retired"


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


def _only_the_new_owner_ends_the_purge_of_100(stage: Stage, former: Actor) -> None:
    stage.other.takes_over(OWNER, stage.world)
    taking = stage.up_to(stage.operator(user=stage.other, passes=1), f"delete {stage.saved(100).path}")
    stage.go(former)
    assert stage.saved(100).state == "Purging"
    stage.go(taking)
    assert stage.saved(100).state == "Purged"


def a_purge_ends_where_the_run_changes_hands(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(2)
    stage.up_to(stage.operator(passes=1), f"delete {stage.saved(100).path}").kill()
    assert stage.saved(100).state == "Purging"
    slow = stage.up_to(stage.up_to(stage.operator(passes=1), "get _log/"), "put _probe/")  # about to continue the purge
    _only_the_new_owner_ends_the_purge_of_100(stage, slow)


def a_purge_ends_where_its_operator_learns_of_the_change_of_hands(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(2)
    slow = stage.until(100, "Purging", stage.operator(passes=1))
    stage.up_to(slow, "stat step-100/.metadata")  # it has checked the owner, and reads the log again after this
    _only_the_new_owner_ends_the_purge_of_100(stage, slow)


def no_stock_pointer_shows_what_is_being_deleted(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(2)
    operator = stage.up_to(stage.operator(passes=1), "delete step-100/.metadata")
    stage.fail(operator)
    stage.up_to(operator, f"delete {stage.saved(100).path}")
    assert stage.world.store.stat(layout.pointer_key(100)) is None


def nothing_is_deleted_early_by_a_clock_that_was_set_back(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "1h"})
    stage.train(2)
    stage.operate()
    assert stage.saved(100).state == "Retired"
    stage.world.jump(2 * HOUR)
    operator = stage.up_to(stage.operator(passes=1), "list _log-compacted/")  # it has read the clock
    stage.world.jump(-2 * HOUR)
    stage.go(operator)
    assert stage.saved(100).state == "Retired"


def a_prefix_that_was_emptied_is_not_a_new_run(stage: Stage) -> None:
    stage.wants()
    stage.train(1)
    operator = stage.after_a_pass(stage.operator(passes=3))
    stage.world.damage(f"{stage.saved(100).path}/manifest.json", None)
    stage.world.take_away("")
    stage.world.troubled.add(operator.name)
    stage.go(operator)  # it runs on
    stage.operate()  # another one starts
    assert isinstance(stage.train(1, floor=stage.user.status["logSequence"]).error, LogMissingError)
    assert list(stage.world.store.list()) == []
    stalled = next(c for c in stage.user.status["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "LogMissing")


def only_a_marker_tells_that_a_log_is_gone(stage: Stage) -> None:
    stage.up_to(stage.trainer(1), "upload").kill()
    stage.world.take_away(layout.LOG_FOLDER)
    there = [info.key for info in stage.world.store.list()]
    assert isinstance(stage.train(1).error, LogMissingError)
    assert [info.key for info in stage.world.store.list()] == there == [layout.MARKER_KEY]


def each_request_to_take_a_run_over_acts_once_any_number_of_times(stage: Stage) -> None:
    stage.wants()
    stage.train(1)
    for _ in range(3):
        for asking, holder in ((stage.other, OWNER), (stage.user, OTHER_OWNER)):
            asking.says(storage={"url": URL})
            operator = stage.after_a_pass(stage.operator(user=asking, passes=3), asking)
            asking.takes_over(holder, stage.world)
            stage.go(operator)
            assert stage.ledger.owner == str(asking.owner)
            for user in (stage.user, stage.other):  # both still say so
                stage.operate(user=user)
            assert stage.ledger.owner == str(asking.owner)


def what_others_wrote_outlives_the_run_and_its_deletion(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(1)
    places = ((drop_in, "step-300/"), (nested_run, "step-300/deeper/"), (nested_run, "nested/"), (stock, "step-400/"))
    for write, place in (*places, (old_leftover, "step-500/"), (note, f"{stage.saved(100).path}/")):
        stage.world.others(functools.partial(write, folder=place))
    stage.train(4)
    stage.passes(2 * HOUR)
    stage.operate()
    assert stage.saved(100).state == "Purged"
    for _ in range(2):
        stage.train(1)
        stage.passes(2 * HOUR)
        stage.operate()
    stage.user.deletes(stage.world)
    stage.operate(passes=8)
    assert stage.user.released
    left = {info.key for info in stage.world.store.list()}
    assert left - stage.world.promises.foreign.keys() == {layout.log_key(stage.world.promises.tombstone)}


def a_deletion_that_was_interrupted_is_ended_before_the_next_run_begins(stage: Stage) -> None:
    stage.wants()
    stage.train(2)
    stage.user.deletes(stage.world)
    stage.up_to(stage.operator(), "delete step-200/0").kill()
    assert isinstance(stage.train(1).error, PrefixClaimedError)
    stage.operate(passes=8)
    assert stage.user.released
    stage.user.creates()
    outcome = stage.train(1)
    assert outcome.anew
    stage.operate()
    assert stage.train().restored == outcome.saved[0]
    assert stage.ledger.attempts.keys() == {1, 2}


def a_log_that_is_gone_is_written_no_more(stage: Stage) -> None:
    trainer = stage.up_to(stage.trainer(2), "upload step-200")
    log = stage.world.take_away(layout.LOG_FOLDER)
    stage.world.promises.lost = stage.world.promises.events
    assert isinstance(stage.outcome(trainer).error, LogReplacedError)
    stage.operate()
    assert isinstance(stage.train(1).error, LogMissingError)
    assert [key for key in stage.world.take_away("") if key.startswith("_log")] == []
    assert len(log) == 4


def a_start_whose_log_vanishes_does_not_begin_at_step_0(stage: Stage) -> None:
    paused = stage.up_to(stage.trainer(), "get _log/00000000000000000004")  # it takes its number, and stops
    stage.train(1)
    stage.world.take_away(layout.LOG_FOLDER)
    stage.world.promises.lost = stage.world.promises.events
    outcome = stage.outcome(paused)
    assert isinstance(outcome.error, LogReplacedError)
    assert not outcome.anew


def one_bad_transfer_is_no_evidence(stage: Stage) -> None:
    stage.train(1)
    operator = stage.up_to(stage.operator(reads_back=True), f"read {stage.saved(100).path}/__0_0.distcp")
    operator.fate = CHANGED
    stage.go(operator)
    assert (stage.saved(100).failures, stage.saved(100).compared) == (0, True)


def two_operators_that_see_one_damage_count_it_once(stage: Stage) -> None:
    stage.train(2)
    stage.operate()
    key = stage.rot(200)
    looking = [stage.up_to(stage.operator(reads_back=True), f"read {key}") for _ in range(2)]
    for each in looking:
        stage.go(each)
    assert stage.saved(200).failures == 1


def an_operator_rests_between_two_looks_at_damage(stage: Stage) -> None:
    stage.train(2)
    stage.rot(200)
    stage.operate(reads_back=True, passes=8)
    assert stage.saved(200).failures == 1
    stage.passes(HOUR)
    stage.operate(reads_back=True)
    assert stage.ledger.quarantined(stage.saved(200))


def a_second_look_clears_what_is_whole_after_all(stage: Stage) -> None:
    stage.train(2)
    stage.operate(reads_back=True, passes=5)
    assert stage.saved(200).compared
    stage.damage(200)
    stage.train()
    assert stage.saved(200).failures == 1
    stage.world.repair(stage.saved(200).id, stage.saved(200).path)
    stage.operate(reads_back=True)
    assert stage.saved(200).failures == 0


def nothing_goes_before_one_that_stays_was_read_back(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "0s"})
    stage.train(2)
    stage.operate(reads_back=True, passes=1)
    assert (stage.saved(200).verified, stage.saved(200).compared, stage.saved(100).state) == (True, False, "Retired")
    stage.operate(reads_back=True)
    assert (stage.saved(200).compared, stage.saved(100).state) == (True, "Purged")


def what_is_released_from_quarantine_has_to_prove_itself_again(stage: Stage) -> None:
    stage.train(2)
    stage.operate()
    stage.damage(200)
    for _ in range(2):
        stage.train()
    assert stage.ledger.quarantined(stage.saved(200))
    stage.user.releases[stage.saved(200).id] = "release-1"
    stage.go(stage.up_to(stage.operator(passes=1), "create _log"), 1)
    assert (stage.saved(200).failures, stage.saved(200).verified) == (0, False)
