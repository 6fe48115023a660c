"""Other people's data under the prefix of a run: whatever collects and deletes, it stays byte for byte.

Hypothesis makes up what lies there: runs inside the run, checkpoints of the drop-in and of torch itself, unfinished
saves of version 0.1.0, notes in every folder. Real trainers, the real operator's plans and the real drop-in act on it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.decide.plan import store_actions
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import CollectLast, CollectOrphans, Configure, End, Erase, PublishPointer
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.belongings import survey
from checkpoint_sidecar.core.errors import CheckpointError, ForeignObjectError
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import RunAdopted
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore
from support.builders import OBJECT_UID, OTHER_OWNER, OWNER
from support.observations import changed, observed, spec_of
from support.others import WAYS, drop_in, stock
from support.trainers import Trainer

STEPS = st.sampled_from([100, 200, 300, 400])
GRACE = 3600.0


OTHERS = st.tuples(
    st.sampled_from(WAYS),
    st.sampled_from(["step-100/", "step-200/", "step-300/", "step-7/", "nested/", "step-100/deeper/", "a b/"]),
)


class World:
    """One bucket, its run, and writers outside the run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self.store = MemoryStore(clock=lambda: self.now)
        patch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: self.store)
        self.foreign: dict[str, bytes] = {}
        self.trainer = Trainer(self.store).start()
        policy = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=GRACE))
        self.act(Configure(OBJECT_UID, 1, policy))

    def contents(self) -> dict[str, bytes]:
        return {info.key: self.store.get(info.key, max_bytes=1 << 20).data for info in self.store.list()}

    def others(self, write: Callable[[Store, str], None], folder: str) -> None:
        """Write below the prefix as a writer outside the run."""
        before = self.contents()
        try:
            write(self.store, folder)
        except CheckpointError:
            return  # where a log of something else is
        after = self.contents()
        saved = [s.commit.path for s in self.trainer.run.snapshots.values() if s.live]
        for key, data in before.items():
            assert after.get(key) == data or (key.startswith(folder) and key.rpartition("/")[0] not in saved)
        written = {key: data for key, data in after.items() if before.get(key) != data}
        self.foreign = {key: data for key, data in self.foreign.items() if key in after} | written

    def save(self, step: int) -> None:
        if any(s.step == step for s in self.trainer.run.snapshots.values()):
            return
        # The snapshot stands even if another writer's pointer is in the way.
        with contextlib.suppress(ForeignObjectError):
            self.trainer.commit(step)

    def killed_in_a_save(self, step: int) -> None:
        run = self.trainer.run
        folder = SaveFolder(step, self.trainer.number, layout.new_nonce(), run.short_identity)
        self.store.put(f"{folder.path}/__0_0.distcp", b"half")
        self.trainer.start()

    def session(self) -> RunStore:
        session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
        session.probe()
        session.log.refresh()
        return session

    def act(self, *actions: object) -> list[object]:
        return [outcome.error for outcome in carry_out(actions, self.session(), owner=OWNER)]  # type: ignore[arg-type]

    def operate(self) -> None:
        """A pass of an operator that has just started, and everything that is due some hours later."""
        self.now += dt.timedelta(hours=2)
        session = self.session()
        shown: dict[int, str] = dict.fromkeys(survey(session.log.run, session.keys()).pointers, "?")
        seen = observed(None, retention={"keepLast": 1})
        for _ in range(12):
            run = session.log.run
            seen = changed(
                seen,
                checkpoint=replace(seen.checkpoint, generation=run.configured[1] if run.configured else 1),
                run=run,
                now=session.now(),
                policy=run.policy,
                pointers=shown,
                orphans_collected=run.highest_attempt,
            )
            planned = store_actions(seen)
            if not planned:
                break
            outcomes = carry_out(planned, session, owner=OWNER)
            for outcome in outcomes:
                if isinstance(outcome.action, PublishPointer):
                    shown[outcome.action.step] = outcome.action.snapshot
                    shown = {step: shows for step, shows in shown.items() if shows}
        run = self.trainer.run
        last = run.attempt.last_commit if run.attempt else ""
        self.act(CollectOrphans(run.highest_attempt), CollectLast(run.highest_attempt, last or ""))

    def is_deleted(self) -> None:
        self.act(End(), Erase())

    def check(self) -> None:
        there = self.contents()
        assert {key: there.get(key) for key in self.foreign} == self.foreign


ACTS = st.one_of(
    st.tuples(st.just(World.others), OTHERS),
    st.tuples(st.just(World.others), OTHERS),
    st.tuples(st.just(World.save), st.tuples(STEPS)),
    st.tuples(st.just(World.killed_in_a_save), st.tuples(STEPS)),
    st.tuples(st.just(World.operate), st.just(())),
)


@settings(
    max_examples=500 if os.environ.get("CHECKPOINT_FAULTS") == "long" else 25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(ACTS, min_size=3, max_size=12))
def test_whatever_the_run_did_not_write_is_byte_identical(
    acts: list[tuple[Callable[..., None], tuple[object, ...]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch)
        for act, arguments in acts:
            act(world, *arguments)
            world.check()
        world.operate()
        world.check()
        mine = {s.commit.path for s in world.trainer.run.snapshots.values()}
        world.is_deleted()
        world.check()
        left = world.contents()
        assert not [key for key in left if key.rpartition("/")[0] in mine and key not in world.foreign]
        again = Trainer(world.store).start()
        world.trainer = again
        world.save(100)
        world.operate()
        world.check()


def test_a_collection_that_goes_by_names_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world above is one in which the rule makes a difference."""
    world = World(monkeypatch)
    world.others(drop_in, "step-100/")
    world.others(stock, "step-300/")
    world.trainer.start()
    world.operate()
    world.check()
    assert len(world.foreign) > 8
    world.store.delete([next(iter(world.foreign))])
    with pytest.raises(AssertionError):
        world.check()


def test_another_owner_changes_nothing_about_what_is_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    identity = world.trainer.run.identity
    world.trainer.log.append(lambda run: RunAdopted(OTHER_OWNER, OWNER) if run.owner == OWNER else None)
    run: Run = world.trainer.run
    assert run.identity == identity
    assert spec_of().storage.url
