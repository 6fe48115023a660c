"""A rank other than 0 needs little memory for the metadata of all: it holds the chunks of others as few numbers."""

from __future__ import annotations

import gc
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorProperties
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.metadata_index import with_index
from checkpoint_sidecar.training.dcp.array_plan import AssignedItems, AssignedPlan
from checkpoint_sidecar.training.dcp.index import encode
from checkpoint_sidecar.training.dcp.inventory import Inventory, TensorKind
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.receipts import Results
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner
from checkpoint_sidecar.training.dcp.saved_metadata import SavedMetadata
from doubles.memory import MemoryStore
from training.ranks import playing

RANKS, RANK, TENSORS = 64, 5, 3125
"""200,000 chunks."""

MOST_BYTES = 20_000_000
"""Measured: 8 to 15 million, as the allocator happens to reuse what was freed; as objects the chunks take 400."""
FOLDER = "step-100/0001-abcdefgh"


def shape(number: int) -> torch.Size:
    return torch.Size((RANKS * (1 + number % 7), 8 + number % 11))


def inventory(tensors: int) -> Inventory:
    """What is stored by all ranks: of each tensor, some rows by each rank."""
    shapes = np.array([shape(number) for number in range(tensors)])
    rows, columns = (np.repeat(each, RANKS) for each in (shapes[:, 0] // RANKS, shapes[:, 1]))
    rank = np.tile(np.arange(RANKS), tensors)
    length = rows * columns * 4 + 1600
    kinds = tuple(TensorKind(TensorProperties(torch.float32), shape(number)) for number in range(tensors))
    return Inventory(
        tuple(f"layers.{number}.weight" for number in range(tensors)),
        kinds,
        RANKS * np.arange(1, tensors + 1),
        np.column_stack([rank * rows, np.zeros_like(rows)]),
        np.column_stack([rows, columns]),
        {f"layers.{number}.weight": (f"layers.{number}.weight",) for number in range(tensors)},
        tuple(f"__{number}_0.distcp" for number in range(RANKS)),
        rank,
        (np.cumsum(length.reshape(tensors, RANKS), axis=0) - length.reshape(tensors, RANKS)).reshape(-1),
        length,
    )


def assigned(tensors: int) -> bytes:
    """What rank 0 sends back of a plan in a save: this rank writes all of its own."""
    zeros = np.zeros((tensors, 2), np.int64)
    items = AssignedItems(np.arange(tensors), zeros, zeros, zeros[:, 0], np.full(tensors, RANK))
    return pickle.dumps(AssignedPlan.of(items.packed(), None))


def address() -> bytes:
    metadata = Metadata({}, storage_data={})
    SavedMetadata.of(metadata, "s3://bucket/run", FOLDER, File(".metadata", 1, 0, b""))
    return pickle.dumps(metadata)


def from_rank_0(tensors: int) -> dict[str, bytes]:
    """What rank 0 sends in a save and a restore."""
    metadata = with_index(b"", encode(inventory(tensors)) or b"")
    return {"plan": assigned(tensors), "address": address(), "metadata": metadata}


def play(sizes: list[tuple[int, dict[str, bytes]]]) -> None:
    """Do what saves and restores ask of one rank besides its data, and print how much memory the last ones take."""
    grown = 0
    with playing(RANK, RANKS):
        for tensors, received in sizes:
            state = local_state(tensors)
            gc.collect()  # else it depends on chance what is collected while this is measured
            before = peak_from_here()
            save(state, received)
            restore(state, received)
            grown = peak() - before
    print(grown)


def local_state(tensors: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (RANKS,))
    state: dict[str, Any] = {}
    for number in range(tensors):
        rows, columns = shape(number)
        local = torch.zeros(rows // RANKS, columns)
        state[f"layers.{number}.weight"] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    return state


def save(state: dict[str, Any], received: dict[str, bytes]) -> None:
    planner = BalancedSavePlanner()
    planner.set_up_planner(state, None, is_coordinator=False)
    pickle.dumps(planner.create_local_plan())
    plan = planner.finish_plan(pickle.loads(received["plan"]))
    stored = [WriteResult(item.index, 1, _StorageInfo(f"__{RANK}_0.distcp", 0, 1)) for item in plan.items]
    pickle.dumps(Results(stored))
    pickle.loads(received["address"])


def restore(state: dict[str, Any], received: dict[str, bytes]) -> None:
    files = tuple(File(f"__{rank}_0.distcp", 1 << 40, 0, b"") for rank in range(RANKS))
    manifest = Manifest("step-100-abcdefgh", 100, 1, RANKS, files)
    all_ranks: Any = object()  # stands in for the process group
    reader = SnapshotReader(MemoryStore(), FOLDER, manifest, metadata=received["metadata"], sharing=all_ranks)
    planner = StrictLoadPlanner()
    planner.set_up_planner(state, reader.open(), is_coordinator=False)
    pickle.dumps(reader.prepare_local_plan(planner.create_local_plan()))


def peak_from_here() -> int:
    """Forget earlier peaks."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_rank_of_64_saves_and_restores_200_000_chunks_in_twenty_megabytes(tmp_path: Path) -> None:
    # A process of its own: a forked one would find the memory that its parent has left in pieces.
    received = tmp_path / "received"
    received.write_bytes(pickle.dumps([(70, from_rank_0(70)), (TENSORS, from_rank_0(TENSORS))]))
    command = [sys.executable, __file__, str(received)]
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert 0 < int(done.stdout) <= MOST_BYTES


if __name__ == "__main__":
    play(pickle.loads(Path(sys.argv[1]).read_bytes()))
