"""Snapshots of a folder that any trainer writes: everything in it comes back, and nothing else."""

from __future__ import annotations

import datetime as dt
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from checkpoint_cli.verbs import Door
from checkpoint_sidecar import (
    Checkpointer,
    ConfigurationError,
    CorruptSnapshotError,
    FileSnapshots,
    IncompatibleSnapshotError,
    RestoreError,
    RestoreInterrupted,
    Terminated,
    TrainerFolder,
    copy_run,
    export,
    fetch_files,
    load,
    open_run,
)
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import StateCopyError
from checkpoint_sidecar.core.folder_index import FolderIndex
from checkpoint_sidecar.core.log import AttemptStarted, RestoreFinished, SnapshotCommitted
from checkpoint_sidecar.core.orphans import orphaned
from checkpoint_sidecar.core.policy import RestorePolicy
from checkpoint_sidecar.engine.folders import placing, staging
from checkpoint_sidecar.engine.verify import verify_snapshot
from support.commands import Program
from training.checkpointer_runs import EVERY_STEP, NO_SCHEDULE, RunStorage, await_saves
from training.folder_trees import WORK, staged, tree, write

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@contextmanager
def opened(folder: Path | TrainerFolder, storage: RunStorage, **options: Any) -> Iterator[FileSnapshots]:
    with FileSnapshots(folder, storage.url, **({"save": NO_SCHEDULE} | options)) as snapshots:
        snapshots.restore()
        yield snapshots


def saved(folder: Path, storage: RunStorage, *steps: int) -> None:
    """Save checkpoints of one attempt."""
    with opened(folder, storage) as snapshots:
        for step in steps:
            write(folder, step)
            snapshots.save(step, wait=True)


def restored(folder: Path | TrainerFolder, storage: RunStorage, **options: Any) -> Any:
    with FileSnapshots(folder, storage.url, **options) as snapshots:
        return snapshots.restore()


def index_of(storage: RunStorage, step: int) -> FolderIndex:
    key = f"{storage.snapshot(step).commit.path}/files.json"
    return msgspec.json.decode(storage.store.get(key, max_bytes=1 << 20).data, type=FolderIndex)


def test_everything_in_the_folder_comes_back_to_an_empty_one(storage: RunStorage, folder: Path) -> None:
    saved(folder, storage, 1, 2)
    before = tree(folder)
    shutil.rmtree(folder)
    found = restored(folder, storage)
    assert (found.step, found.missing, found.unused) == (2, (), ())
    assert tree(folder) == before
    assert not staged(folder)
    (outcome,) = storage.bodies(RestoreFinished)
    assert (outcome.restored, outcome.verified) == (True, "Checksums"), "all of it was compared"


def test_a_fresh_run_returns_none_and_leaves_the_folder_as_it_is(storage: RunStorage, folder: Path) -> None:
    write(folder, 7)
    before = tree(folder)
    assert restored(folder, storage) is None
    assert tree(folder) == before


def test_a_start_that_is_to_be_fresh_sets_the_files_aside(storage: RunStorage, folder: Path) -> None:
    saved(folder, storage, 1)
    write(folder, 2)
    storage.configure(restore=RestorePolicy(mode="None"))
    assert restored(folder, storage) is None
    assert tree(folder) == {}
    assert (folder / WORK / "set-aside" / "checkpoint-2" / "weights.bin").exists()


