"""`SnapshotStorage` under torch_checkpointing's own manager, in one process, and what `Storage` asks of a backend."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch_checkpointing.checkpoint_manager import CheckpointManager
from torch_checkpointing.checkpoint_process import CheckpointProcessConfig
from torch_checkpointing.config import AsyncCheckpointSaverConfig, SyncCheckpointSaverConfig
from torch_checkpointing.storage.base_storage import ReadArgs, Storage

from checkpoint_sidecar import CorruptSnapshotError, FencedError, RestoreError, RestoreInterrupted, open_run
from checkpoint_sidecar.core.errors import StoreError, UnknownOutcomeError
from checkpoint_sidecar.integrations.torch_checkpointing import SnapshotRun
from checkpoint_sidecar.integrations.torch_checkpointing.lent import LentMemory
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.memory import as_buffer
from frameworks.gangs import committed

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/run"


@pytest.fixture
def run(url: str) -> Iterator[SnapshotRun]:
    with SnapshotRun(url) as started:
        yield started


@pytest.fixture
def storage(run: SnapshotRun) -> Storage:
    return run.storage.create_storage()


def state(value: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((300_000,), float(value))}, "step": value}


def saved(run: SnapshotRun, *steps: int, synchronous: bool = True) -> None:
    process = CheckpointProcessConfig(subprocess_init_timeout_secs=180)
    save = SyncCheckpointSaverConfig() if synchronous else AsyncCheckpointSaverConfig(process_config=process)
    manager = CheckpointManager.Config(save=save, storage_config=run.storage).build()
    for step in steps:
        manager.save(run.checkpoint(step), state(step))
    manager.close()


def restored(run: SnapshotRun) -> tuple[int, Any]:
    loaded: list[Any] = []
    config = CheckpointManager.Config.with_sync_save()
    config.storage_config = run.storage
    manager = config.build()
    step = run.restore(lambda path: loaded.append(manager.load(path, into=state(0))))
    manager.close()
    return step, loaded[-1] if loaded else None


def keys(url: str) -> set[str]:
    return {info.key for info in open_store(StoreSettings(url)).list()}


@pytest.mark.parametrize("synchronous", [True, False], ids=["in-this-process", "in-a-process-of-its-own"])
def test_a_checkpoint_is_a_snapshot_and_comes_back(url: str, synchronous: bool) -> None:
    with SnapshotRun(url) as first:
        assert restored(first)[0] == 0
        saved(first, 10, 20, synchronous=synchronous)
    with SnapshotRun(url) as second:
        step, loaded = restored(second)
    assert step == 20
    assert torch.equal(loaded["model"]["weight"], state(20)["model"]["weight"])
    assert loaded["step"] == 20
    assert [(snapshot.step, snapshot.commit.attempt) for snapshot in open_run(url).snapshots()] == [(10, 1), (20, 1)]
    assert open_run(url).verify("latest").passed


def test_the_bytes_are_stored_once_and_nothing_else_is_left(url: str, run: SnapshotRun) -> None:
    saved(run, 1)
    folder = [key for key in keys(url) if key.startswith("step-1/0001-")]
    names = sorted(key.rpartition("/")[2] for key in folder)
    assert [name for name in names if not re.fullmatch(r"__0_\d+\.files", name)] == [
        ".metadata",
        "files.json",
        "manifest.json",
        "stock.metadata",
    ]
    assert not any(name.endswith(".distcp") for name in names), "receipts are gone"


def test_what_is_not_renamed_is_not_there(url: str, run: SnapshotRun, storage: Storage) -> None:
    path = Path(run.checkpoint(7))
    pending = path.with_name("tmp_step-7")
    storage.mkdir(pending)
    storage.write(pending / "model_0.pt", b"weights")
    assert storage.exists(pending)
    assert storage.ls(pending) == ["model_0.pt"]
    assert not storage.exists(path)
    assert storage.ls(path.parent) == []
    assert committed(url) == []
    with pytest.raises(FileNotFoundError):
        storage.read(path / "model_0.pt")
    storage.rename(pending, path, is_directory=True)
    assert not storage.exists(pending)
    assert storage.ls(path.parent) == ["step-7"]
    assert storage.read(path / "model_0.pt") == b"weights"
    assert committed(url) == [7]


def test_the_renames_that_storage_asks_for(run: SnapshotRun, storage: Storage) -> None:
    path = Path(run.checkpoint(7))
    pending = path.with_name("tmp_step-7")
    storage.write(pending / "a", b"first")
    storage.rename(pending, path, is_directory=True)
    storage.write(pending / "a", b"second")
    with pytest.raises(FileExistsError):
        storage.rename(pending, path, is_directory=True)
    assert not storage.exists(pending)
    assert storage.read(path / "a") == b"first", "an occupied destination is neither merged into nor deleted"
    for source, target in [(pending / "a", pending / "b"), (path, pending), (pending, path.with_name("step-8"))]:
        with pytest.raises(OSError, match="only the folder of a checkpoint"):
            storage.rename(source, target)
    with pytest.raises(FileNotFoundError):
        storage.rename(path.with_name("tmp_step-9"), path.with_name("step-9"), is_directory=True)


def test_a_stream_reads_any_range(run: SnapshotRun, storage: Storage) -> None:
    data = bytes(range(256)) * 5_000
    pending = Path(run.checkpoint(1)).with_name("tmp_step-1")
    with storage.stream_write(pending / "rank_0" / "data.bin") as stream:
        stream.write(memoryview(data)[:100_000])
        stream.write(bytearray(data[100_000:]))
    storage.write(pending / "empty", b"")
    storage.rename(pending, Path(run.checkpoint(1)), is_directory=True)
    path = Path(run.checkpoint(1)) / "rank_0" / "data.bin"
    assert storage.getsize(path) == len(data)
    assert storage.isdir(path.parent)
    assert not storage.isdir(path)
    assert storage.exists(path.parent)
    assert not storage.exists(path.with_name("other"))
    assert storage.ls(path.parents[1]) == ["empty", "rank_0"]
    assert storage.ls(path.parent) == ["data.bin"]
    with pytest.raises(FileNotFoundError):
        storage.ls(path.with_name("other"))
    assert storage.read(path.parents[1] / "empty") == b""
    with storage.stream_read(path, ReadArgs(pre_read_full_file=False)) as reader:
        assert reader.seek(700_001) == 700_001
        assert reader.read(9) == data[700_001:700_010]
        assert reader.seek(-5, io.SEEK_END) == len(data) - 5
        assert reader.read() == data[-5:]
        assert reader.read() == b""


def test_tensors_are_stored_from_their_own_memory_and_everything_else_from_a_copy(
    run: SnapshotRun, storage: Storage
) -> None:
    pending = Path(run.checkpoint(1)).with_name("tmp_step-1")
    lent, other = (torch.zeros(100_000, dtype=torch.uint8) for _ in range(2))
    with storage.get_write_stream(pending / "data", {"nested": [lent[10:]]}) as stream:
        for tensor in (lent, other, lent[5:]):
            stream.write(as_buffer(tensor))
        # Not allowed before the stream is closed; here it shows what was copied.
        lent.fill_(1)
        other.fill_(2)
    storage.rename(pending, Path(run.checkpoint(1)), is_directory=True)
    stored = storage.read(Path(run.checkpoint(1)) / "data")
    assert stored == bytes([1]) * 100_000 + bytes(100_000) + bytes([1]) * 99_995


def test_the_memory_of_shards_is_lent_too() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard = torch.arange(100_000)
        sharded = DTensor.from_local(shard, init_device_mesh("cpu", (1,)))
        found = LentMemory({"weight": sharded}).find(as_buffer(shard)[8:16])
        assert found is not None
        assert found == as_buffer(shard)[8:16]
        assert LentMemory({"weight": sharded}).find(memoryview(bytes(8))) is None
    finally:
        dist.destroy_process_group()


def test_a_checkpoint_exists_for_ranks_that_have_written_nothing(run: SnapshotRun, storage: Storage) -> None:
    pending = Path(run.checkpoint(1)).with_name("tmp_step-1")
    other = replace(run.storage, rank=1).create_storage()
    assert not other.exists(pending)
    storage.write(pending / "a", b"a")
    assert other.exists(pending)
    assert storage.exists(pending)
    storage.rename(pending, Path(run.checkpoint(1)), is_directory=True)
    assert not other.exists(pending)
    assert not storage.exists(pending)


def test_an_error_in_the_block_that_writes_discards_the_file(run: SnapshotRun, storage: Storage) -> None:
    pending = Path(run.checkpoint(1)).with_name("tmp_step-1")
    stream = storage.stream_write(pending / "half")
    stream.write(b"half")
    stream.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert not storage.exists(pending)


def test_a_failed_save_can_be_repeated(url: str, run: SnapshotRun, storage: Storage) -> None:
    pending = Path(run.checkpoint(1)).with_name("tmp_step-1")
    storage.write(pending / "a", b"old")
    storage.write(pending / "a", b"new")
    storage.rename(pending, Path(run.checkpoint(1)), is_directory=True)
    assert storage.read(Path(run.checkpoint(1)) / "a") == b"new"
    assert len([key for key in keys(url) if key.endswith(".files")]) == 1, "the replaced object is gone"


def test_pending_files_can_be_deleted_and_committed_ones_cannot(url: str, run: SnapshotRun, storage: Storage) -> None:
    path = Path(run.checkpoint(1))
    pending = path.with_name("tmp_step-1")
    storage.write(pending / "a", b"a")
    storage.write(pending / "b", b"b")
    storage.delete(pending / "a")
    assert storage.ls(pending) == ["b"]
    storage.rename(pending, path, is_directory=True)
    storage.rmdir(pending)
    with pytest.raises(OSError, match="by the run's retention"):
        storage.rmdir(path)
    with pytest.raises(OSError, match="the rename is the commit"):
        storage.delete(path / "b")
    assert storage.read(path / "b") == b"b"
    storage.write(path.with_name("tmp_step-2") / "folder" / "c", b"c")
    with pytest.raises(OSError, match="only a whole checkpoint"):
        storage.rmdir(path.with_name("tmp_step-2") / "folder")
    assert storage.exists(path.with_name("tmp_step-2") / "folder" / "c")
    storage.rmdir(path.with_name("tmp_step-2"))
    assert not [key for key in keys(url) if key.startswith("step-2/")]


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("/elsewhere/tmp_step-1/a", "only paths below"),
        ("/run/checkpoint/a", "must be step-<N>"),
        ("/run/step-1/a", "write_to_temp_dir"),
        ("/run/tmp_step-1/../a", "does not stay below"),
    ],
)
def test_paths_outside_of_a_new_checkpoint_are_refused(storage: Storage, path: str, cause: str) -> None:
    with pytest.raises(OSError, match=cause):
        storage.write(Path(path), b"a")


def test_two_ranks_must_not_write_the_same_file(run: SnapshotRun, storage: Storage) -> None:
    pending = Path(run.checkpoint(1)).with_name("tmp_step-1")
    storage.write(pending / "a", b"a")
    other = replace(run.storage, rank=1).create_storage()
    other.write(pending / "a", b"b")
    with pytest.raises(OSError, match="two ranks"):
        storage.rename(pending, Path(run.checkpoint(1)), is_directory=True)


def test_an_attempt_that_was_replaced_cannot_commit(url: str) -> None:
    with SnapshotRun(url, takeover_seconds=0) as first:
        saved(first, 1)
        with SnapshotRun(url, takeover_seconds=0) as second:
            assert restored(second)[0] == 1
            with pytest.raises(FencedError):
                saved(first, 2)
            saved(second, 3)
    assert committed(url) == [1, 3]


def test_a_damaged_checkpoint_is_passed_over_with_evidence(url: str, tmp_path: Path) -> None:
    with SnapshotRun(url) as first:
        saved(first, 1, 2)
    [data] = [key for key in keys(url) if key.startswith("step-2/") and _holds_weights(tmp_path / "run" / key)]
    file = tmp_path / "run" / data
    file.chmod(0o644)
    damaged = bytearray(file.read_bytes())
    damaged[-5_000] ^= 1
    file.write_bytes(damaged)
    with SnapshotRun(url) as second:
        assert restored(second)[0] == 1
        saved(second, 3)
    with SnapshotRun(url) as third:
        assert restored(third)[0] == 3
    parents = {snapshot.step: snapshot.commit.parent for snapshot in open_run(url).snapshots()}
    assert parents[3].startswith("1-"), "the lineage leads past the damaged one"


def _holds_weights(file: Path) -> bool:
    return file.name.endswith(".files") and file.stat().st_size > 1_000_000


def test_an_error_that_says_nothing_about_the_snapshot_interrupts_the_start(url: str) -> None:
    with SnapshotRun(url) as first:
        saved(first, 1)

    def fail(path: str) -> None:
        raise ZeroDivisionError(path)

    with SnapshotRun(url) as second, pytest.raises(RestoreInterrupted):
        second.restore(fail)
    with SnapshotRun(url) as third:
        assert restored(third)[0] == 1


def test_training_never_starts_again_from_nothing(url: str, tmp_path: Path) -> None:
    with SnapshotRun(url) as first:
        saved(first, 1)
    for key in keys(url):
        if key.endswith(".files"):
            (tmp_path / "run" / key).unlink()
    with SnapshotRun(url) as second, pytest.raises((RestoreError, CorruptSnapshotError)):
        restored(second)


def loses_the_reply(
    storage: Any, monkeypatch: pytest.MonkeyPatch, *, commits: bool = True, unreadable: bool = False
) -> None:
    """The reply to the next commit is lost, whether it is made or not; the log may be unreadable right after it."""
    log = storage._commit.session.log
    append, refresh = log.append, log.refresh

    def lost(compute: Any) -> None:
        monkeypatch.setattr(log, "append", append)
        if commits:
            append(compute)
        if unreadable:
            monkeypatch.setattr(log, "refresh", fail)
        raise StoreError("append to", "the log", "the connection is closed")

    def fail() -> None:
        monkeypatch.setattr(log, "refresh", refresh)
        raise StoreError("read", "the log", "the connection is closed")

    monkeypatch.setattr(log, "append", lost)


def test_a_commit_whose_reply_is_lost_is_found_in_the_log(
    url: str, run: SnapshotRun, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(run.checkpoint(1))
    storage.write(path.with_name("tmp_step-1") / "a", b"a")
    loses_the_reply(storage, monkeypatch)
    storage.rename(path.with_name("tmp_step-1"), path)
    assert committed(url) == [1]
    assert not storage.exists(path.with_name("tmp_step-1"))


@pytest.mark.parametrize("again", ["rename", "write and rename"])
def test_a_save_that_is_repeated_after_an_unknown_commit_deletes_nothing_of_it(
    url: str, run: SnapshotRun, storage: Storage, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    path = Path(run.checkpoint(1))
    pending = path.with_name("tmp_step-1")
    storage.write(pending / "a", b"first")
    loses_the_reply(storage, monkeypatch, unreadable=True)
    with pytest.raises(UnknownOutcomeError):
        storage.rename(pending, path)
    if again == "write and rename":
        storage.write(pending / "a", b"second")
    with pytest.raises(FileExistsError):
        storage.rename(pending, path)
    assert not storage.exists(pending)
    assert storage.read(path / "a") == b"first"
    assert open_run(url).verify("latest").passed


def test_a_step_whose_commit_may_still_be_made_is_not_saved_again(
    url: str, run: SnapshotRun, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(run.checkpoint(1))
    pending = path.with_name("tmp_step-1")
    storage.write(pending / "a", b"first")
    loses_the_reply(storage, monkeypatch, commits=False, unreadable=True)
    with pytest.raises(UnknownOutcomeError):
        storage.rename(pending, path)
    before = {key for key in keys(url) if key.endswith((".files", "manifest.json"))}
    storage.write(pending / "a", b"second")
    with pytest.raises(FileExistsError, match="may still be committed"):
        storage.rename(pending, path)
    assert {key for key in keys(url) if key.endswith((".files", "manifest.json"))} == before
    assert not storage.exists(path)
    assert committed(url) == []
