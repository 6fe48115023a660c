"""An operator that crashes while it retires or purges: training continues, and the next operator finishes the work."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import StoreSettings
from crashes import evidence
from crashes.conftest import LONG, SHARDING, Matrix, Trained
from crashes.operating import operate
from crashes.points import Crash, Mode, Point, appended
from training.checkpointer_ranks import Job, run, same
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.distributed

DOOMED, NEWEST, AFTERWARDS = 2, 4, 5
"""Steps: the snapshot that the policy wants gone, the one it keeps, and where the attempt after the crash ends."""

KEEP_ALL: dict[str, Any] = {"retention": {"keepLast": 10, "gracePeriod": "0s"}}
KEEP_ONE: dict[str, Any] = {"retention": {"keepLast": 1, "gracePeriod": "0s"}}

ABSENT = ["half snapshots", "half checkpoints for torch", "unknown keys", "gaps in the log", "orphans"]


def around_append(entry: str, *, nth: int = 1) -> list[Point]:
    return [appended(entry, "before", nth=nth), appended(entry, "after", nth=nth)]


def deleted(what: str, key: str, *moments: str) -> list[Point]:
    return [Point(f"{when} the deletion of {what}", "delete", key, when) for when in moments]  # type: ignore[arg-type]


UP_TO_PURGING = [
    *around_append("RunConfigured"),
    *around_append("SnapshotVerified"),
    *around_append("SnapshotVerified", nth=2),
    *around_append("SnapshotRetired"),
    appended("PurgeStarted", "before"),
]
PURGING = [
    appended("PurgeStarted", "after"),
    *deleted("the stock pointer", f"^step-0*{DOOMED}/[.]metadata$", "before", "after"),
    *deleted("the files", "[.]distcp$", "before", "during", "after"),
    *deleted("the manifest", "manifest[.]json$", "before", "after"),
    *around_append("SnapshotPurged"),
]
MODES: tuple[Mode, ...] = ("kill rank 0", "exception", "bug") if LONG else ("kill rank 0",)


@pytest.fixture
def storage(trained: Callable[[int], Trained], tmp_path: Path) -> RunStorage:
    """A run with two snapshots."""
    shutil.copytree(trained(NEWEST).folder / "run", tmp_path / "run")
    return RunStorage(f"file://{tmp_path}/run")


def crash_the_operator(storage: RunStorage, crash: Crash, **spec: Any) -> None:
    code = operate(StoreSettings(storage.url), crash, **(spec or KEEP_ONE))
    assert crash.reached
    if crash.mode.startswith("kill"):
        assert code == -signal.SIGKILL
    else:
        settled = crash.mode == "exception" and crash.point.when == "after" and crash.point.entry
        assert code == (0 if settled else 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", [*UP_TO_PURGING, *PURGING], ids=str)
def test_training_and_the_next_operator_continue_after_an_operator_that_crashed(
    point: Point,
    mode: Mode,
    storage: RunStorage,
    trained: Callable[[int], Trained],
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    crash = crash_at(point, mode)
    newest = storage.snapshot(NEWEST).commit.path
    kept = {key: data for key, data in evidence.saved(storage.store).items() if key.startswith(f"{newest}/")}
    crash_the_operator(storage, crash)
    found = evidence.replayed(storage.store)
    if point in UP_TO_PURGING and not (mode == "exception" and point.when == "after"):
        assert len(evidence.saved(storage.store)) == 2 * len(kept), "something was deleted before it was announced"
    evidence.check_nothing_is_out_of_place(storage.store, found)

    job = Job(storage.url, AFTERWARDS, sharding=SHARDING, options={"takeover_seconds": 0.0})
    resumed = run(job, tmp_path)
    assert [outcome.steps for outcome in resumed] == [(AFTERWARDS,)] * 2
    assert all(map(same, resumed, trained(AFTERWARDS).outcomes))
    assert kept.items() <= evidence.saved(storage.store).items()

    assert operate(StoreSettings(storage.url), **KEEP_ONE) == 0
    found = evidence.replayed(storage.store)
    states = [(snapshot.step, snapshot.state) for snapshot in found.snapshots.values()]
    purged = SnapshotState.PURGED
    assert states == [(DOOMED, purged), (NEWEST, purged), (AFTERWARDS, SnapshotState.LIVE)]
    evidence.check_nothing_is_out_of_place(storage.store, found)
    (left,) = {key.partition("/")[0] for key in evidence.contents(storage.store, "step-")}
    assert left == layout.pointer_key(AFTERWARDS).partition("/")[0]
    matrix.add("retire and purge", crash, restored=NEWEST, absent=ABSENT)


@pytest.mark.parametrize("point", [*UP_TO_PURGING[-3:], *PURGING[:1], *PURGING[-1:]], ids=str)
def test_a_retired_snapshot_comes_back_when_the_newest_proves_damaged_and_one_being_purged_never_does(
    point: Point,
    storage: RunStorage,
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    crash = crash_at(point, "kill rank 0")
    crash_the_operator(storage, crash)
    storage.damage(NEWEST, "__1_0.distcp")
    job = partial(Job, storage.url, sharding=SHARDING, options={"takeover_seconds": 0.0})
    resumed = run(job(total=AFTERWARDS), tmp_path)
    if point in PURGING:
        assert [outcome.error and outcome.error[0] for outcome in resumed] == ["RestoreError"] * 2
        assert [outcome.steps for outcome in resumed] == [(), ()], "nothing ever starts at step 0 by itself"
    else:
        assert [outcome.steps[0] for outcome in resumed] == [DOOMED + 1] * 2
    restored = "refused" if point in PURGING else DOOMED
    matrix.add("retire and purge, then the newest is damaged", crash, restored=restored, absent=["a start at step 0"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", deleted("orphans", "aaaaaaaa-", "before", "during", "after"), ids=str)
def test_a_collection_of_orphans_that_crashed_is_ended_by_the_next(
    point: Point,
    mode: Mode,
    storage: RunStorage,
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    crash = crash_at(point, mode)
    for rank in range(2):
        storage.store.put(
            f"{SaveFolder(AFTERWARDS, 1, 'aaaaaaaa', storage.run.short_identity).path}/__{rank}_0.distcp", b"half"
        )
    run(Job(storage.url, AFTERWARDS, sharding=SHARDING, options={"takeover_seconds": 0.0}), tmp_path)
    kept = {key: data for key, data in evidence.contents(storage.store, "step-").items() if "aaaaaaaa" not in key}
    crash_the_operator(storage, crash, **KEEP_ALL)
    evidence.check_nothing_is_out_of_place(storage.store, evidence.replayed(storage.store))
    assert operate(StoreSettings(storage.url), **KEEP_ALL) == 0
    assert evidence.contents(storage.store, "step-") == kept
    resumed = run(Job(storage.url, AFTERWARDS + 1, sharding=SHARDING), tmp_path)
    assert [outcome.steps for outcome in resumed] == [(AFTERWARDS + 1,)] * 2
    matrix.add("collect orphans", crash, restored=AFTERWARDS, absent=ABSENT)


GIVEN_UP = appended("RunAdopted", "after")
DELETING = [
    *deleted("the stock pointers", f"^step-0*{DOOMED}/[.]metadata$", "before", "after"),
    *deleted("the files", "[.]distcp$", "before", "during", "after"),
    *deleted("the log", "^_log/0*1[.]json$", "before"),
]
DELETED = deleted("the log", "^_log/0*1[.]json$", "during", "after")
"""All data is gone by then, and the tombstone stands: the next run may begin after it."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", [appended("RunAdopted", "before"), GIVEN_UP, *DELETING, *DELETED], ids=str)
def test_the_next_operator_ends_a_deletion_that_crashed_and_no_attempt_trains_on_what_is_left(
    point: Point,
    mode: Mode,
    storage: RunStorage,
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    crash = crash_at(point, mode)
    crash_the_operator(storage, crash, deletionPolicy="Delete")
    job = Job(storage.url, AFTERWARDS, sharding=SHARDING, options={"takeover_seconds": 0.0})
    restored: object = "refused"
    if point in (GIVEN_UP, *DELETING):
        refused = {"PrefixClaimedError", "LogError"}
        before = evidence.contents(storage.store)
        assert {outcome.error and outcome.error[0] for outcome in run(job, tmp_path)} <= refused
        assert evidence.contents(storage.store) == before
    elif point in DELETED:
        assert [outcome.steps for outcome in run(job, tmp_path)] == [tuple(range(1, AFTERWARDS + 1))] * 2
        restored = "nothing: a new run"
    else:
        assert [outcome.steps for outcome in run(job, tmp_path)] == [(AFTERWARDS,)] * 2
        restored = NEWEST
    assert operate(StoreSettings(storage.url), deletionPolicy="Delete") == 0
    (tombstone,) = evidence.contents(storage.store)
    assert layout.log_number(tombstone) == storage.run.head
    matrix.add("delete the run", crash, restored=restored, absent=["a start from half a run", "objects of the run"])
