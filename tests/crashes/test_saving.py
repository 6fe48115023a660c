"""A process group that crashes anywhere in a save: the next one continues from the last commit, and no more is left."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar.core.log import RestoreFinished
from checkpoint_sidecar.store.access import StoreSettings
from crashes import evidence
from crashes.conftest import LONG, SHARDING, Matrix, Trained
from crashes.operating import operate
from crashes.points import MODES, Crash, Mode, Point, appended, quick_mode
from training.checkpointer_ranks import Job, run, same
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.distributed

ABSENT = [
    "orphans after collection",
    "half snapshots",
    "half checkpoints for torch",
    "unknown keys",
    "gaps in the log",
    "changes of older snapshots",
]
"""What ``evidence`` looks for."""

COLLECTING: dict[str, Any] = {"retention": {"keepLast": 10, "gracePeriod": "0s"}}

BEFORE, CRASHED, AFTERWARDS = 2, 4, 5
"""Steps: saved by an attempt before, being saved when the crash happens, trained to by the attempt afterwards."""


def around(name: str, *, rank: int = 0) -> list[Point]:
    """Before, in the middle of and after the upload of a file of the save."""
    key = f"^step-0*{CRASHED}/.*/{name.replace('.', '[.]')}$"
    return [
        Point(f"{when} the upload of {name}", "upload", key, when, rank=rank) for when in ("before", "during", "after")
    ]


# Ranks upload together; what follows is rank 0's alone, which needs the others no more to commit.
UPLOADING = [*around("__0_0.distcp"), *around("__1_0.distcp", rank=1)]
COMMITTING = [appended("SnapshotCommitted", "before")]
"""After a failure here nothing is deleted: it may yet be committed."""
DESCRIBING = [*around(".metadata"), *around("stock.metadata"), *around("manifest.json"), *COMMITTING]
COMMITTED = [
    appended("SnapshotCommitted", "after"),
    Point("before the stock pointer is published", "put_if_absent", f"^step-0*{CRASHED}/[.]metadata$", "before"),
    Point("after the stock pointer is published", "put_if_absent", f"^step-0*{CRASHED}/[.]metadata$", "after"),
]


def expected(point: Point, mode: Mode) -> int:
    """The step that the next process group restores."""
    committed = point in COMMITTED or (point in DESCRIBING and mode == "kill rank 1")
    # After an unexpected exception of the client the outcome is unknown, so the commit is retried.
    committed |= point in COMMITTING and mode == "bug"
    return CRASHED if committed else BEFORE


def cases() -> list[object]:
    """Every mode at every point; in the quick profile one, and all around the commit."""
    found: list[object] = []
    for number, point in enumerate([*UPLOADING, *DESCRIBING, *COMMITTED]):
        modes = MODES if LONG else (quick_mode(point, number),)
        if point.entry:
            modes = MODES
        found += [pytest.param(point, mode, id=f"{mode} {point}") for mode in modes]
    return found


@pytest.mark.parametrize(("point", "mode"), cases())
def test_a_crash_in_a_save_leaves_the_last_commit_and_nothing_else(
    point: Point,
    mode: Mode,
    trained: Callable[[int], Trained],
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    crash = crash_at(point, mode)
    shutil.copytree(trained(BEFORE).folder / "run", tmp_path / "run")
    storage = RunStorage(f"file://{tmp_path}/run")
    older = evidence.contents(storage.store, "step-")
    job = partial(Job, storage.url, sharding=SHARDING, options={"takeover_seconds": 0.0})

    crashed = run(job(total=CRASHED, wrap_store=crash.wrap, on_failure="Raise"), tmp_path)
    assert crash.reached
    check_ends([outcome.code for outcome in crashed], mode, saved=expected(point, mode) == CRASHED)
    found = evidence.replayed(storage.store)
    assert evidence.live_steps(found)[-1] == expected(point, mode)
    assert older.items() <= evidence.contents(storage.store, "step-").items()
    evidence.check_nothing_is_out_of_place(storage.store, found)
    left = evidence.orphans(storage.store, found)
    if not mode.startswith("kill") and point not in COMMITTING:
        assert not left, "ranks that live clean up after themselves"

    resumed = run(job(total=AFTERWARDS), tmp_path)
    assert [outcome.steps[0] for outcome in resumed] == [expected(point, mode) + 1] * 2
    assert all(map(same, resumed, trained(AFTERWARDS).outcomes))
    found = evidence.replayed(storage.store)
    assert evidence.live_steps(found) == [BEFORE, CRASHED, AFTERWARDS]
    assert [outcome.restored for outcome in storage.bodies(RestoreFinished)] == [True, True]
    assert older.items() <= evidence.contents(storage.store, "step-").items()
    evidence.check_nothing_is_out_of_place(storage.store, found)
    assert evidence.orphans(storage.store, found) == left
    if left:
        collect(storage)
    matrix.add("save", crash, restored=expected(point, mode), absent=ABSENT, orphans=len(left))


def collect(storage: RunStorage) -> None:
    """What is left of the save that crashed goes, and nothing else."""
    before = evidence.contents(storage.store, "step-")
    orphans = evidence.orphans(storage.store, storage.run)
    assert operate(StoreSettings(storage.url), **COLLECTING) == 0
    after = evidence.contents(storage.store, "step-")
    assert {key: data for key, data in before.items() if key not in orphans} == after


def check_ends(codes: list[int | None], mode: Mode, *, saved: bool) -> None:
    """Check that the killed rank is dead, and that the others fail exactly if something is wrong."""
    if mode.startswith("kill"):
        victim = int(mode[-1])
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] not in (0, None, -signal.SIGKILL), "it hung, or noticed nothing"
    elif saved:
        assert codes == [0, 0], "an outcome that was settled, or a pointer that is missing, is no failure of the save"
    else:
        assert all(code not in (0, None, -signal.SIGKILL) for code in codes), "one hung, or noticed nothing"
