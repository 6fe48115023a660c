"""The index in ``.metadata`` says what the pickle in front of it says, to our reader alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from crc32c import crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from checkpoint_sidecar.core.errors import CorruptSnapshotError
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.core.metadata_index import index_in, with_index, without_pickle
from checkpoint_sidecar.engine.checksums import block_checksums
from checkpoint_sidecar.training.dcp import reader
from checkpoint_sidecar.training.dcp.compatibility import check_complete, check_inventory
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter
from checkpoint_sidecar.training.dcp.index import decode, encode
from checkpoint_sidecar.training.dcp.indexed_metadata import IndexedMetadata
from checkpoint_sidecar.training.dcp.metadata_pickle import metadata_bytes
from checkpoint_sidecar.training.dcp.unpickler import load_metadata
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from doubles.targets import Saved, load, save
from support.inventories import inventory_of
from training.test_metadata_pickle import metadata, of_one_tensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def indexed(value: Metadata) -> IndexedMetadata:
    inventory = inventory_of(value)
    assert inventory is not None
    data = encode(inventory)
    assert data is not None
    return IndexedMetadata.of(decode(data, subject="it"), StorageMeta("s3://bucket/run"))


def weight(value: Metadata) -> TensorStorageMetadata:
    entry = value.state_dict_metadata["weight"]
    assert isinstance(entry, TensorStorageMetadata)
    return entry


@settings(max_examples=60)
@given(metadata())
def test_an_index_says_what_the_metadata_says(value: Metadata) -> None:
    found = indexed(value)
    assert found.state_dict_metadata == value.state_dict_metadata
    assert found.storage_data == value.storage_data
    assert {index: index.index for index in found.storage_data} == {index: index.index for index in value.storage_data}
    assert found.planner_data == value.planner_data
    for index, place in value.storage_data.items():
        assert found.storage_data[index] == place
        with pytest.raises(KeyError):
            found.storage_data[type(index)(index.fqn, (9, 9, 9, 9, 9, 9))]


_PLACES = st.integers(0, 6)


@given(st.lists(st.tuples(_PLACES, _PLACES, _PLACES, _PLACES), min_size=1, max_size=4))
def test_reads_are_planned_from_the_chunks_that_they_need(wanted: list[tuple[int, int, int, int]]) -> None:
    value = of_one_tensor(3)
    found = indexed(value)
    chunks = [ChunkStorageMetadata(torch.Size(each[:2]), torch.Size(each[2:])) for each in wanted]
    rows = found.contents.overlapping(0, chunks)
    needed = TensorStorageMetadata(*found.kind("weight"), found.contents.chunks(0, rows))
    for chunk in chunks:
        expected = create_read_items_for_chunk_list("weight", weight(value), [chunk])
        assert {*create_read_items_for_chunk_list("weight", needed, [chunk])} == {*expected}


@given(st.binary(max_size=200))
@example(b"")
def test_anything_else_is_no_index(data: bytes) -> None:
    with pytest.raises(CorruptSnapshotError, match="cannot be read"):
        decode(data, subject="it")


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_index_is_refused_or_says_something_else(data: st.DataObject) -> None:
    inventory = inventory_of(of_one_tensor(3))
    assert inventory is not None
    changed = bytearray(encode(inventory) or b"")
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(changed), subject="it")
    except CorruptSnapshotError:
        return
    IndexedMetadata.of(found, StorageMeta()).storage_data.items()


@pytest.mark.parametrize("lost", ["chunk", "file"])
def test_what_is_not_complete_is_refused_in_the_same_words(lost: str) -> None:
    value = of_one_tensor(3)
    if lost == "chunk":
        weight(value).chunks.pop()
        value.storage_data.popitem()
    sizes = {f"__{rank}_0.distcp": 1000 for rank in range(3 if lost == "chunk" else 2)}
    with pytest.raises(CorruptSnapshotError) as expected:
        check_complete(value, sizes, subject="it")
    with pytest.raises(CorruptSnapshotError) as found:
        check_inventory(indexed(value).contents, sizes, subject="it")
    assert str(found.value) == str(expected.value)


def test_a_layout_that_an_index_cannot_describe_has_none() -> None:
    value = of_one_tensor(1)
    weight(value).properties = TensorProperties(torch.float32, layout=torch.sparse_coo)
    inventory = inventory_of(value)
    assert inventory is not None
    assert encode(inventory) is None


def test_an_index_takes_few_bytes_for_a_chunk_and_the_name_of_its_file() -> None:
    inventory = inventory_of(of_one_tensor(20_000))
    assert inventory is not None
    assert len(encode(inventory) or b"") < 3 * 20_000


def test_the_index_is_found_behind_the_pickle_and_by_itself() -> None:
    pickled = pickle.dumps("metadata")
    data = with_index(pickled, b"an index")
    assert data.startswith(pickled)
    for end in (data, without_pickle(data)):
        assert bytes(index_in(end) or b"") == b"an index"
    assert len(without_pickle(data)) < 30
    for other in (pickled, b"", b"CKPTIDX1", b"\xff" * 8 + b"CKPTIDX1"):
        assert index_in(other) is None
        assert without_pickle(other) == other


def test_a_saved_snapshot_is_read_from_its_index_by_us_and_from_its_pickle_by_torch(tmp_path: Path) -> None:
    state: dict[str, Any] = {"weight": torch.arange(6.0).reshape(2, 3), "nested": {"step": 3}}
    dcp.save(state, storage_writer=CheckpointWriter(tmp_path))
    ours_reader = CheckpointReader(tmp_path)
    ours, torchs = ours_reader.read_metadata(), FileSystemReader(tmp_path).read_metadata()
    assert isinstance(ours, IndexedMetadata)
    assert type(torchs) is Metadata
    assert ours.state_dict_metadata == torchs.state_dict_metadata
    assert ours.planner_data == torchs.planner_data
    assert ours.storage_data.keys() == torchs.storage_data.keys()
    loaded: dict[str, Any] = {"weight": torch.zeros(2, 3), "nested": {"step": 0}}
    dcp.load(loaded, storage_reader=ours_reader, planner=dcp.DefaultLoadPlanner())
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["nested"] == {"step": 3}


@pytest.fixture(scope="module")
def large() -> Saved:
    """A save whose metadata is larger than what is read of it at first, and its index smaller."""
    return save(CountingStore(MemoryStore()), {f"parameter.{number}": torch.zeros(1) for number in range(3000)})


def bytes_read(saved: Saved) -> int:
    """Load some of it. Returns how much of its metadata was read."""
    assert isinstance(saved.store, CountingStore)
    saved.store.read.clear()
    state = {"parameter.7": torch.ones(1)}
    load(state, saved.reader())
    assert not state["parameter.7"].any()
    return saved.store.read[f"{saved.save.folder.path}/.metadata"]


def size_of_metadata(saved: Saved) -> int:
    file = saved.manifest.file(".metadata")
    assert file is not None
    return file.size


def changed(saved: Saved, data: bytes) -> Saved:
    """The same save with other metadata, of which the manifest knows."""
    name, store = ".metadata", CountingStore(MemoryStore())
    for file in saved.manifest.files:
        key = f"{saved.save.folder.path}/{file.name}"
        store.put(key, data if file.name == name else saved.store.get(key, max_bytes=file.size).data)
    block = saved.manifest.block_bytes
    sums = b"".join(each.to_bytes(4, "big") for each in block_checksums([data], block))
    files = [File(name, len(data), crc32c(data), sums) if file.name == name else file for file in saved.manifest.files]
    return Saved(store, saved.save, msgspec.structs.replace(saved.manifest, files=tuple(files)))


def metadata_of(saved: Saved) -> bytes:
    return saved.store.get(f"{saved.save.folder.path}/.metadata", max_bytes=1 << 30).data


def test_a_load_reads_the_end_of_large_metadata(large: Saved) -> None:
    blocks = 2 * large.manifest.block_bytes
    assert bytes_read(large) <= blocks < size_of_metadata(large)


def test_an_index_that_is_longer_than_expected_is_read_whole(large: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_END_BYTES", 100)
    assert bytes_read(large) <= 4 * large.manifest.block_bytes


def test_large_metadata_without_an_index_is_read_from_its_pickle(large: Saved) -> None:
    whole = metadata_of(large)
    bare = changed(large, whole[: -len(without_pickle(whole))])
    assert bytes_read(bare) >= size_of_metadata(bare)


def test_metadata_that_claims_a_longer_index_than_itself_has_none(large: Saved) -> None:
    whole = metadata_of(large)
    claiming = changed(large, whole[: -len(without_pickle(whole))] + (1 << 40).to_bytes(8, "little") + b"CKPTIDX1")
    assert bytes_read(claiming) >= size_of_metadata(claiming)


def test_damage_in_the_end_of_large_metadata_is_found(large: Saved) -> None:
    whole = bytearray(metadata_of(large))
    whole[-100] ^= 1
    damaged = changed(large, bytes(whole))
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        load({"parameter.7": torch.ones(1)}, Saved(damaged.store, large.save, large.manifest).reader())


def test_the_pickle_of_a_file_with_an_index_is_read_as_before() -> None:
    value = of_one_tensor(2)
    inventory = inventory_of(value)
    assert inventory is not None
    data = with_index(metadata_bytes(value, inventory), encode(inventory) or b"")
    assert load_metadata(data, subject="it").storage_data == value.storage_data
