"""A process group that crashes while it starts or restores: the next one restores the same, and blames nothing."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import SnapshotRetired
from crashes import evidence
from crashes.conftest import LONG, SHARDING, Matrix, Trained
from crashes.points import MODES, Crash, Mode, Point, appended, quick_mode
from training.checkpointer_ranks import Job, run, same
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.distributed

OLDER, NEWEST, AFTERWARDS = 2, 4, 5
"""Steps of the snapshots, and to which the attempt after the crash trains."""

ABSENT = ["changes of snapshots", "evidence against undamaged snapshots", "unknown keys", "gaps in the log"]


def around(name: str, verb: str, key: str, *, rank: int = 0) -> list[Point]:
    return [Point(f"{when} {name}", verb, key, when, rank=rank) for when in ("before", "after")]  # type: ignore[arg-type]


def around_append(entry: str, *, nth: int = 1) -> list[Point]:
    return [appended(entry, "before", nth=nth), appended(entry, "after", nth=nth)]


STARTING = [
    *around("the probe of the store", "put_if_absent", "^_probe/"),
    *around_append("RunClaimed"),
    *around_append("AttemptStarted"),
]
LOADING = [
    *around_append("AttemptStarted"),
    *around_append("RestoreStarted"),
    *around("the manifest is read", "get", "/manifest[.]json$"),
    *around(".metadata is read, for all ranks", "read_into", "/[.]metadata$"),
    *around("data is read by rank 0", "read_into", "[.]distcp$"),
    *around("data is read by rank 1", "read_into", "[.]distcp$", rank=1),
    *around_append("RestoreFinished"),
]
FALLING_BACK = [
    *around_append("RestoreFinished"),
    *around_append("RestoreStarted", nth=2),
    *around_append("RestoreFinished", nth=2),
]
LAST_RESORT = around_append("SnapshotReinstated")


def cases(points: Iterable[Point]) -> list[object]:
    """Every mode at every point; in the quick profile one."""
    found: list[object] = []
    for number, point in enumerate(points):
        modes = MODES if LONG else (quick_mode(point, number),)
        found += [pytest.param(point, mode, id=f"{mode} {point}") for mode in modes]
    return found


@pytest.fixture
def storage(trained: Callable[[int], Trained], tmp_path: Path) -> RunStorage:
    """A run with two snapshots."""
    shutil.copytree(trained(NEWEST).folder / "run", tmp_path / "run")
    return RunStorage(f"file://{tmp_path}/run")


@pytest.fixture
def crash_and_resume(
    trained: Callable[[int], Trained], matrix: Matrix, tmp_path: Path
) -> Callable[[str, RunStorage, Crash, int], None]:
    """An attempt that crashes, and one after it that must restore a step and end as if nothing had happened."""

    def act(path: str, storage: RunStorage, crash: Crash, restores: int) -> None:
        job = partial(Job, storage.url, sharding=SHARDING, options={"takeover_seconds": 0.0})
        before, saved = evidence.contents(storage.store, "step-"), evidence.saved(storage.store)
        crashed = run(job(total=restores, every_steps=None, wrap_store=crash.wrap), tmp_path)
        assert crash.reached
        check_ends([outcome.code for outcome in crashed], crash)
        assert evidence.contents(storage.store, "step-") == before

        resumed = run(job(total=AFTERWARDS), tmp_path)
        assert [outcome.steps[0] for outcome in resumed] == [restores + 1] * 2
        assert all(map(same, resumed, trained(AFTERWARDS).outcomes))
        assert saved.items() <= evidence.saved(storage.store).items()
        matrix.add(path, crash, restored=restores, absent=ABSENT)

    return act


def check_ends(codes: list[int | None], crash: Crash) -> None:
    if crash.mode.startswith("kill"):
        victim = int(crash.mode[-1])
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] not in (0, None, -signal.SIGKILL), "it hung, or noticed nothing"
    elif crash.mode == "exception" and crash.point.when == "after" and crash.point.entry:
        assert codes == [0, 0], "an append whose reply was lost is settled by reading back"
    else:
        assert all(code not in (0, None, -signal.SIGKILL) for code in codes), "one hung, or noticed nothing"


@pytest.mark.parametrize(("point", "mode"), cases(STARTING))
def test_a_run_whose_first_start_crashed_begins_at_step_0(
    point: Point,
    mode: Mode,
    crash_at: Callable[[Point, Mode], Crash],
    crash_and_resume: Callable[[str, RunStorage, Crash, int], None],
    tmp_path: Path,
) -> None:
    storage = RunStorage(f"file://{tmp_path}/run")
    crash_and_resume("start", storage, crash_at(point, mode), 0)
    evidence.check_nothing_is_out_of_place(storage.store, evidence.replayed(storage.store))


@pytest.mark.parametrize(("point", "mode"), cases(LOADING))
def test_a_crash_while_restoring_is_no_evidence_against_the_snapshot(
    point: Point,
    mode: Mode,
    storage: RunStorage,
    crash_at: Callable[[Point, Mode], Crash],
    crash_and_resume: Callable[[str, RunStorage, Crash, int], None],
) -> None:
    crash_and_resume("restore", storage, crash_at(point, mode), NEWEST)
    found = evidence.replayed(storage.store)
    assert [snapshot.failures for snapshot in found.snapshots.values()] == [0, 0, 0]
    evidence.check_nothing_is_out_of_place(storage.store, found)


@pytest.mark.parametrize(("point", "mode"), cases(FALLING_BACK))
def test_a_crash_on_the_way_to_an_older_snapshot_does_not_lead_further_back(
    point: Point,
    mode: Mode,
    storage: RunStorage,
    crash_at: Callable[[Point, Mode], Crash],
    crash_and_resume: Callable[[str, RunStorage, Crash, int], None],
) -> None:
    storage.damage(NEWEST, "__1_0.distcp")
    damaged = storage.snapshot(NEWEST).id
    crash_and_resume("fall back", storage, crash_at(point, mode), OLDER)
    found = evidence.replayed(storage.store)
    assert {s.id for s in found.snapshots.values() if s.failures} == {damaged}


@pytest.mark.parametrize(("point", "mode"), cases(LAST_RESORT))
def test_a_crash_around_the_return_of_a_retired_snapshot_does_not_lose_it(
    point: Point,
    mode: Mode,
    storage: RunStorage,
    crash_at: Callable[[Point, Mode], Crash],
    crash_and_resume: Callable[[str, RunStorage, Crash, int], None],
) -> None:
    retired = storage.snapshot(OLDER).id
    storage.append(SnapshotRetired(retired, ("NoRuleKeepsIt",)))
    storage.damage(NEWEST, "__1_0.distcp")
    crash_and_resume("reinstate", storage, crash_at(point, mode), OLDER)
    assert evidence.replayed(storage.store).snapshots[retired].live