def test_a_restart_removes_what_the_snapshot_has_and_sets_the_half_written_aside(
    storage: RunStorage, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(folder, storage, 1)
    before = tree(folder)
    write(folder, 2)
    (folder / "checkpoint-1" / "weights.bin").write_bytes(b"changed")
    with caplog.at_level(logging.WARNING):
        restored(folder, storage)
    assert tree(folder) == before
    aside = {
        str(each.relative_to(folder / WORK / "set-aside")) for each in (folder / WORK / "set-aside").rglob("*.bin")
    }
    assert aside == {"checkpoint-1/weights.bin", "checkpoint-2/weights.bin"}
    assert "that the latest snapshot does not have were set aside in" in caplog.text
    restored(folder, storage)
    assert not (folder / WORK / "set-aside").exists(), "nothing is set aside that the snapshot has"


def test_a_folder_of_names_with_a_prefix_excludes_all_others() -> None:
    names = (
        "c",
        "chess",
        "checkpoint",
        "checkpoint_9",
        "runs",
        "a/checkpoint-1",
        "checkpoint-9",
        "checkpoint-9/a",
        "checkpoint-",
    )
    folder = TrainerFolder.with_prefix("/output", "checkpoint-")
    assert [name for name in names if not folder.excludes(name)] == ["checkpoint-9", "checkpoint-9/a", "checkpoint-"]


def test_excluded_files_are_neither_saved_nor_touched(storage: RunStorage, folder: Path) -> None:
    with opened(TrainerFolder(folder, exclude=["runs/", "*.log"]), storage) as snapshots:
        write(folder, 1)
        (folder / "runs").mkdir()
        (folder / "runs" / "events").write_text("1")
        (folder / "checkpoint-1" / "train.log").write_text("1")
        snapshots.save(1, wait=True)
    assert not [entry.path for entry in index_of(storage, 1).entries if "events" in entry.path or "log" in entry.path]
    (folder / "runs" / "events").write_text("2")
    restored(TrainerFolder(folder, exclude=["runs/", "*.log"]), storage)
    assert (folder / "runs" / "events").read_text() == "2"
    assert (folder / "checkpoint-1" / "train.log").read_text() == "1"
    assert (folder / "checkpoint-1" / "weights.bin").exists()


def test_a_part_of_the_folder_can_be_saved(storage: RunStorage, folder: Path) -> None:
    with opened(folder, storage) as snapshots:
        write(folder, 1)
        write(folder, 2)
        snapshots.save(2, paths=["checkpoint-2/", "latest"], wait=True)
    assert {entry.path.split("/")[0] for entry in index_of(storage, 2).entries} == {"checkpoint-2", "latest"}


@pytest.mark.parametrize("path", ["../outside", "/etc", "checkpoint-1/missing", "link/inside"])
def test_paths_that_are_not_below_the_folder_are_refused(storage: RunStorage, folder: Path, path: str) -> None:
    with opened(folder, storage) as snapshots:
        write(folder, 1)
        (folder / "link").symlink_to("checkpoint-1")
        with pytest.raises((ConfigurationError, StateCopyError)):
            snapshots.save(1, paths=[path], wait=True)
    assert storage.bodies(SnapshotCommitted) == []


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "neither a file nor a folder nor a link"),
        (lambda place: place.symlink_to("/etc/passwd"), "outside of the folder"),
        (lambda place: place.symlink_to("../../secret"), "outside of the folder"),
        (lambda place: os.mkdir(os.fsencode(place) + b"\xff"), "not valid UTF-8"),
    ],
    ids=["pipe", "absolute-link", "link-up", "name"],
)
def test_what_cannot_be_stored_is_refused_by_name(
    storage: RunStorage, folder: Path, make: Callable[[Path], object], why: str
) -> None:
    with opened(folder, storage) as snapshots:
        write(folder, 1)
        make(folder / "checkpoint-1" / "odd-one")
        with pytest.raises(ConfigurationError, match=f"odd-one.*{why}.*exclude"):
            snapshots.save(1, wait=True)
    assert storage.bodies(SnapshotCommitted) == []
    assert not staged(folder)


