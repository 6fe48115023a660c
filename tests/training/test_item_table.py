"""What the items of a plan are arrives as it was, in few bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import TensorProperties
from torch.distributed.checkpoint.planner import WriteItemType

from checkpoint_sidecar.training.dcp.columns import pack_texts, pack_values, unpack_texts, unpack_values
from checkpoint_sidecar.training.dcp.inventory import TensorKind
from checkpoint_sidecar.training.dcp.item_table import ItemTable, PackedPaths
from checkpoint_sidecar.training.dcp.replicas import Holding, Kind

NUMBERED = st.from_regex(r"(layer|\.|0|12|\n|\0|é|٣|\ud800)*", fullmatch=True)
TEXTS = st.lists(st.text() | NUMBERED | st.integers(0, 10**25).map("layers.{}.weight".format))
PARTS = st.text() | NUMBERED | st.integers(-(10**20), 10**20)


@given(TEXTS)
def test_any_texts_arrive_as_they_were(texts: list[str]) -> None:
    assert unpack_texts(pack_texts(texts)) == tuple(texts)


@pytest.mark.parametrize("numbers", [32, 33, 1000])
def test_a_text_may_contain_any_number_of_numbers(numbers: int) -> None:
    texts = ("layers.7.weight", ",".join(map(str, range(numbers))), "bias")
    assert unpack_texts(pack_texts(texts)) == texts


@given(st.lists(st.none() | st.integers() | st.tuples(st.text(max_size=1), st.booleans())))
def test_any_values_arrive_as_they_were(values: list[Any]) -> None:
    arrived = unpack_values(pack_values(values))
    assert [(type(value), value) for value in arrived] == [(type(value), value) for value in values]


@given(st.lists(st.lists(PARTS, min_size=1).map(tuple)), st.booleans())
def test_paths_arrive_as_they_were(paths: list[tuple[str | int, ...]], own: bool) -> None:
    data = {".".join(map(str, path)): path for path in paths}
    names = tuple(data) if own else ("another",)
    packed = PackedPaths.of(data, names)
    assert packed is not None
    assert (packed.names is None) == own or not data
    arrived = packed.unpacked(names)
    assert list(arrived.items()) == list(data.items())
    assert [[*map(type, path)] for path in arrived.values()] == [[*map(type, path)] for path in data.values()]


@pytest.mark.parametrize(
    "data",
    [None, {}, {"a.b": ("a", "c")}, {"a": ["a"]}, {"a.True": ("a", True)}, {1: ("1",)}, "anything", {"é": ("é",)}],
)
def test_planner_data_of_any_kind_arrives_as_it_was(data: Any) -> None:
    table = ItemTable(("a",), (WriteItemType.BYTE_IO,), (None,), (), data)
    arrived = ItemTable.unpacked(table.packed())
    assert arrived == table
    assert type(arrived.planner_data) is type(data)


def test_ranks_that_send_the_same_share_one_table() -> None:
    table = ItemTable(("a",), (WriteItemType.BYTE_IO,), (None,), (), None)
    assert ItemTable.unpacked(table.packed()) is ItemTable.unpacked(table.packed())


def test_a_tensor_of_a_model_takes_less_than_two_bytes() -> None:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
    names = tuple(f"model.layers.{layer}.{part}.weight" for layer in range(200) for part in parts)
    kinds = tuple(TensorKind(TensorProperties(torch.bfloat16), torch.Size((64, len(name) % 5))) for name in names)
    holdings = (Holding(Kind.SHARD, divisible=True, mesh=7),) * len(names)
    paths = {name: ("model", name.removeprefix("model.")) for name in names}
    assert len(ItemTable(names, (WriteItemType.SHARD,) * len(names), kinds, holdings, paths).packed()) < 2 * len(names)
