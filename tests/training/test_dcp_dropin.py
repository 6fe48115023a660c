"""The drop-in: existing DCP code, with its arguments, on a directory that holds one checkpoint at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from checkpoint_sidecar.attempt import directory_save
from checkpoint_sidecar.attempt.directory_save import DirectorySave
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    CorruptSnapshotError,
    DeletionRefusedError,
    FencedError,
    PrefixClaimedError,
    RestoreError,
    StoreError,
)
from checkpoint_sidecar.core.layout import save_folder_of
from checkpoint_sidecar.core.log import Owner, RunClaimed, SnapshotRetired
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.run import Run, SnapshotState
from checkpoint_sidecar.engine.verify import check_sizes
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from doubles.memory import MemoryStore
from localcluster.objectstore import ObjectStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:Detected an existing checkpoint"
)


def save(path: Path | str, value: float, **options: Any) -> None:
    with raising_ours("save"):
        dcp.save({"x": torch.full((4,), float(value))}, storage_writer=CheckpointWriter(path, **options))


def load(path: Path | str, **options: Any) -> float:
    state = {"x": torch.zeros(4)}
    with raising_ours("load"):
        dcp.load(state, storage_reader=CheckpointReader(path, **options))
    assert (state["x"] == state["x"][0]).all()
    return float(state["x"][0])


def stock_load(path: Path | str) -> float:
    state = {"x": torch.zeros(4)}
    dcp.load(state, storage_reader=FileSystemReader(path))
    return float(state["x"][0])


def state_of(path: Path) -> Run:
    return RunLog(open_store(StoreSettings(f"file://{path}")), writer="test").refresh()


def saves_in(path: Path) -> set[str]:
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return {folder.path for file in files if (folder := save_folder_of(file))}


def test_a_checkpoint_is_read_back_by_us_and_by_torch(tmp_path: Path) -> None:
    save(tmp_path / "ckpt", 1)
    assert load(tmp_path / "ckpt") == 1
    assert stock_load(tmp_path / "ckpt") == 1


def test_overwriting_replaces_what_both_readers_see(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        save(tmp_path, value)
        assert load(tmp_path) == value
        assert stock_load(tmp_path) == value


def test_at_most_two_checkpoints_exist_however_often_it_is_overwritten(tmp_path: Path) -> None:
    for value in range(5):
        save(tmp_path, value)
        assert len(saves_in(tmp_path)) == min(value + 1, 2)
    states = [snapshot.state for snapshot in state_of(tmp_path).snapshots.values()]
    assert states == [SnapshotState.PURGED] * 3 + [SnapshotState.RETIRED, SnapshotState.LIVE]


def test_the_replaced_checkpoint_is_retired_only_after_the_new_one_was_checked(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    *_, newest = state_of(tmp_path).snapshots.values()
    assert newest.verified == "Sizes"
    assert newest.commit.replaces == newest.commit.parent != ""


def test_without_overwrite_an_existing_checkpoint_stays(tmp_path: Path) -> None:
    save(tmp_path, 1, overwrite=False)
    head = state_of(tmp_path).head
    with pytest.raises(CheckpointExistsError, match="Checkpoint already exists"):
        save(tmp_path, 2, overwrite=False)
    assert state_of(tmp_path).head == head, "a refused save must not fence a running one"
    assert load(tmp_path) == 1


def test_the_refusal_looks_to_existing_code_like_torchs_own(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp.save({"x": torch.zeros(4)}, storage_writer=CheckpointWriter(tmp_path, overwrite=False))


def test_a_checkpoint_that_torch_wrote_counts_as_existing(tmp_path: Path) -> None:
    dcp.save({"x": torch.full((4,), 5.0)}, storage_writer=FileSystemWriter(tmp_path))
    with pytest.raises(CheckpointExistsError, match="torch wrote"):
        save(tmp_path, 1, overwrite=False)
    assert load(tmp_path) == 5
    save(tmp_path, 6)
    assert load(tmp_path) == stock_load(tmp_path) == 6


def die(*_: object, **__: object) -> None:
    """Where a process ends without another word."""
    raise KeyboardInterrupt


def save_and_die(path: Path, place: object, name: str) -> None:
    """A save during which calling ``name`` of ``place`` ends the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, die)
        with pytest.raises(CheckpointException):
            dcp.save({"x": torch.full((4,), 2.0)}, storage_writer=CheckpointWriter(path))


@pytest.mark.parametrize("moment", ["commit", "publish", "_retire"])
def test_a_save_that_dies_leaves_one_whole_checkpoint_and_the_next_one_clears_up(tmp_path: Path, moment: str) -> None:
    save(tmp_path, 1)
    save_and_die(tmp_path, directory_save if moment == "publish" else DirectorySave, moment)
    survivor = 1 if moment == "commit" else 2
    assert load(tmp_path) == survivor
    assert stock_load(tmp_path) in (1, survivor)
    save(tmp_path, 3)
    save(tmp_path, 4)
    assert load(tmp_path) == stock_load(tmp_path) == 4
    assert len(saves_in(tmp_path)) == 2


def test_a_purge_that_was_cut_off_is_finished_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    save_and_die(tmp_path, directory_save, "delete_save")
    first, *_ = state_of(tmp_path).snapshots.values()
    assert first.state is SnapshotState.PURGING
    save(tmp_path, 3)
    first, *_ = state_of(tmp_path).snapshots.values()
    assert first.state is SnapshotState.PURGED
    assert load(tmp_path) == stock_load(tmp_path) == 3