def test_an_absolute_link_into_the_folder_moves_with_it(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    with opened(folder, storage) as snapshots:
        write(folder, 1)
        (folder / "last").symlink_to(folder / "checkpoint-1")
        snapshots.save(1, wait=True)
    restored(tmp_path / "elsewhere", storage)
    assert os.readlink(tmp_path / "elsewhere" / "last") == "checkpoint-1"


def test_the_trainer_may_delete_and_replace_files_while_they_are_uploaded(
    storage: RunStorage, folder: Path, on_upload: Any, tmp_path: Path
) -> None:
    let_go = threading.Event()
    on_upload(lambda key: let_go.wait(10) if key.endswith(".files") else None)
    with opened(folder, storage) as snapshots:
        write(folder, 1)
        before = tree(folder)
        snapshots.save(1)
        shutil.rmtree(folder / "checkpoint-1")
        write(folder, 2)
        (folder / "latest").write_text("rewritten in place, as small files may be")
        let_go.set()
        snapshots.wait()
    restored(tmp_path / "elsewhere", storage)
    assert tree(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("change", ["written", "grown", "shortened"])
def test_a_large_file_that_changes_in_place_fails_the_save(
    storage: RunStorage, folder: Path, on_upload: Any, change: str
) -> None:
    let_go = threading.Event()
    on_upload(lambda key: let_go.wait(10) if key.endswith(".files") else None)
    with opened(folder, storage) as snapshots:
        write(folder, 1)
        snapshots.save(1)
        with (folder / "checkpoint-1" / "weights.bin").open("r+b") as file:
            if change == "shortened":
                file.truncate(10)
            else:
                file.seek(0, os.SEEK_END if change == "grown" else os.SEEK_SET)
                file.write(b"torn")
        let_go.set()
        with pytest.raises(StateCopyError, match=r"weights\.bin: it changed while it was saved.*exclude"):
            snapshots.wait()
    assert storage.bodies(SnapshotCommitted) == []
    assert not list(storage.store.list("step-")), "nothing is left"
    assert not staged(folder)


def test_a_folder_without_hard_links_is_copied(
    storage: RunStorage, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = os.link

    def no_links(source: Any, target: Any, **options: Any) -> None:
        if f"/{WORK}/" in str(target):
            raise PermissionError(1, "Operation not permitted")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", no_links)
    saved(folder, storage, 1)
    restored(tmp_path / "elsewhere", storage)
    assert tree(tmp_path / "elsewhere") == tree(folder)


def test_many_small_files_need_few_objects(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    with opened(folder, storage) as snapshots:
        for number in range(2000):
            place = folder / f"{number % 20}" / f"{number}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{number}" * 10)
        snapshots.save(1, wait=True)
    assert storage.snapshot(1).commit.files == 4
    restored(tmp_path / "elsewhere", storage)
    assert tree(tmp_path / "elsewhere") == tree(folder)


@pytest.mark.parametrize("name", ["files.json", "__0_0.files", "manifest.json"])
def test_a_damaged_snapshot_is_passed_over_and_the_folder_is_that_of_the_one_before(
    storage: RunStorage, folder: Path, tmp_path: Path, name: str
) -> None:
    saved(folder, storage, 1)
    before = tree(folder)
    saved(folder, storage, 2)
    storage.damage(2, name)
    found = restored(tmp_path / "elsewhere", storage)
    assert (found.step, len(found.skipped)) == (1, 1)
    assert tree(tmp_path / "elsewhere") == before
    assert not staged(tmp_path / "elsewhere")
    assert storage.snapshot(2).failures == 1


def test_the_files_of_a_snapshot_are_verified_like_all_others(storage: RunStorage, folder: Path) -> None:
    saved(folder, storage, 1)
    commit = storage.snapshot(1).commit
    assert verify_snapshot(storage.store, commit, level="Checksums") == commit.bytes
    storage.damage(1, "__0_0.files")
    with pytest.raises(Exception, match="CRC32C"):
        verify_snapshot(storage.store, commit, level="Checksums")


def test_a_full_disk_is_named_and_changes_nothing(
    storage: RunStorage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(folder, storage, 1)
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, 7)
    before = tree(elsewhere)
    monkeypatch.setattr(placing.IncomingFolder, "_free", lambda _: 1000)
    with pytest.raises(RestoreInterrupted, match=r"restore the files in .*1000 B are free.*Enlarge"):
        restored(elsewhere, storage)
    assert tree(elsewhere) == before
    monkeypatch.undo()
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RestoreInterrupted, match=r"No space left on device.*Enlarge"):
        restored(elsewhere, storage)
    assert tree(elsewhere) == before
    assert not staged(elsewhere)
    assert storage.snapshot(1).failures == 0


def rewrite_index(storage: RunStorage, step: int, change: Callable[[Any], None]) -> None:
    """Put another index into a committed snapshot, as the owner of a bucket could."""
    commit, store = storage.snapshot(step).commit, storage.store
    key = f"{commit.path}/files.json"
    index = msgspec.json.decode(store.get(key, max_bytes=1 << 20).data)
    change(index)
    store.put(key, msgspec.json.encode(index))


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../outside", "object": "__0_0.files", "size": 1},
        {"path": "/tmp/outside", "object": "__0_0.files", "size": 1},
        {"path": "a/../../outside"},
        {"path": ".checkpoint-operator/x"},
        {"path": "link", "kind": "Link", "target": "/etc"},
        {"path": "link", "kind": "Link", "target": "a/../../etc"},
        {"path": "latest/below-a-file"},
        {"path": "beyond", "object": "__0_0.files", "size": 1 << 40},
    ],
    ids=lambda entry: entry["path"] + entry.get("target", ""),
)
def test_a_strangers_index_cannot_write_outside_of_the_folder(
    storage: RunStorage, folder: Path, tmp_path: Path, entry: dict[str, Any]
) -> None:
    saved(folder, storage, 1)
    storage.configure(restore=RestorePolicy(verify="None"))
    rewrite_index(storage, 1, lambda index: index["entries"].append(entry))
    with pytest.raises(IncompatibleSnapshotError):
        _unverified(tmp_path / "elsewhere", storage)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["checkpoints", "elsewhere", "run"]
    assert tree(tmp_path / "elsewhere") == {}


