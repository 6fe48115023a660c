"""Two real ranks over gloo: every check of ``test_dcp_distributed``, in one start of the process group.

Run as ``python dcp_ranks.py <rank> <world size> <folder>``; writes ``<folder>/result-<rank>.json``: errors by check.
Each check gets a folder of its own. Both ranks run every check, whatever became of the ones before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    StoreError,
)
from checkpoint_sidecar.core.layout import pointer_key
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Upload
from checkpoint_sidecar.store.local.adapter import LocalStore
from checkpoint_sidecar.training.dcp import global_plan
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from doubles.targets import RecordingTarget, Saved
from training.golden import generate
from training.ranks import Checks

check = Checks()


def model(seed: int, outputs: int = 1) -> nn.Module:
    """Odd sizes, so that shards are uneven; with one output, one rank has nothing of the last layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.Linear(13, outputs))


def trained(wrapped: nn.Module, seed: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01)
    torch.manual_seed(seed)
    wrapped(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def sharded(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    wrapped = model(seed)
    fully_shard(wrapped, mesh=init_device_mesh("cpu", (2,)))
    return wrapped, trained(wrapped, seed)


def state_of(wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    own, optim = get_state_dict(wrapped, optimizer)
    return {"model": own, "optim": optim}


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by path; sharded tensors as this rank's part."""
    if isinstance(state, dict):
        parts = [flat(value, f"{prefix}.{key}") for key, value in state.items()]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(state, DTensor):
        return {prefix: state.to_local()}
    if hasattr(state, "local_shards"):
        return {f"{prefix}.{i}": shard.tensor for i, shard in enumerate(state.local_shards())}
    return {prefix: state}


def assert_same(one: Any, other: Any) -> None:
    first, second = flat(one), flat(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        assert same, f"{key} differs"


def assert_different(one: Any, other: Any) -> None:
    """Or a load that changes nothing would pass."""
    with pytest.raises(AssertionError):
        assert_same(one, other)


def save(store: LocalStore, state: dict[str, Any], step: int = 7, **options: Any) -> Saved:
    """Save with all ranks; every rank learns what was committed."""
    target = RecordingTarget(step) if dist.get_rank() == 0 else None
    writer = SnapshotWriter(store, target)
    with raising_ours("save"):
        try:
            dcp.save(state, storage_writer=writer, **options)
        except CheckpointException as failure:
            writer.discard(failure)
            raise
    box: list[tuple[NewSave, Manifest] | None] = [target.committed[0][:2]] if target else [None]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    return Saved(store, *box[0])


def load(state: dict[str, Any], reader: StorageReader, **options: Any) -> None:
    with raising_ours("load"):
        dcp.load(state, storage_reader=reader, **{"planner": StrictLoadPlanner(), **options})


def store_in(folder: Path) -> LocalStore:
    return LocalStore(StoreSettings(f"file://{folder}"))


@check
def fully_shard_state_comes_back(folder: Path) -> None:
    expected = state_of(*sharded(1))
    saved = save(store_in(folder), expected)
    assert saved.manifest.world_size == 2
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in saved.manifest.files}
    wrapped, optimizer = sharded(2)
    state = state_of(wrapped, optimizer)
    assert_different(state, expected)
    load(state, saved.reader())
    set_state_dict(wrapped, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    assert_same(state_of(wrapped, optimizer), expected)


@check
def fsdp1_sharded_state_comes_back(folder: Path) -> None:
    def fsdp1(seed: int) -> dict[str, Any]:
        wrapped = FullyShardedDataParallel(model(seed), device_id=torch.device("cpu"), use_orig_params=True)
        optimizer = trained(wrapped, seed)
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.SHARDED_STATE_DICT):
            return {
                "model": wrapped.state_dict(),
                "optim": FullyShardedDataParallel.optim_state_dict(wrapped, optimizer),
            }

    expected, state = fsdp1(1), fsdp1(2)
    saved = save(store_in(folder), expected)
    assert_different(state, expected)
    load(state, saved.reader())
    assert_same(state, expected)


@check
def two_ranks_to_one_and_back(folder: Path) -> None:
    store, expected = store_in(folder), state_of(*sharded(1))
    saved = save(store, expected)
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        plain = model(2)
        alone = state_of(plain, trained(plain, 2))
        load(alone, saved.reader(), no_dist=True)
        target = RecordingTarget(step=8)
        dcp.save(alone, storage_writer=SnapshotWriter(store, target), no_dist=True)
        box = [target.committed[0][:2]]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    state = state_of(*sharded(3))
    load(state, Saved(store, *box[0]).reader())
    assert_same(state, expected)


@check
def torch_loads_ours(folder: Path) -> None:
    store, expected = store_in(folder), state_of(*sharded(1))
    saved = save(store, expected)
    if dist.get_rank() == 0:
        store.put(pointer_key(7), store.get(saved.save.folder.stock_metadata, max_bytes=10**6).data)
    dist.barrier()
    state = state_of(*sharded(2))
    dcp.load(state, storage_reader=FileSystemReader(folder / "step-7"))
    assert_same(state, expected)


@check
def we_load_torchs(folder: Path) -> None:
    expected = state_of(*sharded(1))
    dcp.save(expected, storage_writer=FileSystemWriter(folder))
    state = state_of(*sharded(2))
    load(state, CheckpointReader(folder))
    assert_same(state, expected)


@check
def every_rank_gets_the_metadata_of_its_save_when_it_asks(folder: Path) -> None:
    metadata = dcp.save(state_of(*sharded(1)), storage_writer=CheckpointWriter(folder / "run"))
    assert isinstance(metadata, Metadata)
    assert "storage_data" not in vars(metadata), "it was read before it was used"
    assert {*metadata.storage_data} == {*FileSystemReader(folder / "run").read_metadata().storage_data}


def replicated(seed: int, replicas: int) -> dict[str, Any]:
    """Hybrid sharding: ``replicas`` copies, each over the ranks that are left."""
    wrapped = model(seed)
    mesh = init_device_mesh("cpu", (replicas, 2 // replicas), mesh_dim_names=("replica", "shard"))
    fully_shard(wrapped, mesh=mesh)
    return state_of(wrapped, trained(wrapped, seed))


@check
def hybrid_sharding_comes_back_both_ways_and_resharded(folder: Path) -> None:
    for replicas in (1, 2):
        expected, place = replicated(1, replicas), folder / str(replicas)
        saved = save(store_in(place / "ours"), expected)
        dcp.save(expected, storage_writer=FileSystemWriter(place / "torchs"))
        dist.barrier()
        ours, torchs = FileSystemReader(place / "ours" / saved.save.folder.path), CheckpointReader(place / "torchs")
        for reader in (saved.reader(), torchs, ours):
            state = replicated(2, replicas)
            load(state, reader)
            assert_same(state, expected)
        resharded = replicated(3, 3 - replicas)
        load(resharded, saved.reader())
        assert_same(whole(resharded), whole(expected))


def whole(state: Any) -> Any:
    """The state with every sharded tensor put together."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return state.full_tensor() if isinstance(state, DTensor) else state


@check
def golden_checkpoints_of_torch_load_into_shards(folder: Path) -> None:
    for golden in sorted(generate.HERE.glob("*/*")):
        if golden.name in generate.SHARDED:
            generate.check(golden, generate.SHARDED[golden.name], ours=True)


@check
def a_sharded_save_becomes_one_file_for_torch_load(folder: Path) -> None:
    expected = state_of(*sharded(1))
    saved = save(store_in(folder), expected)
    expected = whole(expected)
    if dist.get_rank() == 0:
        dcp_to_torch_save(folder / saved.save.folder.path, folder / "state.pt")
        assert_same(torch.load(folder / "state.pt", weights_only=True), expected)


@check
def two_exchanged_files_are_found_on_every_rank(folder: Path) -> None:
    def x(value: float) -> dict[str, Any]:
        return {"x": distribute_tensor(torch.arange(8.0) * value, init_device_mesh("cpu", (2,)), [Shard(0)])}

    saved = save(store_in(folder), x(1))
    if dist.get_rank() == 0:
        one, other = (folder / saved.save.folder.path / f"__{rank}_0.distcp" for rank in range(2))
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    dist.barrier()
    state = x(0)
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        load(state, saved.reader())
    assert not state["x"].to_local().any()


class FailingStore(LocalStore):
    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Upload]:  # type: ignore[override]
        with super().upload(key, size) as upload:
            yield upload
            raise StoreError("upload", key, "503 from rank 1's store")


@check
def one_failing_rank_leaves_the_previous_save_and_nothing_else(folder: Path) -> None:
    settings = StoreSettings(f"file://{folder}")
    store = LocalStore(settings)
    expected = state_of(*sharded(1))
    saved = save(store, expected)
    before = {info.key for info in store.list()}
    dist.barrier()
    with pytest.raises(StoreError, match="rank 1's store"):
        save(FailingStore(settings) if dist.get_rank() == 1 else store, state_of(*sharded(2)), step=8)
    dist.barrier()
    assert {info.key for info in store.list()} == before
    state = state_of(*sharded(3))
    load(state, saved.reader())
    assert_same(state, expected)


@check
def a_misfit_of_one_rank_stops_all_before_any_writes(folder: Path) -> None:
    saved = save(store_in(folder), {"x": torch.ones(4), "y": torch.ones(4)})
    dtype = torch.int32 if dist.get_rank() == 1 else torch.float32
    state = {"x": torch.zeros(4), "y": torch.zeros(4, dtype=dtype)}
    with pytest.raises(IncompatibleSnapshotError, match="y was saved as"):
        load(state, saved.reader())
    assert not state["x"].any()


@check
def an_existing_checkpoint_is_reported_on_every_rank(folder: Path) -> None:
    def save_once() -> None:
        with raising_ours("save"):
            dcp.save({"x": torch.ones(4)}, storage_writer=CheckpointWriter(folder, overwrite=False))

    save_once()
    with pytest.raises(CheckpointExistsError):
        save_once()


def save_in_background(folder: Path, kind: AsyncCheckpointerType) -> None:
    for seed in (1, 2):
        expected = state_of(*sharded(seed))
        writer = CheckpointWriter(folder)
        saving = dcp.async_save(expected, storage_writer=writer, async_checkpointer_type=kind)
        assert isinstance(saving, Future)
        saving.result()
        state = state_of(*sharded(3))
        load(state, CheckpointReader(folder))
        assert_same(state, expected)
    dist.barrier()
    state = state_of(*sharded(3))
    dcp.load(state, storage_reader=FileSystemReader(folder))
    assert_same(state, expected)


@check
def large_replicated_tensors_are_divided_among_the_ranks_and_every_reader_puts_them_together(folder: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    state: dict[str, Any] = {
        "large": values(3001, 1000),
        "one row": values(1, 2_000_000),
        "turned": values(700, 1500).t(),
        "small": values(10),
        "scalar": torch.tensor(2.5),
        "model": state_of(*sharded(1))["model"],
    }
    saved = save(store_in(folder), state, planner=BalancedSavePlanner())
    written = [file.size for file in saved.manifest.files if file.name.endswith(".distcp")]
    assert len(written) == 2
    assert max(written) <= 1.1 * sum(written) / 2
    for reader in (saved.reader(), FileSystemReader(folder / saved.save.folder.path)):
        loaded = {key: torch.zeros_like(value) for key, value in state.items() if key != "model"}
        loaded["model"] = state_of(*sharded(2))["model"]
        dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, state)


@check
def later_saves_are_planned_like_the_first_and_hold_their_own_values(folder: Path) -> None:
    decided: list[int] = []
    decide = global_plan._Decision.of

    def counted(plans: Any, options: Any) -> Any:
        decided.append(len(plans))
        return decide(plans, options)

    wrapped, optimizer = sharded(1)
    replicated = torch.zeros(64, 3)
    for step, dtype in ((1, torch.float32), (2, torch.float32), (3, torch.bfloat16), (4, torch.float32)):
        wrapped(torch.randn(4, 7)).sum().backward()
        optimizer.step()
        state = {**state_of(wrapped, optimizer), "whole": (replicated + step).to(dtype)}
        with mock.patch.object(global_plan._Decision, "of", counted):
            saved = save(store_in(folder), state, step, planner=BalancedSavePlanner())
        for reader in (saved.reader(), FileSystemReader(folder / saved.save.folder.path)):
            loaded = {**state_of(*sharded(2)), "whole": torch.zeros_like(state["whole"])}
            assert_different(loaded, state)
            dcp.load(loaded, storage_reader=reader)
            assert_same(loaded, state)
    assert decided == ([2, 2] if dist.get_rank() == 0 else []), "one for each dtype"


@check
def saving_in_a_background_thread(folder: Path) -> None:
    save_in_background(folder, AsyncCheckpointerType.THREAD)


@check
def saving_in_a_background_process(folder: Path) -> None:
    save_in_background(folder, AsyncCheckpointerType.PROCESS)


if __name__ == "__main__":
    check.main()