def test_a_store_that_forbids_deleting_still_takes_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("s3://bucket/ckpt")

    def refuse(_: Any) -> None:
        raise DeletionRefusedError("delete", "objects", "403")

    monkeypatch.setattr(store, "delete", refuse)
    for value in (1.0, 2.0, 3.0):
        target = DirectorySave(store, overwrite=True, world_size=1)
        dcp.save({"x": torch.full((4,), value)}, storage_writer=SnapshotWriter(store, target))
    assert RunLog(store, writer="test").refresh().newest is not None


def test_a_save_that_another_one_overtook_is_fenced() -> None:
    store = MemoryStore("s3://bucket/ckpt")
    slow, fast = (DirectorySave(store, overwrite=True, world_size=1) for _ in range(2))
    save_of_the_slow_one = slow.begin()
    fast.begin()
    manifest = Manifest(save_of_the_slow_one.snapshot, 0, 1, 1, ())
    with pytest.raises(FencedError):
        slow.commit(save_of_the_slow_one, manifest, "0" * 64)


def test_the_root_of_somebodys_run_is_not_written_to() -> None:
    store = MemoryStore("s3://bucket/run")
    RunLog(store, writer="test").append(lambda _: RunClaimed(Owner("uid", "team", "llama")))
    with pytest.raises(PrefixClaimedError, match="uid/team/llama"):
        DirectorySave(store, overwrite=True, world_size=1).begin()


def test_a_checkpoint_whose_file_the_store_lost_is_not_reported_as_saved(tmp_path: Path) -> None:
    class Losing(MemoryStore):
        @contextmanager
        def upload(self, key: str, size: int) -> Iterator[Any]:
            with super().upload(key, size) as upload:
                yield upload
            if key.startswith("0002") and key.endswith(".distcp"):
                self.delete([key])

    store = Losing("s3://bucket/ckpt")

    def save_once() -> None:
        target = DirectorySave(store, overwrite=True, world_size=1)
        with raising_ours("save"):
            dcp.save({"x": torch.zeros(4)}, storage_writer=SnapshotWriter(store, target))

    save_once()
    with pytest.raises(CorruptSnapshotError, match="does not exist"):
        save_once()
    first, second = RunLog(store, writer="test").refresh().snapshots.values()
    assert first.live
    assert second.failures == 1


@pytest.mark.parametrize("fault", ["the store lost a file", "the store did not say"])
@pytest.mark.parametrize("saves_before", [0, 1])
def test_after_a_save_that_could_not_be_verified_both_readers_give_the_same_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, saves_before: int
) -> None:
    if saves_before:
        save(tmp_path, 1)

    def check(store: Any, folder: str, files: Any, **_: Any) -> None:
        if fault == "the store did not say":
            raise StoreError("stat", "an object", "503")
        (file,) = tmp_path.glob(f"{folder}/*.distcp")
        file.unlink()
        check_sizes(store, folder, files)

    with monkeypatch.context() as patch:
        patch.setattr(directory_save, "check_sizes", check)
        if fault == "the store did not say":
            save(tmp_path, 2)
            expected: float | None = 2
        else:
            with pytest.raises(CorruptSnapshotError, match="does not exist"):
                save(tmp_path, 2)
            expected = 1 if saves_before else None
    if expected is None:
        with pytest.raises(RestoreError):
            load(tmp_path)
        assert not (tmp_path / ".metadata").exists()
    else:
        assert load(tmp_path) == stock_load(tmp_path) == expected
    save(tmp_path, 3)
    assert load(tmp_path) == stock_load(tmp_path) == 3


def test_reading_a_directory_where_everything_was_retired_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1)
    log = RunLog(open_store(StoreSettings(f"file://{tmp_path}")), writer="test")
    newest = log.refresh().newest
    assert newest is not None
    log.append(lambda _: SnapshotRetired(newest, ("Test",)))
    with pytest.raises(RestoreError, match="retired"):
        load(tmp_path)


def test_a_flipped_bit_is_found_on_load(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (data,) = tmp_path.glob("*/*.distcp")
    content = bytearray(data.read_bytes())
    content[-300] ^= 4
    data.write_bytes(content)
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        load(tmp_path)


@pytest.mark.store
def test_torchs_own_reader_loads_from_s3_what_we_saved_there(object_store: ObjectStore) -> None:
    url, options = f"s3://{object_store.bucket()}/ckpt", object_store.storage_options()
    for value in (1, 2, 3):
        save(url, value, **options)
    assert load(url, **options) == 3
    state = {"x": torch.zeros(4)}
    dcp.load(state, storage_reader=dcp.FsspecReader(url, **options))
    assert torch.equal(state["x"], torch.full((4,), 3.0))


@pytest.mark.store
def test_we_load_from_s3_what_torch_saved_there(object_store: ObjectStore) -> None:
    url, options = f"s3://{object_store.bucket()}/ckpt", object_store.storage_options()
    dcp.save({"x": torch.full((4,), 8.0)}, storage_writer=dcp.FsspecWriter(url, sync_files=False, **options))
    assert load(url, **options) == 8
