"""A copy is a run of its own: committed, verified, readable by everything, and never half there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar import ChangeRefusedError, CorruptSnapshotError, RunManagedError
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import RunConfigured
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.manage.copying import CopySettings, copy_run, plan_copy
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.local.adapter import LocalStore
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from support.trainers import Trainer


def trained(store: Store, *steps: int) -> tuple[Trainer, StoredRun]:
    trainer = Trainer(store).start()
    for step in steps:
        trainer.commit(step, metrics={"loss": f"0.{step}"})
    return trainer, StoredRun(store)


def copied(source: StoredRun, target: Store, selector: str | int = "", **settings: Any) -> list[int]:
    copies = copy_run(source, StoredRun(target), selector, settings=CopySettings(**settings))
    return [snapshot.step for snapshot in copies]


def test_a_copy_is_a_committed_verified_run_of_its_own(bucket: Store, tmp_path: Path) -> None:
    trainer, source = trained(bucket, 100, 200)
    trainer.start().commit(300, metrics={"loss": "0.3"})
    target = LocalStore(StoreSettings(tmp_path.as_uri()))

    assert copied(source, target) == [100, 200, 300]

    copy = StoredRun(target)
    assert [(s.step, s.verified, dict(s.commit.metrics)) for s in copy.snapshots()] == [
        (s.step, "Checksums", dict(s.commit.metrics)) for s in source.snapshots()
    ]
    assert copy.state.identity != source.state.identity
    assert all(copy.verify(each, checksums=True).passed for each in copy.snapshots())
    for old, new in zip(source.snapshots(), copy.snapshots(), strict=True):
        for name in ("__0_0.distcp", "__1_0.distcp", layout.METADATA_NAME):
            data = bucket.get(f"{old.commit.path}/{name}", max_bytes=1000).data
            assert target.get(f"{new.commit.path}/{name}", max_bytes=1000).data == data
        assert target.stat(layout.pointer_key(new.step)) is not None
    # Training continues in the copy as in any run.
    assert copy.owner is not None
    assert Trainer(target, copy.owner).start().run.attempts[2].restored == copy.find(300).id


def test_one_snapshot_is_copied_and_further_ones_are_added_later() -> None:
    trainer, source = trained(MemoryStore(), 100, 200)
    target = MemoryStore()
    assert copied(source, target, 200) == [200]
    assert copied(source, target, 200) == []
    trainer.commit(300)
    assert [each.step for each in plan_copy(source, StoredRun(target))] == [100, 300]
    assert copied(source, target) == [100, 300]
    assert copied(source, target) == []
    assert StoredRun(target).latest is not None


def test_what_retention_or_a_rollback_took_away_is_not_copied() -> None:
    trainer, source = trained(MemoryStore(), 100, 200, 300)
    source.remove(100)
    source.rollback(200)
    trainer.start().commit(250)
    target = MemoryStore()
    assert copied(source, target) == [200, 250]


class StopsError(Exception):
    """Stands for Ctrl-C, a kill or a store that fails."""


@pytest.mark.parametrize("pieces", range(6))
def test_an_interrupted_copy_commits_nothing_half_and_continues(pieces: int) -> None:
    _, source = trained(MemoryStore(), 100, 200)
    target = MemoryStore()
    seen: list[int] = []

    def stop(count: int) -> None:
        if len(seen) == pieces:
            raise StopsError
        seen.append(count)

    with pytest.raises(StopsError):
        copied(source, target, progress=stop)
    there = StoredRun(target)
    assert [each.step for each in there.snapshots()] == ([100] if pieces >= 3 else [])
    assert all(there.verify(each, checksums=True).passed for each in there.snapshots())
    assert copied(source, target) == [100, 200][len(there.snapshots()) :]
    there.refresh()
    assert [each.step for each in there.snapshots()] == [100, 200]
    assert {key.key.partition("/")[0] for key in target.list("step-")} == {"step-100", "step-200"}


def test_files_that_an_interrupted_copy_stored_are_compared_and_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = trained(MemoryStore(), 100)
    target = CountingStore(MemoryStore())
    with monkeypatch.context() as patch:
        patch.setattr("checkpoint_sidecar.manage.copying.write_object", interrupted)
        with pytest.raises(StopsError):
            copied(source, target)
    read = CountingStore(source.store)
    assert copied(StoredRun(read), target) == [100]
    assert not any(key.endswith(".distcp") for key in read.read), "their bytes were read from the copy"


def interrupted(*_: Any) -> None:
    raise StopsError


def test_damage_is_not_copied_and_a_damaged_file_of_a_half_made_copy_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    _, source = trained(store, 100, 200)
    key = f"{source.find(200).commit.path}/__0_0.distcp"
    store.corrupt(key, b"\1" + bytes(699))
    target = MemoryStore()
    with pytest.raises(CorruptSnapshotError, match=r"__0_0\.distcp"):
        copied(source, target)
    assert [each.step for each in StoredRun(target).snapshots(all=True)] == [100]

    store.corrupt(key, bytes(700))
    with monkeypatch.context() as patch:
        patch.setattr("checkpoint_sidecar.manage.copying.write_object", interrupted)
        with pytest.raises(StopsError):
            copied(source, target)
    (half,) = [info.key for info in target.list("step-200/") if info.key.endswith("__0_0.distcp")]
    target.corrupt(half, b"\1" + bytes(699))
    assert copied(source, target) == [200]
    assert StoredRun(target).verify(200, checksums=True).passed


def test_a_prefix_with_another_run_is_left_alone() -> None:
    _, source = trained(MemoryStore(), 100)
    other = MemoryStore()
    trained(other, 500)
    with pytest.raises(ChangeRefusedError, match="another run is there"):
        copied(source, other)
    assert [each.step for each in StoredRun(other).snapshots()] == [500]
    with pytest.raises(ChangeRefusedError, match="the same run"):
        copied(source, source.store)
    target = MemoryStore()
    copied(source, target)
    owner = StoredRun(target).owner
    assert owner is not None
    Trainer(target, owner).start()
    with pytest.raises(ChangeRefusedError, match="training has begun in the copy"):
        copied(source, target)


def test_a_prefix_that_an_operator_manages_takes_a_copy_only_on_request() -> None:
    _, source = trained(MemoryStore(), 100)
    target = MemoryStore()
    log = RunLog(target, writer="operator")
    Trainer(target)
    log.append(lambda _: RunConfigured("uid-of-a-checkpoint", 1, Policy()))
    with pytest.raises(RunManagedError):
        copied(source, target)
    assert copied(source, target, without_operator=True) == [100]


def test_a_snapshot_that_was_deleted_in_the_copy_is_not_copied_again() -> None:
    _, source = trained(MemoryStore(), 100, 200)
    target = MemoryStore()
    copied(source, target)
    StoredRun(target).remove(100)
    assert copied(source, target) == []
    assert StoredRun(target).find(100).state is SnapshotState.PURGED