def _unverified(folder: Path, storage: RunStorage) -> None:
    # The stranger's manifest agrees with the stranger's index.
    commit, store = storage.snapshot(1).commit, storage.store
    size = len(store.get(f"{commit.path}/files.json", max_bytes=1 << 20).data)

    def decoded(data: bytes, **_: Any) -> manifests.Manifest:
        found = msgspec.json.decode(data, type=manifests.Manifest)
        files = [msgspec.structs.replace(f, size=size) if f.name == "files.json" else f for f in found.files]
        return msgspec.structs.replace(found, files=tuple(files))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "decode", decoded)
        restored(folder, storage)


def test_links_in_the_folder_are_not_followed_by_a_restore(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    saved(folder, storage, 1)
    before = tree(folder)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "weights.bin").write_text("keep")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "checkpoint-1").symlink_to(precious)
    restored(elsewhere, storage)
    assert tree(elsewhere) == before
    assert tree(precious) == {"weights.bin": b"keep", "weights.bin mode": 0o644}


def test_a_work_folder_that_is_a_link_is_refused(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / WORK).symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="it is not a folder"):
        restored(folder, storage)


def test_leftovers_of_a_killed_process_are_removed(storage: RunStorage, folder: Path) -> None:
    for name in ("staged-1", "incoming-1"):
        (folder / WORK / name).mkdir(parents=True)
        (folder / WORK / name / "0").write_text("half")
    restored(folder, storage)
    assert not staged(folder)


# Without training


