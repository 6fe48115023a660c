"""A run with shared files that was moved, or copied as it is: which readers find its files, and from where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fsspec.implementations.memory import MemoryFileSystem
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_cli.verbs import Door
from checkpoint_sidecar import Checkpointer, load, open_run
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine import pointer
from support.commands import Program
from training.adapted import Adapted, saving

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHARE = SavePolicy(every_steps=None, every_seconds=None, unchanged="Share")
Values = list[torch.Tensor]
READERS: dict[str, Callable[[Path], dcp.StorageReader]] = {
    "FileSystemReader": dcp.FileSystemReader,
    "FsspecReader": lambda folder: dcp.FsspecReader(f"file://{folder}"),
}


@pytest.fixture
def seen() -> dict[int, Values]:
    """The model's values after each step."""
    return {}


@pytest.fixture
def old(tmp_path: Path, seen: dict[int, Values]) -> Path:
    """Three snapshots, of which the second and the third share the frozen parameters of the first one."""
    folder = tmp_path / "old" / "run"
    with saving(f"file://{folder}", save=SHARE) as (adapted, step):
        for number in (1, 2, 3):
            step(number)
            seen[number] = [value.clone() for value in adapted.model.state_dict().values()]
    return folder


@pytest.fixture
def new(old: Path, tmp_path: Path) -> Path:
    """The place to which the run was moved; its path has another length."""
    folder = tmp_path / "a place elsewhere" / "run"
    shutil.move(old, folder)
    return folder


def read_by_torch(reader: dcp.StorageReader) -> Values:
    state = {f"model.{name}": torch.zeros_like(value) for name, value in Adapted().model.state_dict().items()}
    dcp.load(state, storage_reader=reader)
    return [*state.values()]


def equal(one: Values, other: Values) -> bool:
    return all(map(torch.equal, one, other))


def test_our_readers_find_everything_and_training_continues_there(new: Path, seen: dict[int, Values]) -> None:
    url = f"file://{new}"
    for number, values in seen.items():
        adapted = Adapted()
        load(url, into=adapted.model, selector=number, part="model")
        assert equal([*adapted.model.state_dict().values()], values)
        assert open_run(url).verify(number, checksums=True).passed
    with saving(url, save=SHARE) as (adapted, step):
        step(4)
        values = [value.clone() for value in adapted.model.state_dict().values()]
    assert open_run(url).find(4).commit.shared_bytes > 0
    assert equal(read_by_torch(dcp.FileSystemReader(f"{new}/step-4")), values)


@pytest.mark.parametrize("reader", READERS)
def test_torch_finds_shared_files_again_once_they_are_republished(
    new: Path, seen: dict[int, Values], reader: str
) -> None:
    read = READERS[reader]
    assert equal(read_by_torch(read(new / "step-1")), seen[1])
    for number in (2, 3):
        with pytest.raises(CheckpointException, match="No such file"):
            read_by_torch(read(new / f"step-{number}"))
    run = open_run(f"file://{new}")
    before = {path: path.read_bytes() for path in new.rglob("*") if path.is_file()}
    assert [each.step for each in run.republish(dry_run=True)] == [3, 2]
    assert {path: path.read_bytes() for path in before} == before
    assert [each.step for each in run.republish()] == [3, 2]
    for number, values in seen.items():
        assert equal(read_by_torch(read(new / f"step-{number}")), values)
    changed = [path for path in before if path.read_bytes() != before[path]]
    assert sorted(changed) == [new / "step-2/.metadata", new / "step-3/.metadata"]
    assert run.republish() == ()
    for number in (2, 3):
        pointer.publish(run.store, run.log, number)
    assert run.republish() == ()


def test_a_copy_is_read_from_its_own_place_only_after_it_was_republished(
    old: Path, tmp_path: Path, seen: dict[int, Values]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(old, copy)
    for file in old.glob("step-1/*/__0_s0.distcp"):
        file.write_bytes(b"torn")
    with pytest.raises(CheckpointException):
        read_by_torch(dcp.FileSystemReader(copy / "step-3"))
    open_run(f"file://{copy}").republish()
    assert equal(read_by_torch(dcp.FileSystemReader(copy / "step-3")), seen[3])


def test_a_pointer_that_was_not_moved_is_made_for_the_new_place(new: Path, seen: dict[int, Values]) -> None:
    (new / "step-2/.metadata").unlink()
    (new / "step-3/.metadata").unlink()
    run = open_run(f"file://{new}")
    pointer.publish(run.store, run.log, 2)  # as the operator does
    assert [each.step for each in run.republish()] == [3]
    for number in (2, 3):
        assert equal(read_by_torch(dcp.FileSystemReader(new / f"step-{number}")), seen[number])


def test_what_is_not_the_runs_own_and_what_is_damaged_is_left_alone(
    new: Path, seen: dict[int, Values], caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(f"file://{new}")
    (new / "step-3/.metadata").write_bytes(b"of another program")
    stock = new / run.find(2).commit.path / "stock.metadata"
    stock.write_bytes(stock.read_bytes()[::-1])
    shown = (new / "step-2/.metadata").read_bytes()
    assert run.republish() == ()
    assert (new / "step-3/.metadata").read_bytes() == b"of another program"
    assert (new / "step-2/.metadata").read_bytes() == shown
    assert "the pointer of step 3 stays as it is" in caplog.text
    assert "the pointer of step 2 stays as it is" in caplog.text


def test_the_verb_says_which_snapshots_it_was_about(new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, url = Program(Door.BUCKET, capsys), f"file://{new}"
    run = open_run(url)
    wanted = [run.find(3).id, run.find(2).id]
    assert checkpoint("republish", url, "--dry-run", "-o", "name").output.split() == wanted
    assert checkpoint("republish", url, "-o", "name").output.split() == wanted
    again = checkpoint("republish", url)
    assert (again.status, again.output) == (0, "")
    assert "finds all shared files" in again.errors
    assert checkpoint("republish", f"{url}@2").status == 2


def test_a_start_at_the_new_place_restores_the_newest_snapshot(new: Path, seen: dict[int, Values]) -> None:
    adapted = Adapted()
    with Checkpointer(adapted.state, f"file://{new}") as checkpointer:
        found = checkpointer.restore()
    assert found is not None
    assert found.step == 3
    assert equal([*adapted.model.state_dict().values()], seen[3])


def test_where_torch_has_no_spelling_for_shared_files_nothing_is_written(new: Path, seen: dict[int, Values]) -> None:
    here, there = open_run(f"file://{new}"), open_run("memory://moved/run", filesystem=MemoryFileSystem())
    for info in here.store.list():
        there.store.put(info.key, here.store.get(info.key, max_bytes=info.size).data)
    before = there.store.get("step-3/.metadata", max_bytes=1 << 20).data
    with pytest.raises(ConfigurationError, match="torch's own reader cannot find files of other folders there"):
        there.republish()
    assert there.store.get("step-3/.metadata", max_bytes=1 << 20).data == before
    assert there.verify(3, checksums=True).passed
