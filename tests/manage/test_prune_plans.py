"""The plan of a prune is what the prune then does, also where snapshots share files."""

from __future__ import annotations

import datetime as dt
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.core import removal
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.run import Snapshot, SnapshotState
from checkpoint_sidecar.core.shared_files import names_in
from checkpoint_sidecar.manage import removing
from checkpoint_sidecar.manage.stored_run import StoredRun
from doubles.memory import MemoryStore
from support.trainers import Trainer

FROZEN = {"__0_s0.distcp": bytes(5000), "__1_s0.distcp": bytes(6000)}
KEEP_ONE = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0))


def stored(run: StoredRun) -> dict[str, int]:
    """Size of each object of the saves, without manifests: what sizes count."""
    found = {info.key: info.size for info in run.store.list("step-") if info.key.count("/") == 2}
    return {key: size for key, size in found.items() if not key.endswith("manifest.json")}


def pruned_as_planned(run: StoredRun, **options: Any) -> set[str]:
    """Prune, compare what is gone with the plan, and return the steps of all snapshots with objects that are gone."""
    before, snapshots = stored(run), run.snapshots(all=True)
    planned = run.prune_plan(**options)
    assert stored(run) == before
    done = run.prune(**options)
    assert (done.retire, done.reinstate) == (planned.retire, planned.reinstate)
    assert (done.purge, done.release, done.bytes) == (planned.purge, planned.release, planned.bytes)
    assert (done.waits.keys(), done.blocked) == (planned.waits.keys(), planned.blocked)
    gone = {key: size for key, size in before.items() if key not in stored(run)}
    assert sum(gone.values()) == planned.bytes
    of = {each.commit.path: each for each in snapshots}
    touched = {of[key.rpartition("/")[0]].id for key in gone}
    assert touched <= {*planned.purge, *planned.release}
    for each in run.snapshots(all=True):
        assert (each.id in planned.purge) <= (each.state is SnapshotState.PURGED)
    return {f"{each.step}" for each in snapshots if each.id in touched}


class Scene:
    """Three snapshots of which the last two share files of the first one, and one that shares nothing."""

    def __init__(self) -> None:
        trainer = Trainer(MemoryStore()).start()
        self.first = trainer.commit(100, settled=FROZEN)
        self.second = trainer.commit(200, shared=dict.fromkeys(FROZEN, self.first))
        self.third = trainer.commit(300, shared={"__0_s0.distcp": self.first})
        self.last = trainer.commit(400)
        self.run = StoredRun(trainer.store)
        self.run.verify(400, checksums=True, record=True)

    def left(self) -> set[str]:
        return {key.rpartition("/")[2] for key in stored(self.run) if key.startswith(f"{self.first.commit.path}/")}


def test_a_plan_tells_what_purges_of_others_release() -> None:
    scene = Scene()
    scene.run.remove(100)
    assert scene.left() == {*FROZEN}
    scene.run.configure(KEEP_ONE)
    plan = scene.run.prune_plan(only={scene.second.id})
    assert (plan.purge, plan.release) == ((scene.second.id,), (scene.first.id,))
    assert plan.bytes == scene.second.own_bytes + 6000
    assert pruned_as_planned(scene.run, only={scene.second.id}) == {"100", "200"}
    assert scene.left() == {"__0_s0.distcp"}
    assert pruned_as_planned(scene.run) == {"100", "300"}
    assert scene.left() == set()


def test_a_snapshot_that_goes_with_all_that_share_it_leaves_nothing() -> None:
    scene = Scene()
    scene.run.configure(KEEP_ONE)
    plan = scene.run.prune_plan()
    assert (plan.purge, plan.release) == ((scene.first.id, scene.second.id, scene.third.id), ())
    assert pruned_as_planned(scene.run) == {"100", "200", "300"}
    assert scene.left() == set()


@pytest.mark.parametrize("policy", [Policy(), Policy(retention=RetentionPolicy(keep_last=1, dry_run=True))])
def test_what_nothing_needs_goes_also_without_a_policy(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.run.remove(100)
    with monkeypatch.context() as patched:
        patched.setattr(removing, "release", lambda *_, **__: ())  # as if each removal was killed before
        scene.run.remove(200)
        scene.run.remove(300)
    assert scene.left() == {*FROZEN}
    scene.run.configure(policy)
    assert scene.run.prune_plan().release == (scene.first.id,)
    assert pruned_as_planned(scene.run) == {"100"}
    assert scene.left() == set()
    assert scene.run.find(400).live


@st.composite
def runs(draw: st.DrawFn) -> StoredRun:
    """Runs in any stage: with snapshots that share, some removed, some of these left half way, and a policy."""
    trainer, kept = Trainer(MemoryStore()).start(), list[Snapshot]()
    for step in range(draw(st.integers(2, 6))):
        names = {name: draw(st.sampled_from([None, *kept])) for name in FROZEN}
        shared = {name: holder for name, holder in names.items() if holder is not None}
        own = {name: data for name, data in FROZEN.items() if name not in shared}
        found = trainer.commit(step, settled=own, shared=shared)
        kept += [found] if len(own) == len(FROZEN) else []
    run = StoredRun(trainer.store)
    run.verify(run.snapshots()[-1], checksums=draw(st.booleans()), record=True)
    for snapshot in draw(st.lists(st.sampled_from(run.snapshots()[:-1]), unique_by=lambda each: each.id, max_size=3)):
        how = draw(st.sampled_from(["remove", "retire", "start"]))
        if how == "remove":
            run.remove(snapshot.id, force=True)
            continue
        run.log.append(partial(removal.retire_for_removal, snapshot=snapshot.id))
        if how == "start":
            run.log.append(partial(removal.start_removal, snapshot=snapshot.id))
    retention = RetentionPolicy(
        keep_last=draw(st.integers(1, 3)), grace_seconds=draw(st.sampled_from([0, 3600])), dry_run=draw(st.booleans())
    )
    if draw(st.booleans()):
        run.configure(Policy(retention=retention))
    return run


@settings(max_examples=60, deadline=None)
@given(runs(), st.data())
def test_a_plan_is_what_is_then_done(run: StoredRun, data: st.DataObject) -> None:
    ids = [each.id for each in run.snapshots(all=True)]
    only = data.draw(st.none() | st.sets(st.sampled_from(ids)))
    pruned_as_planned(run, only=only)
    for each in run.snapshots():
        assert run.verify(each, checksums=True).passed
    needed = {f"{each.commit.path}/{name}" for each in run.snapshots(all=True) for name in names_in(each.kept)}
    purged = [each for each in run.snapshots(all=True) if each.state is SnapshotState.PURGED]
    assert {key for key in stored(run) if key.rpartition("/")[0] in {each.commit.path for each in purged}} <= needed
    assert run.prune_plan(now=dt.datetime.now(dt.UTC)).release == ()
