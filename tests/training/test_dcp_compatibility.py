"""Other versions of torch, and other programs, read what we save; we read what they save."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp
from torch.distributed.checkpoint.metadata import TensorProperties

from checkpoint_sidecar.core.layout import pointer_key
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter
from doubles.targets import save
from training.golden import generate

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:torch.distributed is unavail")

GOLDEN = sorted(generate.HERE.glob("*/*/"))


@pytest.mark.parametrize("golden", GOLDEN, ids=[f"{each.parent.name}-{each.name}" for each in GOLDEN])
def test_a_checkpoint_of_every_version_of_torch_loads_value_by_value(golden: Path) -> None:
    generate.check(golden, generate.whole_states()[golden.name], ours=True)


def test_there_is_a_golden_checkpoint_of_every_kind_and_version() -> None:
    versions = {each.parent.name for each in GOLDEN}
    assert versions == {"2.6", "2.9", "2.12", "2.15"}
    assert len(GOLDEN) == len(versions) * len(generate.whole_states())


def test_the_comparison_of_golden_checkpoints_sees_a_single_bit() -> None:
    state = generate.plain()
    assert generate.differences(generate.plain(), state) == []
    state["tensors"]["special"][2] = 0.0
    state["groups"][0]["lr"] = 0.2
    found = generate.differences(generate.plain(), state)
    assert [line.partition(":")[0] for line in found] == [".tensors.special", ".groups.0.lr"]


def test_versions_of_torch_that_know_no_strides_read_our_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_in_2_6(self: TensorProperties, state: tuple[Any, ...]) -> None:
        self.dtype, self.layout, self.requires_grad, _, self.pin_memory = state

    generate.write(tmp_path, ours=True, state=generate.plain())
    monkeypatch.setattr(TensorProperties, "__setstate__", as_in_2_6)
    generate.check(tmp_path, generate.plain, ours=False)


@pytest.mark.parametrize("trust", ["safe", "full"])
def test_what_a_later_version_of_torch_says_about_a_tensor_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: Any
) -> None:
    present: Callable[[TensorProperties], tuple[Any, ...]] = TensorProperties.__getstate__
    with monkeypatch.context() as later:
        later.setattr(TensorProperties, "__getstate__", lambda self: (*present(self), "news"))
        dcp.save(generate.plain(), storage_writer=FileSystemWriter(tmp_path))
    with pytest.raises(CheckpointException):
        generate.check(tmp_path, generate.plain, ours=False)
    state = generate.blank(generate.plain())
    dcp.load(state, storage_reader=CheckpointReader(tmp_path, trust=trust))
    assert generate.differences(generate.plain(), state) == []


def test_a_checkpoint_that_torch_saved_rank_by_rank_loads(tmp_path: Path) -> None:
    dcp.save(generate.plain(), storage_writer=FileSystemWriter(tmp_path), use_collectives=False)
    assert (tmp_path / "__0.metadata").exists()
    generate.check(tmp_path, generate.plain, ours=True)


def a_run_at(path: Path, *steps: int) -> Path:
    """A run's folder with a published save at each step, of the step's number."""
    store = open_store(StoreSettings(f"file://{path}"))
    for step in steps:
        saved = save(store, {"model": {"w": torch.full((3,), float(step))}, "step": step}, step=step)
        store.put(pointer_key(step), store.get(saved.save.folder.stock_metadata, max_bytes=10**6).data)
    return path


def newest_step_by_torchtitans_rule(folder: Path) -> int:
    """Torchtitan resumes from the folder ``step-N`` with the highest N, without padding, that holds a ``.metadata``."""
    found = (re.fullmatch(r"step-(0|[1-9]\d*)", each.parent.name) for each in folder.glob("*/.metadata"))
    return max((int(match[1]) for match in found if match), default=-1)


def test_torchtitans_search_finds_the_newest_published_step(tmp_path: Path) -> None:
    run = a_run_at(tmp_path, 7, 1000, 20)
    assert newest_step_by_torchtitans_rule(run) == 1000
    (run / pointer_key(1000)).unlink()
    assert newest_step_by_torchtitans_rule(run) == 20


def test_torch_loads_the_step_from_the_folder_that_torchtitan_names(tmp_path: Path) -> None:
    run = a_run_at(tmp_path, 7, 1000)
    state: dict[str, Any] = {"model": {"w": torch.zeros(3)}, "step": 0}
    dcp.load(state, checkpoint_id=run / f"step-{newest_step_by_torchtitans_rule(run)}")
    assert torch.equal(state["model"]["w"], torch.full((3,), 1000.0))
    assert state["step"] == 1000


def test_a_step_of_a_run_becomes_one_file_for_torch_load(tmp_path: Path) -> None:
    run = a_run_at(tmp_path / "run", 7)
    dcp_to_torch_save(run / Path(pointer_key(7)).parent, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(state["model"]["w"], torch.full((3,), 7.0))
    assert state["step"] == 7


def test_a_checkpoint_directory_becomes_one_file_for_torch_load(tmp_path: Path) -> None:
    dcp.save(generate.plain(), storage_writer=CheckpointWriter(tmp_path / "ckpt"))
    dcp_to_torch_save(tmp_path / "ckpt", tmp_path / "state.pt")
    assert generate.differences(generate.plain(), torch.load(tmp_path / "state.pt", weights_only=True)) == []


def test_one_file_of_torch_save_becomes_a_checkpoint_that_we_load(tmp_path: Path) -> None:
    torch.save(generate.plain(), tmp_path / "state.pt")
    torch_save_to_dcp(tmp_path / "state.pt", tmp_path / "ckpt")
    generate.check(tmp_path / "ckpt", generate.plain, ours=True)
