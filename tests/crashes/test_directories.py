"""A drop-in save of a DCP directory that crashes: our reader and torch's find a whole save, and the next one works."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from crashes import directories, evidence
from crashes.conftest import LONG, Matrix
from crashes.points import Crash, Mode, Point, appended, quick_mode
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.distributed

REPLACED, OLD, NEW, NEXT = 1, 2, 3, 4
"""Values saved one over the other: retired but not purged yet, live, crashing, and after the crash."""

ABSENT = [
    "half snapshots",
    "half checkpoints for torch",
    "unknown keys",
    "gaps in the log",
    "orphans after the next save",
]

CLEARING = [
    appended("PurgeStarted", "before"),
    appended("PurgeStarted", "after"),
    Point("during the deletion of the replaced files", "delete", "[.]distcp$", "during"),
    Point("before the deletion of the replaced manifest", "delete", "manifest[.]json$", "before"),
    appended("SnapshotPurged", "before"),
    appended("SnapshotPurged", "after"),
]
UPLOADING = [
    Point("during the upload of __0_0.distcp", "upload", "__0_0[.]distcp$", "during"),
    Point("during the upload of __1_0.distcp", "upload", "__1_0[.]distcp$", "during", rank=1),
]
DESCRIBING = [
    Point("after the upload of .metadata", "upload", "/[.]metadata$", "after"),
    Point("after the upload of manifest.json", "upload", "manifest[.]json$", "after"),
    appended("SnapshotCommitted", "before"),
]
COMMITTED = [
    appended("SnapshotCommitted", "after"),
    appended("SnapshotVerified", "before"),
    appended("SnapshotVerified", "after"),
    Point("before the stock .metadata is published", "put", "^[.]metadata$", "before"),
]
PUBLISHED = [
    Point("after the stock .metadata is published", "put", "^[.]metadata$", "after"),
    appended("SnapshotRetired", "before"),
    appended("SnapshotRetired", "after"),
]
POINTS = [
    appended("AttemptStarted", "before"),
    appended("AttemptStarted", "after"),
    *CLEARING,
    *UPLOADING,
    *DESCRIBING,
    *COMMITTED,
    *PUBLISHED,
]


def expected(crash: Crash) -> tuple[int, int]:
    """What our reader and torch's own find."""
    point, mode = crash.point, crash.mode
    settled = mode == "exception" and point.when == "after" and point.entry
    if point in PUBLISHED or settled:
        return NEW, NEW
    if mode == "exception" and point in COMMITTED:
        return NEW, NEW  # the pointer is tried once more
    if mode == "exception" and point in CLEARING:
        return NEW, NEW  # what is replaced may stay until the next save
    if mode == "kill rank 1" and point in (*DESCRIBING, *COMMITTED):
        return NEW, NEW  # its data is stored; rank 0 needs it no more
    return (NEW, OLD) if point in COMMITTED else (OLD, OLD)


def cases() -> list[object]:
    """Every mode at every point; in the quick profile one."""
    found: list[object] = []
    for number, point in enumerate(POINTS):
        modes: tuple[Mode, ...] = ("kill rank 0", "kill rank 1", "exception") if LONG else (quick_mode(point, number),)
        found += [pytest.param(point, mode, id=f"{mode} {point}") for mode in modes]
    return found


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved-twice") / "directory"
    assert directories.save(path, REPLACED, OLD) == [0, 0]
    return path


@pytest.mark.parametrize(("point", "mode"), cases())
def test_a_directory_whose_save_crashed_holds_one_whole_checkpoint_and_takes_the_next(
    point: Point,
    mode: Mode,
    saved_twice: Path,
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    crash = crash_at(point, mode)
    path = tmp_path / "directory"
    shutil.copytree(saved_twice, path)
    storage = RunStorage(f"file://{path}")
    old = storage.run.newest
    assert old is not None
    old_folder = storage.run.snapshots[old].commit.path
    before = evidence.contents(storage.store, f"{old_folder}/")

    codes = directories.save(path, NEW, crash=crash)
    assert crash.reached
    if mode.startswith("kill"):
        assert codes[int(mode[-1])] == -signal.SIGKILL
        assert codes[1 - int(mode[-1])] not in (None, -signal.SIGKILL), "it hung"
    else:
        assert codes in ([0, 0], [1, 1]), "the ranks disagree on how it ended"
    assert evidence.contents(storage.store, f"{old_folder}/") == before
    evidence.check_nothing_is_out_of_place(storage.store, evidence.replayed(storage.store))

    assert directories.load_and_save(path, NEXT) == [expected(crash), (NEXT, NEXT)]
    found = evidence.replayed(storage.store)
    evidence.check_nothing_is_out_of_place(storage.store, found)
    assert not evidence.orphans(storage.store, found)
    ours, torchs = expected(crash)
    names = {OLD: "the old checkpoint", NEW: "the new checkpoint"}
    restored = names[ours] if ours == torchs else f"{names[ours]}, torch {names[torchs]}"
    matrix.add("drop-in save", crash, restored=restored, absent=ABSENT)
