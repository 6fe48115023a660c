"""``.metadata`` that is written from arrays is what the pickler would write."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from checkpoint_sidecar.exports.contents import read_contents
from checkpoint_sidecar.training.dcp import metadata_pickle
from checkpoint_sidecar.training.dcp.metadata_pickle import VERSION, metadata_bytes
from checkpoint_sidecar.training.dcp.unpickler import load_metadata
from support.inventories import inventory_of

_NUMBERS = st.integers(0, 5) | st.integers(2**31 - 2, 2**31 + 2) | st.just(2**62)
_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])


@st.composite
def tensors(draw: st.DrawFn) -> TensorStorageMetadata:
    dimensions = draw(st.integers(0, 5))
    shape = st.tuples(*[_NUMBERS] * dimensions).map(torch.Size)
    offsets = draw(st.lists(shape, max_size=4, unique=True))
    properties = TensorProperties(draw(_DTYPES), requires_grad=draw(st.booleans()), pin_memory=draw(st.booleans()))
    return TensorStorageMetadata(properties, draw(shape), [ChunkStorageMetadata(at, draw(shape)) for at in offsets])


@st.composite
def metadata(draw: st.DrawFn) -> Metadata:
    described = draw(st.dictionaries(st.text(max_size=6), tensors() | st.builds(BytesStorageMetadata), max_size=5))
    stored = {}
    for name, entry in described.items():
        chunks = entry.chunks if isinstance(entry, TensorStorageMetadata) else [None]
        for hint, chunk in enumerate(chunks):
            index = MetadataIndex(name, chunk.offsets, hint) if chunk else MetadataIndex(name)
            stored[index] = _StorageInfo(draw(st.sampled_from(["__0_0.distcp", "__1_0.distcp"])), *draw(_PLACE))
    paths = draw(st.none() | st.just({name: (name, 0, "a") for name in described}))
    return Metadata(described, paths, stored, StorageMeta("s3://bucket/run", "id"), VERSION)


_PLACE = st.tuples(_NUMBERS, _NUMBERS)


def parts(value: Metadata) -> Any:
    """Everything in it, the hints of indices too, which torch does not compare."""
    stored = {index: (index.index, place) for index, place in value.storage_data.items()}
    return value, stored, list(value.state_dict_metadata)


def pickled(value: Metadata, prefix: str = "") -> Metadata:
    made = pickle.loads(metadata_pickle._pickled(metadata_pickle._under(prefix, value)))
    assert isinstance(made, Metadata)
    return made


@settings(max_examples=60)
@given(metadata())
def test_arrays_and_the_pickler_write_the_same_metadata(value: Metadata) -> None:
    inventory = inventory_of(value)
    assert inventory is not None
    for prefix in ("", "0001-abcdefgh"):
        data, expected = metadata_bytes(value, inventory, prefix=prefix), pickled(value, prefix)
        assert parts(pickle.loads(data)) == parts(expected)
        assert parts(load_metadata(data, subject="it")) == parts(expected)
        assert pickle._Unpickler(io.BytesIO(data)).load() == expected


def of_one_tensor(ranks: int) -> Metadata:
    chunks = [ChunkStorageMetadata(torch.Size((rank * 4, 0)), torch.Size((4, 8))) for rank in range(ranks)]
    described: dict[str, Any] = {
        "weight": TensorStorageMetadata(TensorProperties(torch.float32), torch.Size((ranks * 4, 8)), chunks)
    }
    stored = {
        MetadataIndex("weight", chunk.offsets, rank): _StorageInfo(f"__{rank}_0.distcp", 0, 1000)
        for rank, chunk in enumerate(chunks)
    }
    return Metadata(described, None, stored, StorageMeta(), VERSION)


def test_an_export_reads_metadata_of_many_chunks() -> None:
    value = of_one_tensor(3000)
    contents = read_contents(metadata_bytes(value, inventory_of(value)), subject="it")
    assert len(contents.tensors["weight"].shards) == 3000


@pytest.mark.parametrize("planner_data", [{"weight": [1]}, {"weight": "path"}, [1], {3: ("a",)}])
def test_planner_data_of_another_planner_is_kept(planner_data: Any) -> None:
    value = of_one_tensor(2)
    value.planner_data = planner_data
    assert inventory_of(value) is None
    assert pickle.loads(metadata_bytes(value, None)) == value


def test_places_with_transforms_are_kept() -> None:
    value = of_one_tensor(2)
    index = next(iter(value.storage_data))
    value.storage_data[index] = _StorageInfo("__0_0.distcp", 0, 10, ["stream.zstd"])
    assert inventory_of(value) is None
    assert pickle.loads(metadata_bytes(value, None)) == value


def test_metadata_without_places_is_kept() -> None:
    assert pickle.loads(metadata_bytes(Metadata({}), None)) == Metadata({})
