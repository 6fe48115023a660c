"""Bytes read per byte needed: saved by so many ranks, loaded by so many others."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import llama
import playing
from processes import Result, serve
from sink import counts_of
from systems import Dcp, Server, system


def resharding(
    *, name: str, server: dict[str, str], keep_at: str, total_bytes: int, saved_by: int, loaded_by: int
) -> Result:
    """Every byte of every answer counts: of data, metadata, manifest and log."""
    tested = system(name, Server(**server), rank=0)
    assert isinstance(tested, Dcp)
    shapes = llama.shapes(total_bytes)

    def shards() -> llama.State:
        return llama.sharded(shapes, init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])

    def filled() -> llama.State:
        state = shards()
        llama.fill(state)
        return state

    planners = [DefaultSavePlanner() for _ in range(saved_by)]
    playing.save([tested.writer(keep_at) for _ in planners], planners, filled)
    before = counts_of(server["endpoint"])
    needed = playing.load([tested.reader(keep_at) for _ in range(loaded_by)], shards)
    read = (counts_of(server["endpoint"]) - before).sent
    return {"bytes": needed, "transferred_per_needed": read / needed}


if __name__ == "__main__":
    serve(resharding, with_group=False)
