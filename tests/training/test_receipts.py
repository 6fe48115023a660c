"""What a rank has stored travels as arrays, and says the same."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.training.dcp.receipts import FileLine, Receipts, Results, lines_of, stored_inventory

FILES = [File(f"__{rank}_0.distcp", 300, 7, b"\x00\x01\x02\xff") for rank in range(2)]


def results(rank: int) -> Results:
    """An object and a tensor of one rank, in an order that is not the plan's, and their file, half of it sent."""
    place = _StorageInfo(FILES[rank].name, 100, 200)
    found = [WriteResult(MetadataIndex("weight", (4 * rank, 0), rank), 200, place)]
    if rank == 0:
        found.append(WriteResult(MetadataIndex("step"), 100, _StorageInfo(FILES[0].name, 0, 100)))
    return Results([*found, WriteResult(MetadataIndex(FILES[rank].name), 150, FILES[rank])])


def planned() -> Metadata:
    chunks = [ChunkStorageMetadata(torch.Size((4 * rank, 0)), torch.Size((4, 8))) for rank in range(2)]
    weight = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size((8, 8)), chunks)
    return Metadata({"step": BytesStorageMetadata(), "weight": weight})


def test_results_arrive_as_they_were() -> None:
    for rank in range(2):
        received = pickle.loads(pickle.dumps(results(rank)))
        assert isinstance(received, Receipts)
        assert [(each, each.index.index) for each in received] == [(each, each.index.index) for each in results(rank)]
        assert list(lines_of(received)) == lines_of(results(rank)) == [FileLine(FILES[rank], 150)]


def test_a_thousand_results_take_a_few_thousand_bytes() -> None:
    name, length = "__0_0.distcp", 5000
    many = Results()
    for number in range(1000):
        place = _StorageInfo(name, number * length, length)
        many.append(WriteResult(MetadataIndex(f"layers.{number}.weight", (64, 0), 3), length, place))
    assert len(pickle.dumps(many)) < 5000 < len(pickle.dumps(list(many))) / 10


def test_places_find_their_chunks() -> None:
    inventory = stored_inventory(planned(), [pickle.loads(pickle.dumps(results(rank))) for rank in range(2)])
    assert inventory is not None
    assert [inventory.place(row) for row in range(3)] == [
        _StorageInfo(FILES[0].name, 0, 100),
        _StorageInfo(FILES[0].name, 100, 200),
        _StorageInfo(FILES[1].name, 100, 200),
    ]


@pytest.mark.parametrize(
    "other",
    [
        [Results(), Results()],
        [results(1), results(1)],
        [results(0), [replace(results(1)[0], index=MetadataIndex("weight", (5, 0), 1))]],
        [results(0), [replace(results(1)[0], index=MetadataIndex("weight", (4, 0), 2))]],
        [results(0), [replace(results(1)[0], index=MetadataIndex("weight", (4, 0)))]],
        [results(0), [replace(results(1)[0], index=MetadataIndex("other", (4, 0), 0))]],
        [results(0), [replace(results(1)[0], storage_data=("anything",))]],
        [results(0), [replace(results(1)[0], storage_data=_StorageInfo("a", 0, 1, ["stream.zstd"]))]],
    ],
)
def test_places_of_something_else_have_no_inventory(other: list[Results]) -> None:
    assert stored_inventory(planned(), other) is None


def test_a_rank_may_store_nothing() -> None:
    received = pickle.loads(pickle.dumps(Results()))
    assert list(received) == list(lines_of(received)) == []
    assert stored_inventory(planned(), [results(0), results(1), received]) is not None
    assert stored_inventory(Metadata({}), [received]) is not None


def test_results_of_another_form_travel_as_they_are() -> None:
    other = Results([replace(results(1)[0], storage_data=("anything",))])
    assert pickle.loads(pickle.dumps(other)) == other