def test_the_files_of_a_snapshot_are_copied_into_an_empty_folder(
    storage: RunStorage, folder: Path, tmp_path: Path
) -> None:
    saved(folder, storage, 1)
    before = tree(folder)
    saved(folder, storage, 2)
    fetched = fetch_files(f"{storage.url}@1", tmp_path / "fetched")
    assert (fetched.step, fetched.files) == (1, 6)
    assert tree(tmp_path / "fetched") == before
    assert not (tmp_path / "fetched" / WORK).exists()
    with pytest.raises(ConfigurationError, match="it is not empty"):
        fetch_files(storage.url, tmp_path / "fetched")
    storage.damage(2, "__0_0.files")
    with pytest.raises(CorruptSnapshotError):
        fetch_files(storage.url, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
    assert len(storage.bodies(AttemptStarted)) == 2, "no attempt was started"


def test_a_copy_of_a_run_has_the_files(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    saved(folder, storage, 1)
    before = tree(folder)
    assert len(list(copy_run(open_run(storage.url), open_run(f"file://{tmp_path}/copy")))) == 1
    restored(tmp_path / "elsewhere", RunStorage(f"file://{tmp_path}/copy"))
    assert tree(tmp_path / "elsewhere") == before


def test_a_deleted_snapshot_leaves_nothing_and_so_do_the_orphans_of_a_killed_save(
    storage: RunStorage, folder: Path
) -> None:
    saved(folder, storage, 1, 2)
    open_run(storage.url).remove(1)
    assert not list(storage.store.list("step-1/"))
    commit, store = storage.snapshot(2).commit, storage.store
    left = commit.path.replace(commit.snapshot.split("-")[2], "a" * 8)
    for name in ("__0_0.files", "files.json"):
        store.put(f"{left}/{name}", b"half")
    restored(folder, storage)
    listed = {info.key: info.modified for info in store.list()}
    later = max(listed.values()) + dt.timedelta(days=2)
    assert set(orphaned(storage.run, listed, now=later)) == {f"{left}/__0_0.files", f"{left}/files.json"}


def test_what_reads_tensors_says_that_there_are_files(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    saved(folder, storage, 1)
    with pytest.raises(IncompatibleSnapshotError, match="fetch_files"):
        load(storage.url, into=torch.nn.Linear(4, 4))
    with pytest.raises(ConfigurationError, match="fetch_files"):
        export(storage.url, str(tmp_path / "exported"))
    with Checkpointer({"model": torch.nn.Linear(4, 4)}, f"{storage.url}-tensors") as checkpointer:
        checkpointer.restore()
        checkpointer.save(1)
    with pytest.raises(ConfigurationError, match=r"it has no files.*load and export"):
        fetch_files(f"{storage.url}-tensors", tmp_path / "fetched")


def test_the_tree_of_a_snapshot_lists_its_files(
    storage: RunStorage, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(folder, storage, 1)
    shown = Program(Door.BUCKET, capsys)("tree", storage.url, "--depth", "1")
    assert "files/checkpoint-1/weights.bin" in shown.output


def test_versions_that_do_not_know_files_refuse_the_snapshot(storage: RunStorage, folder: Path) -> None:
    saved(folder, storage, 1)
    data = storage.store.get(f"{storage.snapshot(1).commit.path}/manifest.json", max_bytes=1 << 20).data
    assert msgspec.json.decode(data)["format"] == 2


# When to save


def test_a_snapshot_is_due_by_the_schedule(storage: RunStorage, folder: Path) -> None:
    with opened(folder, storage, save=EVERY_STEP) as snapshots:
        assert snapshots.step(1, {"loss": 0.5})
        write(folder, 1)
        snapshots.save(1, {"loss": 0.5})
        snapshots.wait()
        assert not snapshots.should_stop
    assert storage.snapshot(1).commit.metrics == {"loss": "0.5"}


def test_a_trainer_with_a_schedule_of_its_own_may_save_whenever_it_likes(storage: RunStorage, folder: Path) -> None:
    with opened(folder, storage) as snapshots:
        for step in (1, 2, 3):
            assert not snapshots.step(step)
            write(folder, step)
            snapshots.save(step)
            snapshots.save(step)  # again: it is saved already
    assert [commit.step for commit in storage.bodies(SnapshotCommitted)] == [1, 2, 3]


def test_sigterm_asks_for_a_last_checkpoint_and_ends_after_its_commit(storage: RunStorage, folder: Path) -> None:
    with pytest.raises(Terminated) as ended, opened(folder, storage) as snapshots:  # noqa: PT012
        assert not snapshots.step(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert snapshots.step(2)
        assert snapshots.should_stop
        write(folder, 2)
        snapshots.save(2)
    assert (ended.value.code, ended.value.step, ended.value.saved_step) == (143, 2, 2)
    assert [(commit.step, commit.trigger) for commit in storage.bodies(SnapshotCommitted)] == [(2, "Termination")]


def test_sigterm_ends_at_once_if_the_step_is_saved(storage: RunStorage, folder: Path) -> None:
    with pytest.raises(Terminated), opened(folder, storage) as snapshots:  # noqa: PT012
        write(folder, 1)
        snapshots.save(1, wait=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        snapshots.step(1)
    await_saves()
    assert [commit.step for commit in storage.bodies(SnapshotCommitted)] == [1]


# Together with tensors


def test_files_and_tensors_are_one_commit(storage: RunStorage, folder: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    with Checkpointer({"model": model}, storage.url, files=folder) as checkpointer:
        checkpointer.restore()
        write(folder, 1)
        checkpointer.save(1)
    other = torch.nn.Linear(4, 4)
    with Checkpointer({"model": other}, storage.url, files=tmp_path / "elsewhere") as checkpointer:
        found = checkpointer.restore()
    assert found is not None
    assert (found.missing, found.unused) == ((), ())
    assert torch.equal(model.weight, other.weight)
    assert tree(tmp_path / "elsewhere") == tree(folder)


def test_files_that_are_not_asked_for_are_reported(storage: RunStorage, folder: Path) -> None:
    model = torch.nn.Linear(4, 4)
    with Checkpointer({"model": model}, storage.url, files=folder) as checkpointer:
        checkpointer.restore()
        write(folder, 1)
        checkpointer.save(1)
    with Checkpointer({"model": model}, storage.url) as checkpointer:
        found = checkpointer.restore()
    assert found is not None
    assert found.unused == ("files of a folder",)


def test_a_snapshot_without_files_is_refused_before_the_folder_changes(storage: RunStorage, folder: Path) -> None:
    with Checkpointer({"model": torch.nn.Linear(4, 4)}, storage.url) as checkpointer:
        checkpointer.restore()
        checkpointer.save(1)
    write(folder, 7)
    before = tree(folder)
    with pytest.raises((IncompatibleSnapshotError, RestoreError), match="files of a folder"):
        restored(folder, storage)
    assert tree(folder) == before


def test_staging_waits_for_the_clock_of_the_files(folder: Path) -> None:
    """A change right after staging must get another time, or it would not be noticed."""
    write(folder, 1)
    place = TrainerFolder(folder)
    place.open()
    kept = staging.stage(place, None, {})
    with (folder / "checkpoint-1" / "weights.bin").open("r+b") as file:
        file.write(b"x")
    reader = staging.StagedReader(place.work / kept.name, place.root, kept)
    with pytest.raises(StateCopyError, match="it changed"):
        reader.check("checkpoint-1/weights.bin")
