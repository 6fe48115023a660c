"""The global plan on arrays is the one by items, for the tensors of real device meshes: each rank is played in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan, plan_bytes, with_storage_data
from checkpoint_sidecar.training.dcp.global_plan import global_plan
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner, balanced
from training.ranks import playing
from training.test_global_plan import by_items, outcome, sent, torchs_outcome

MakeState = Callable[[int], dict[str, Any]]
"""Makes the state of the rank that is played."""


def placed(full: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """The played rank's part of a tensor."""
    sizes, offsets = compute_local_shape_and_global_offset(full.shape, mesh, placements)
    local = full
    for dimension, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        local = local.narrow(dimension, offset if size else 0, size)
    return DTensor.from_local(local.clone(), mesh, placements, run_check=False, shape=full.shape, stride=full.stride())


def local_plans(ranks: int, make: MakeState) -> list[ArrayPlan]:
    plans = []
    for rank in range(ranks):
        with playing(rank, ranks):
            planner = BalancedSavePlanner()
            planner.set_up_planner(make(rank), None, is_coordinator=rank == 0)
            plan = planner.create_local_plan()
            assert isinstance(plan, ArrayPlan)
            plans.append(plan)
    return plans


def check(plans: list[ArrayPlan]) -> None:
    """Compare what is planned in every way."""
    assert outcome(lambda: BalancedSavePlanner().create_global_plan(sent(plans))) == by_items(plans)
    assert torchs_outcome(sent(plans)) == torchs_outcome(plans)
    divided = global_plan(sent(plans), least_bytes=1)
    if divided is not None:
        expected, _ = create_default_global_save_plan(balanced(list(plans), least_bytes=1))
        assert [plan.items for plan in divided.plans] == [plan.items for plan in expected]
        assert [plan.payload_bytes for plan in divided.plans] == [plan_bytes(plan) for plan in expected]
        returned = sent([with_storage_data(plan, rank) for rank, plan in enumerate(divided.plans)])
        for plan, own, given_back in zip(returned, plans, divided.plans, strict=True):
            assert plan.within(own).items == given_back.items


MESHES = [(2,), (3,), (4,), (2, 2), (2, 3), (4, 2)]
SHAPES = st.lists(st.integers(0, 9), max_size=3)
PLACEMENTS = st.sampled_from(["S0", "S1", "R"])


@settings(max_examples=40)
@given(st.data())
def test_tensors_placed_on_a_mesh(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(MESHES))
    ways = st.lists(PLACEMENTS, min_size=len(shape), max_size=len(shape))
    tensors = data.draw(st.lists(st.tuples(SHAPES, ways, st.sampled_from([torch.float32, torch.int8])), max_size=5))
    tied = data.draw(st.booleans())

    def state(_: int) -> dict[str, Any]:
        mesh = init_device_mesh("cpu", shape)
        made: dict[str, Any] = {"step": 3, "scalar": torch.tensor(0.5), "buffer": torch.arange(6.0)}
        for number, (sizes, way, dtype) in enumerate(tensors):
            full = torch.arange(torch.Size(sizes).numel()).reshape(sizes).to(dtype)
            made[f"tensor{number}"] = placed(full, mesh, [placement(each, len(sizes)) for each in way])
        if tensors and tied:
            made["tied"] = made["tensor0"]
        return made

    plans = local_plans(torch.Size(shape).numel(), state)
    check(plans)
    assert global_plan(plans) is not None or not all(torch.Size(sizes).numel() for sizes, _, _ in tensors)


def placement(way: str, dimensions: int) -> Placement:
    if way == "R" or dimensions <= int(way[1]):
        return Replicate()
    return Shard(int(way[1]))


class Model(nn.Module):
    """Layers of which some have an odd number of rows, a buffer, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.odd = nn.Linear(8, 5)
        self.tied = nn.Linear(8, 5)
        self.tied.weight = self.odd.weight
        self.register_buffer("seen", torch.zeros(()))


def saved(made: nn.Module, mesh: DeviceMesh) -> dict[str, Any]:
    """The state of a model, with values that are equal on all ranks: nothing is communicated when ranks are played."""
    state: dict[str, Any] = {}
    for name, value in made.state_dict().items():
        local = torch.zeros_like(value.to_local() if isinstance(value, DTensor) else value)
        state[name] = local
        if isinstance(value, DTensor):
            # Operators of DTensors cache the mesh of the rank that was played first.
            state[name] = placed(torch.zeros(value.shape), mesh, value.placements)
            assert state[name].to_local().shape == local.shape
    return state


def tensor_and_data_parallel(_: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    made = Model()
    parallelize_module(made, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(made, mesh=mesh["dp"])
    return saved(made, mesh)


def hybrid(_: int) -> dict[str, Any]:
    made = Model()
    mesh = init_device_mesh("cpu", (2, 3), mesh_dim_names=("replica", "shard"))
    fully_shard(made, mesh=mesh)
    return saved(made, mesh)


def stages(rank: int) -> dict[str, Any]:
    """Two pipeline stages, of two ranks each, with layers of their own."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    made = Model()
    fully_shard(made, mesh=mesh["dp"])
    return {f"stage{rank // 2}.{name}": value for name, value in saved(made, mesh["dp"]).items()}


def by_fsdp1(rank: int) -> dict[str, Any]:
    """Three ranks' shards of 7 and of 2 rows, as FSDP1 divides them: the last rank has one row, and none."""
    made = {}
    for name, rows in (("odd", 7), ("few", 2)):
        each = -(-rows // 3)
        places = [
            ShardMetadata([begin, 0], [min(each, rows - begin), 5], f"rank:{holder}/cpu")
            for holder, begin in enumerate(range(0, rows, each))
        ]
        whole = ShardedTensorMetadata(places, torch.Size((rows, 5)), TensorProperties(torch.float32))
        own = [LocalShard(torch.zeros(place.shard_sizes), place) for place in places[rank : rank + 1]]
        made[name] = ShardedTensor._init_from_local_shards_and_global_metadata(own, whole)
    return made


@pytest.mark.parametrize(("ranks", "make"), [(4, tensor_and_data_parallel), (6, hybrid), (4, stages), (3, by_fsdp1)])
def test_models_that_torch_has_parallelized(ranks: int, make: MakeState) -> None:
    plans = local_plans(ranks, make)
    assert global_plan(sent(plans)) is not None
    check(plans)


def values_that_differ(rank: int) -> dict[str, Any]:
    return {"whole": torch.full((4,), float(rank))}


def shapes_that_differ(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    return {"sharded": placed(torch.zeros(4 + 2 * rank, 3), mesh, [Shard(0)])}


def stages_of_one_name(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    return {"weight": placed(torch.full((4, 3), float(rank // 2)), mesh["dp"], [Shard(0)])}


@pytest.mark.parametrize(("ranks", "make"), [(2, values_that_differ), (2, shapes_that_differ), (4, stages_of_one_name)])
def test_what_is_refused_is_refused_in_the_same_words(ranks: int, make: MakeState) -> None:
    plans = local_plans(ranks, make)
    kind, text = outcome(lambda: BalancedSavePlanner().create_global_plan(sent(plans)))
    assert issubclass(kind, ConfigurationError | ValueError), text
    check(plans)
