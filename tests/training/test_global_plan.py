"""The global plan on arrays is the one that torch's own planner and the way by items make."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from checkpoint_sidecar.training.dcp import save_planner
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan, plan_bytes, with_storage_data
from checkpoint_sidecar.training.dcp.global_plan import global_plan
from checkpoint_sidecar.training.dcp.inventory import PlannedMetadata
from checkpoint_sidecar.training.dcp.replicas import Holding, Kind
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner, balanced

Held: TypeAlias = tuple[WriteItem, Holding] | None

DTYPES = [torch.float32, torch.bfloat16, torch.int8]


@st.composite
def tensors(draw: st.DrawFn, ranks: int) -> list[Held]:
    """One name on all ranks: whole, sharded over one or two dimensions, over replicas, or on some ranks only."""
    number = draw(st.integers(0, 10_000))
    name = f"layer.{number}"
    shape = draw(st.lists(st.integers(0, 7), max_size=3))
    properties = TensorProperties(draw(st.sampled_from(DTYPES)), requires_grad=draw(st.booleans()))
    way = draw(st.sampled_from(["object", "whole", "sharded", "some ranks", "damaged", "changed"]))
    digest = draw(st.none() | st.integers(0, 2**64 - 1))
    buffers = draw(st.sampled_from(["", "", "norm"]))
    if way == "object":
        held = WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO), Holding(Kind.OBJECT, digest)
        return [held] * ranks
    if way == "whole" or not shape:
        whole, holding = item(name, properties, shape, [0] * len(shape), shape, Kind.TENSOR, digest)
        everywhere: list[Held] = [(whole, holding._replace(buffers_of=buffers))] * ranks
        return changed(draw, everywhere) if way == "changed" else everywhere
    grid = draw(
        st.sampled_from([(a, b) for a in range(1, ranks + 1) for b in range(1, ranks + 1) if ranks % (a * b) == 0])
    )
    dimensions = draw(st.permutations(range(len(shape))))[:2]
    found: list[Held] = []
    for rank in range(ranks):
        offsets, sizes = [0] * len(shape), list(shape)
        place = rank
        for dimension, parts in zip(dimensions, grid, strict=False):
            place, own = divmod(place, parts)
            offsets[dimension], sizes[dimension] = shard(shape[dimension], parts, own)
        found.append(item(name, properties, shape, offsets, sizes, Kind.SHARD, digest, mesh=7))
    if way == "some ranks":
        # As FSDP1 does with tensors that have fewer rows than there are ranks.
        found = [None if each and not each[0].tensor_data.chunk.sizes.numel() else each for each in found]  # type: ignore[union-attr]
    if way == "damaged":
        found[draw(st.integers(0, ranks - 1))] = draw(others(name, properties, shape, digest))
    return changed(draw, found) if way == "changed" else found


def changed(draw: st.DrawFn, found: list[Held]) -> list[Held]:
    """The same with one thing different on one rank."""
    rank = draw(st.integers(0, len(found) - 1))
    here = found[rank]
    assert here is not None
    (held, holding), changes = here, draw(st.sampled_from(["digest", "mesh", "buffers", "divisible", "sizes"]))
    if changes == "digest":
        holding = holding._replace(digest=draw(st.none() | st.just(1)))
    elif changes == "mesh":
        holding = holding._replace(mesh=8)
    elif changes == "buffers":
        holding = holding._replace(buffers_of="other")
    elif changes == "divisible":
        holding = holding._replace(divisible=False)
    elif held.tensor_data is not None:
        data = held.tensor_data
        chunk = ChunkStorageMetadata(data.chunk.offsets, torch.Size([size + 1 for size in data.chunk.sizes]))
        held = replace(held, tensor_data=replace(data, chunk=chunk))
    return [*found[:rank], (held, holding), *found[rank + 1 :]]


@st.composite
def others(draw: st.DrawFn, name: str, properties: TensorProperties, shape: list[int], digest: int | None) -> Held:
    """What one rank holds differently."""
    numbers = st.tuples(*[st.integers(0, 8)] * len(shape)).map(list)
    return draw(
        st.none()
        | st.just((WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO), Holding(Kind.OBJECT, digest)))
        | st.builds(
            item,
            st.just(name),
            st.just(properties) | st.just(TensorProperties(torch.int64)),
            st.just(shape) | numbers,
            numbers,
            numbers,
            st.sampled_from([Kind.SHARD, Kind.TENSOR]),
            st.just(digest) | st.just(1),
            st.sampled_from([7, 8]),
        )
    )


def shard(length: int, parts: int, number: int) -> tuple[int, int]:
    """Offset and length of a shard, as DTensor places it: uneven, and empty at the end."""
    each = -(-length // parts)
    start = min(number * each, length)
    return start, min(each, length - start)


def item(
    name: str,
    properties: TensorProperties,
    shape: Sequence[int],
    offsets: Sequence[int],
    sizes: Sequence[int],
    kind: Kind,
    digest: int | None,
    mesh: int = 0,
) -> tuple[WriteItem, Holding]:
    chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    form = WriteItemType.SHARD if kind is Kind.SHARD else WriteItemType.TENSOR
    data = TensorWriteData(chunk, properties, torch.Size(shape))
    return WriteItem(MetadataIndex(name, chunk.offsets), form, tensor_data=data), Holding(
        kind, digest, divisible=True, mesh=mesh
    )


@st.composite
def all_plans(draw: st.DrawFn) -> list[ArrayPlan]:
    ranks = draw(st.integers(1, 6))
    items = draw(st.lists(tensors(ranks), max_size=6))
    plans = []
    for rank in range(ranks):
        own = [each[rank] for each in items if each[rank] is not None]
        paths = {held[0].index.fqn: tuple(held[0].index.fqn.split(".")) for held in own if held}
        plan = SavePlan([held[0] for held in own if held], planner_data=paths)
        plans.append(ArrayPlan.of(plan, tuple(held[1] for held in own if held), seed=3))
    return plans


def outcome(make: Callable[[], tuple[list[SavePlan], Metadata]]) -> Any:
    """Everything about a global plan; in place of it, what was refused."""
    try:
        plans, metadata = make()
    except Exception as error:  # noqa: BLE001 - torch raises several kinds
        return type(error), str(error)
    hints = [[each.index.index for each in plan.items] for plan in plans]
    fields = metadata.state_dict_metadata, metadata.planner_data
    return [plan.items for plan in plans], hints, fields, list(metadata.state_dict_metadata)


def sent(plans: Sequence[SavePlan]) -> list[Any]:
    return [pickle.loads(pickle.dumps(plan)) for plan in plans]


def torchs_outcome(plans: Sequence[SavePlan]) -> Any:
    """What torch's own planner makes of plans by their items."""
    plain = [SavePlan(plan.items, planner_data=plan.planner_data) for plan in plans]
    return outcome(lambda: DefaultSavePlanner().create_global_plan(plain))


