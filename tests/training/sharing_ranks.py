"""Real ranks over gloo that read for each other: every check of ``test_dcp_sharing``.

Run as ``python sharing_ranks.py <rank> <ranks> <folder>``; writes ``<folder>/result-<rank>.json``: errors by check.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.core.errors import CorruptSnapshotError, StoreError
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from doubles.counting import CountingStore
from doubles.targets import RecordingTarget, Saved
from training.ranks import Checks

check = Checks()


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_state() -> dict[str, Any]:
    """Two replicas, over half of the ranks each, and tensors that all have."""
    ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, ranks // 2))
    state: dict[str, Any] = {
        f"hybrid{number}": distribute_tensor(values(number, 256 * ranks, 1024), mesh, [Replicate(), Shard(0)])
        for number in range(2)
    }
    return state | {"whole": values(10, 700, 1000), "turned": values(11, 600, 1000).t(), "small": values(12, 1000)}


def blank() -> dict[str, Any]:
    return {key: torch.zeros_like(value) for key, value in a_state().items()}


def saved_in(folder: Path) -> Saved:
    target = RecordingTarget() if dist.get_rank() == 0 else None
    store = LocalStore(StoreSettings(f"file://{folder}"))
    dcp.save(a_state(), storage_writer=SnapshotWriter(store, target))
    box: list[tuple[NewSave, Manifest] | None] = [target.committed[0][:2]] if target else [None]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    return Saved(store, *box[0])


def load(saved: Saved, *, sharing: bool = True) -> dict[str, Any]:
    state = blank()
    reader = saved.reader(sharing=dist.group.WORLD if sharing else None)
    with raising_ours("load"):
        dcp.load(state, storage_reader=reader, planner=StrictLoadPlanner())
    return state


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def local(value: Any) -> torch.Tensor:
        return value.to_local() if isinstance(value, DTensor) else value

    return all(torch.equal(local(one[key]), local(other[key])) for key in one)


def read_by_all(saved: Saved, *, sharing: bool) -> int:
    """Bytes of data that all ranks together read in a load."""
    counting = CountingStore(saved.store)
    assert same(load(Saved(counting, saved.save, saved.manifest), sharing=sharing), a_state())
    own = sum(count for key, count in counting.read.items() if key.endswith(".distcp"))
    everybodys: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(everybodys, own)
    return sum(everybodys)


@check
def what_several_ranks_need_is_read_once_and_comes_to_all_of_them_bit_by_bit(folder: Path) -> None:
    saved = saved_in(folder)
    stored = sum(file.size for file in saved.manifest.files if file.name.endswith(".distcp"))
    once, each_for_itself = (read_by_all(saved, sharing=sharing) for sharing in (True, False))
    # A block that holds the end of one rank's item and the beginning of another's is read by both.
    assert once <= 1.2 * stored
    assert each_for_itself >= 1.9 * stored


class Failing(LocalStore):
    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        if key.endswith(".distcp"):
            raise StoreError("read", key, "503 from rank 1's store")
        super().read_into(key, start, buffers)


@check
def a_rank_that_cannot_read_makes_all_fail_at_once(folder: Path) -> None:
    saved = saved_in(folder)
    store = Failing(StoreSettings(f"file://{folder}")) if dist.get_rank() == 1 else saved.store
    began = time.monotonic()
    with pytest.raises(StoreError, match="rank 1's store"):
        load(Saved(store, saved.save, saved.manifest))
    assert time.monotonic() - began < 20


@check
def damage_that_one_rank_reads_is_known_to_all(folder: Path) -> None:
    saved = saved_in(folder)
    if dist.get_rank() == 0:
        path = folder / saved.data_key
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    dist.barrier()
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        load(saved)


@check
def ranks_that_need_nothing_alike_share_nothing(folder: Path) -> None:
    def shards() -> dict[str, Any]:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        return {"x": distribute_tensor(values(1, 1200, 1000), mesh, [Shard(0)])}

    target = RecordingTarget() if dist.get_rank() == 0 else None
    store = LocalStore(StoreSettings(f"file://{folder}"))
    dcp.save(shards(), storage_writer=SnapshotWriter(store, target))
    box: list[tuple[NewSave, Manifest] | None] = [target.committed[0][:2]] if target else [None]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    state = {"x": torch.zeros_like(shards()["x"])}
    dcp.load(state, storage_reader=Saved(store, *box[0]).reader(sharing=dist.group.WORLD))
    assert same(state, shards())


if __name__ == "__main__":
    check.main()
