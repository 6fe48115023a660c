"""What planning a save costs, and how evenly it spreads the bytes of replicated shards over the ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import llama
import playing
from processes import Result, serve
from runs import OURS
from systems import Dcp, Server, system

REPLICAS, SHARDS = 2, 4


def planning(*, name: str, server: dict[str, str], url: str, tensors: int, total_bytes: int) -> Result:
    """Args:
    tensors: How many small ones are planned on one rank.
    total_bytes: Of a model that is sharded over ``SHARDS`` ranks and replicated ``REPLICAS`` times (HSDP).
    """
    tested = system(name, Server(**server), rank=0)
    assert isinstance(tested, Dcp)
    planner = _planner(name)

    def seconds(count: int) -> float:
        state = llama.whole(llama.small_shapes(count))
        writer = tested.writer(f"{url}/{count}")
        began = time.perf_counter()
        playing.plan_save([writer], [planner()], lambda: state)
        return time.perf_counter() - began

    # What a save costs however few tensors it has is in both of them.
    few = min(seconds(tensors // 10) for _ in range(3))
    many = min(seconds(tensors) for _ in range(3))

    def shards() -> llama.State:
        mesh = init_device_mesh("cpu", (REPLICAS, SHARDS), mesh_dim_names=("replicate", "shard"))
        state = llama.sharded(llama.shapes(total_bytes), mesh, [Replicate(), Shard(0)])
        llama.clear(state)  # replicas that hold what the memory held before are refused
        return state

    ranks = range(REPLICAS * SHARDS)
    plans, _ = playing.plan_save([tested.writer(f"{url}/hsdp") for _ in ranks], [planner() for _ in ranks], shards)
    written = [_bytes(plan) for plan in plans]
    return {
        "planning_s_per_1000_tensors": (many - few) / (tensors - tensors // 10) * 1000,
        "hsdp_max_per_mean": max(written) / (sum(written) / len(written)),
    }


def _planner(name: str) -> Callable[[], SavePlanner]:
    if name == OURS:
        from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner

        return BalancedSavePlanner
    return DefaultSavePlanner


def _bytes(plan: SavePlan) -> int:
    return sum(
        torch.Size(item.tensor_data.chunk.sizes).numel() * item.tensor_data.properties.dtype.itemsize
        for item in plan.items
        if item.tensor_data is not None
    )


if __name__ == "__main__":
    serve(planning, with_group=False)
