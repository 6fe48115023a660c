"""Runs that version 0.1.0 left in a bucket, read, collected, deleted and continued. See golden/generate.py."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import CollectOrphans, End, Erase, PublishPointer, Purge
from checkpoint_sidecar.attempt.directory_save import DirectorySave
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.belongings import Foreign, survey
from checkpoint_sidecar.core.log import SnapshotRetired
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.engine.pointer import publish
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.builders import OWNER
from support.trainers import Trainer

GOLDEN = Path(__file__).parent / "golden"
LEFTOVER = "step-300/0001-aaaaaaaa/__0_0.distcp"
REJECTED = "step-250/0001-bbbbbbbb/__0_0.distcp"
Bucket = Callable[[str], LocalStore]


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    def unpack(name: str) -> LocalStore:
        with tarfile.open(GOLDEN / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        return LocalStore(StoreSettings(f"file://{tmp_path / name}"))

    return unpack


def operator(store: LocalStore) -> RunStore:
    session = RunStore(StoreSettings(store.url), writer="operator test")
    session.probe()
    session.log.refresh()
    return session


def contents(store: LocalStore) -> dict[str, bytes]:
    return {info.key: store.get(info.key, max_bytes=1 << 20).data for info in store.list()}


def live(trainer: Trainer) -> list[int]:
    return [s.step for s in trainer.run.snapshots.values() if s.live]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("training", [100, 200, 300]),
        ("rolled-back", [100, 200, 300]),
        ("compacted", [100, 200]),
        ("nested", [100, 200, 300]),
    ],
)
def test_a_run_is_read_and_continued(name: str, steps: list[int], bucket: Bucket) -> None:
    store = bucket(name)
    trainer = Trainer(store)
    assert live(trainer) == steps
    for snapshot in trainer.run.snapshots.values():
        if snapshot.live:
            verify_snapshot(store, snapshot.commit, level="Checksums")
    trainer.start().commit(900)
    run = RunLog(store, writer="reader").refresh()
    assert (run.newest, run.identified) == (trainer.run.newest, True)
    assert layout.parse_save_folder(run.snapshots[run.newest or ""].commit.path).run == run.short_identity


def test_what_the_log_names_is_collected_and_what_nothing_proves_stays_and_is_reported(bucket: Bucket) -> None:
    store = bucket("training")
    before = contents(store)
    session = operator(store)
    (outcome,) = carry_out([CollectOrphans(2)], session, owner=OWNER)
    assert outcome.error is None
    gone = set(before) - set(contents(store))
    assert REJECTED in gone
    assert {key.rpartition("/")[0] for key in gone} == {REJECTED.rpartition("/")[0]}
    assert contents(store)[LEFTOVER] == before[LEFTOVER]
    assert ("step-300/0001-aaaaaaaa/", Foreign.UNPROVEN) in survey(session.log.run, session.keys()).foreign


def test_snapshots_are_purged_with_their_pointers(bucket: Bucket) -> None:
    store = bucket("training")
    session = operator(store)
    first = next(iter(session.log.run.snapshots.values()))
    session.log.append(lambda _: SnapshotRetired(first.id, ("NoRuleKeepsIt",)))
    for snapshot in session.log.run.snapshots.values():
        if snapshot.live:
            assert carry_out([PublishPointer(snapshot.step, snapshot.id)], session, owner=OWNER)[0].error is None
    assert carry_out([PublishPointer(100, "")], session, owner=OWNER)[0].error is None
    assert store.stat("step-100/.metadata") is None
    carry_out([Purge(first.id)], session, owner=OWNER)
    state = session.log.run.snapshots[first.id].state
    assert state in (SnapshotState.RETIRED, SnapshotState.PURGED)


@pytest.mark.parametrize("name", ["training", "being-deleted", "nested", "rolled-back", "compacted"])
def test_a_run_is_deleted_and_nothing_of_others(name: str, bucket: Bucket) -> None:
    store = bucket(name)
    before = contents(store)
    session = operator(store)
    ours = {s.commit.path for s in session.log.run.snapshots.values()}
    outcomes = carry_out([End(), Erase()], session, owner=OWNER)
    assert [outcome.error for outcome in outcomes] == [None, None]
    after = contents(store)
    run = session.log.refresh()
    assert run.erased
    assert not [key for key in after if key.rpartition("/")[0] in ours]
    others = {k: v for k, v in before.items() if k == LEFTOVER or k.startswith(("step-100/_log/", "step-700/"))}
    assert after.items() >= others.items()
    Trainer(store).start().commit(100 if name != "nested" else 400)


def test_a_directory_of_the_drop_in_is_read_and_saved_over(bucket: Bucket) -> None:
    store = bucket("drop-in")
    run = RunLog(store, writer="reader").refresh()
    old = [s for s in run.snapshots.values() if s.live]
    assert len(old) == 1
    publish(store, RunLog(store, writer="test"), None)
    target = DirectorySave(store, overwrite=True, world_size=1)
    save = target.begin()
    assert save.folder.run == run.short_identity
    kept = {key.rpartition("/")[0] for key in contents(store) if layout.save_folder_of(key)}
    assert kept == {old[0].commit.path}, "what the save before had replaced is gone"