def by_items(plans: list[ArrayPlan]) -> Any:
    with mock.patch.object(save_planner, "global_plan", return_value=None):
        return outcome(lambda: BalancedSavePlanner().create_global_plan(list(plans)))


@given(all_plans())
def test_a_plan_that_was_sent_is_the_plan(plans: list[ArrayPlan]) -> None:
    for plan, received in zip(plans, sent(plans), strict=True):
        assert "items" not in vars(received)
        assert received.items == plan.items
        assert received.holdings == plan.holdings
        assert (received.planner_data, received.usable, received.seed) == (plan.planner_data, True, 3)


@settings(max_examples=300)
@given(all_plans())
def test_plans_metadata_and_refusals_are_those_of_the_way_by_items(plans: list[ArrayPlan]) -> None:
    assert outcome(lambda: BalancedSavePlanner().create_global_plan(sent(plans))) == by_items(plans)


@settings(max_examples=200)
@given(all_plans())
def test_replicas_are_divided_as_by_items(plans: list[ArrayPlan]) -> None:
    found = global_plan(sent(plans), least_bytes=1)
    if found is not None:
        expected, metadata = create_default_global_save_plan(balanced(list(plans), least_bytes=1))
        assert [plan.items for plan in found.plans] == [plan.items for plan in expected]
        assert PlannedMetadata.of(found.contents).state_dict_metadata == metadata.state_dict_metadata
        assert [plan.payload_bytes for plan in found.plans] == [plan_bytes(plan) for plan in expected]


@given(all_plans())
def test_a_rank_gets_back_what_it_writes(plans: list[ArrayPlan]) -> None:
    found = global_plan(plans, least_bytes=1)
    if found is not None:
        returned = sent([with_storage_data(plan, rank) for rank, plan in enumerate(found.plans)])
        for rank, (plan, own, given) in enumerate(zip(returned, plans, found.plans, strict=True)):
            assert plan.within(own).items == given.items
            assert plan.storage_data == rank


@given(all_plans())
def test_torchs_own_planner_plans_the_same(plans: list[ArrayPlan]) -> None:
    assert torchs_outcome(sent(plans)) == torchs_outcome(plans)


def test_the_usual_ways_to_shard_are_planned_on_arrays() -> None:
    usual = 0
    total = 100

    @settings(max_examples=total, database=None)
    @given(all_plans())
    def count(plans: list[ArrayPlan]) -> None:
        nonlocal usual
        usual += global_plan(plans) is not None

    count()
    assert usual > total / 3
