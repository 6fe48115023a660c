"""Damage and misfits are found before a tensor is written, named, and told apart."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from checkpoint_sidecar.core.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    StoreError,
    UntrustedSnapshotError,
)
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.manifest import digest, encode
from checkpoint_sidecar.engine.boxes import tiles
from checkpoint_sidecar.engine.upload import upload_bytes
from checkpoint_sidecar.engine.verify import read_manifest, verify_snapshot
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from doubles.memory import MemoryStore
from doubles.targets import Saved, load, save

ELEMENTS = 3 * 1024 * 1024
"""12 MiB: three blocks."""


def a_state() -> dict[str, Any]:
    return {"first": torch.ones(10), "second": torch.ones(ELEMENTS), "name": "run"}


def a_save(**extra: Any) -> Saved:
    return save(MemoryStore(), {**a_state(), **extra})


def destination() -> dict[str, Any]:
    return {"first": torch.zeros(10), "second": torch.zeros(ELEMENTS), "name": ""}


def untouched(state: dict[str, Any]) -> bool:
    return not state["first"].any() and not state["second"].any() and state["name"] == ""


def commit_of(saved: Saved) -> SnapshotCommitted:
    return SnapshotCommitted(
        snapshot=saved.save.snapshot,
        step=saved.save.step,
        attempt=1,
        path=saved.save.folder.path,
        manifest_digest=digest(bytes(bytes_of(saved, saved.save.folder.manifest))),
        bytes=saved.manifest.size,
        files=len(saved.manifest.files),
        world_size=1,
    )


def bytes_of(saved: Saved, key: str) -> bytearray:
    return bytearray(saved.store.get(key, max_bytes=10**8).data)


def rewrite_metadata(saved: Saved, change: Callable[[Metadata], None]) -> Saved:
    """The same save as if it had been committed with other metadata: the manifest agrees with it."""
    key = saved.save.folder.metadata
    metadata = pickle.loads(bytes(bytes_of(saved, key)))
    change(metadata)
    return with_metadata(saved, pickle.dumps(metadata))


def with_metadata(saved: Saved, data: bytes) -> Saved:
    key = saved.save.folder.metadata
    file = upload_bytes(saved.store, key, data, block_bytes=saved.manifest.block_bytes)
    files = tuple(file if old.name == METADATA_NAME else old for old in saved.manifest.files)
    return Saved(saved.store, saved.save, msgspec.structs.replace(saved.manifest, files=files))


def memory_of(saved: Saved) -> MemoryStore:
    assert isinstance(saved.store, MemoryStore)
    return saved.store


def flip_a_bit(saved: Saved) -> None:
    data = bytes_of(saved, saved.data_key)
    data[len(data) // 2] ^= 1
    memory_of(saved).corrupt(saved.data_key, data)


def cut_the_end(saved: Saved) -> None:
    memory_of(saved).corrupt(saved.data_key, bytes_of(saved, saved.data_key)[:-100])


def delete_the_data(saved: Saved) -> None:
    saved.store.delete([saved.data_key])


def change_the_metadata(saved: Saved) -> None:
    data = bytes_of(saved, saved.save.folder.metadata)
    data[-5] ^= 1
    memory_of(saved).corrupt(saved.save.folder.metadata, data)


def delete_the_metadata(saved: Saved) -> None:
    saved.store.delete([saved.save.folder.metadata])


def swap_in_another_saves_metadata(saved: Saved) -> None:
    other = a_save(third=torch.ones(3))
    memory_of(saved).corrupt(saved.save.folder.metadata, bytes_of(other, other.save.folder.metadata))


def swap_in_another_saves_data(saved: Saved) -> None:
    other = save(MemoryStore(), {"first": torch.zeros(10), "second": torch.zeros(ELEMENTS), "name": "run"})
    data = bytes_of(other, other.data_key)
    assert len(data) == len(bytes_of(saved, saved.data_key))
    memory_of(saved).corrupt(saved.data_key, data)


DAMAGES = [
    pytest.param(flip_a_bit, "ChecksumMismatch", ".distcp", id="a flipped bit"),
    pytest.param(cut_the_end, "SizeMismatch", ".distcp", id="a cut file"),
    pytest.param(delete_the_data, "MissingObject", ".distcp", id="a missing file"),
    pytest.param(swap_in_another_saves_data, "ChecksumMismatch", ".distcp", id="the data of another save"),
    pytest.param(change_the_metadata, "ChecksumMismatch", ".metadata", id="changed metadata"),
    pytest.param(delete_the_metadata, "MissingObject", ".metadata", id="missing metadata"),
    pytest.param(swap_in_another_saves_metadata, "SizeMismatch", ".metadata", id="metadata of another save"),
]


DAMAGES_INSIDE = (flip_a_bit, swap_in_another_saves_data)
"""They show only where the data is read: the size is right."""


@pytest.mark.parametrize(("damage", "evidence", "named"), DAMAGES)
def test_damage_is_found_and_the_damaged_object_named(
    damage: Callable[[Saved], None], evidence: str, named: str
) -> None:
    saved = a_save()
    damage(saved)
    with pytest.raises(CorruptSnapshotError) as caught:
        load(destination(), saved.reader())
    assert caught.value.evidence == evidence
    assert named in caught.value.subject


@pytest.mark.parametrize(
    ("damage", "evidence", "named"), [damage for damage in DAMAGES if damage.values[0] not in DAMAGES_INSIDE]
)
def test_damage_that_shows_without_reading_data_leaves_every_tensor_alone(
    damage: Callable[[Saved], None], evidence: str, named: str
) -> None:
    saved, state = a_save(), destination()
    damage(saved)
    with pytest.raises(CorruptSnapshotError):
        load(state, saved.reader())
    assert untouched(state)


def test_damaged_bytes_are_never_reported_to_the_planner_as_loaded() -> None:
    class Recording(StrictLoadPlanner):
        committed = 0

        def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
            self.committed += 1
            super().commit_tensor(read_item, tensor)

    saved, planner = a_save(), Recording()
    load(destination(), saved.reader(), planner=planner)
    assert planner.committed == 2
    flip_a_bit(saved)
    with pytest.raises(CorruptSnapshotError):
        load(destination(), saved.reader(), planner=planner)
    assert planner.committed == 2


def test_a_flipped_bit_gets_through_only_when_checksums_are_switched_off() -> None:
    saved, state = a_save(), destination()
    flip_a_bit(saved)
    load(state, saved.reader(verify="Sizes"))
    assert not torch.equal(state["second"], torch.ones(ELEMENTS))


@pytest.mark.parametrize(("damage", "evidence", "named"), DAMAGES)
def test_verification_without_restoring_finds_the_same(
    damage: Callable[[Saved], None], evidence: str, named: str
) -> None:
    saved = a_save()
    commit = commit_of(saved)
    assert verify_snapshot(saved.store, commit, level="Checksums") == saved.manifest.size
    damage(saved)
    with pytest.raises(CorruptSnapshotError) as caught:
        verify_snapshot(saved.store, commit, level="Checksums")
    assert caught.value.evidence == evidence
    assert named in caught.value.subject


def test_a_manifest_changed_to_agree_with_changed_data_is_refused() -> None:
    saved = a_save()
    commit = commit_of(saved)
    flip_a_bit(saved)
    data = bytes(bytes_of(saved, saved.data_key))
    file = upload_bytes(MemoryStore(), "__0_0.distcp", data, block_bytes=saved.manifest.block_bytes)
    files = tuple(file if old.name == file.name else old for old in saved.manifest.files)
    forged = msgspec.structs.replace(saved.manifest, files=files)
    load(destination(), Saved(saved.store, saved.save, forged).reader())
    memory_of(saved).corrupt(saved.save.folder.manifest, encode(forged))
    with pytest.raises(CorruptSnapshotError, match="SHA-256") as caught:
        verify_snapshot(saved.store, commit, level="None")
    assert caught.value.evidence == "ManifestMismatch"


def test_a_manifest_of_terabytes_is_refused_without_being_read(tmp_path: Path) -> None:
    saved = save(open_store(StoreSettings(f"file://{tmp_path}")), {"x": torch.ones(3)})
    commit = commit_of(saved)
    os.truncate(tmp_path / saved.save.folder.manifest, 2**42)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptSnapshotError, match="more than") as caught:
            read_manifest(saved.store, commit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.evidence == "ManifestMismatch"
    assert peak < 1_000_000, "bytes allocated"


def test_a_store_that_fails_is_no_evidence_against_the_snapshot() -> None:
    class Failing(MemoryStore):
        failing = False

        def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
            if self.failing:
                raise StoreError("read", key, "503 Slow Down")
            super().read_into(key, start, buffers)

    store = Failing()
    saved = save(store, {"x": torch.ones(3)})
    store.failing = True
    with pytest.raises(StoreError, match="Slow Down"):
        load({"x": torch.zeros(3)}, saved.reader())


def halve(metadata: Metadata) -> None:
    second = metadata.state_dict_metadata["second"]
    assert isinstance(second, TensorStorageMetadata)
    second.chunks = [ChunkStorageMetadata(torch.Size([0]), torch.Size([ELEMENTS // 2]))]


def forget_where_it_is(metadata: Metadata) -> None:
    metadata.storage_data = {index: place for index, place in metadata.storage_data.items() if index.fqn != "second"}


def point_into_another_folder(metadata: Metadata) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = "../0001-aaaaaaaa/__0_0.distcp"


def point_behind_the_end(metadata: Metadata) -> None:
    for place in metadata.storage_data.values():
        place.offset += 10**9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(halve, "second do not cover its shape", id="half of a tensor"),
        pytest.param(forget_where_it_is, "second .* was never stored", id="a tensor that was never stored"),
        pytest.param(point_into_another_folder, "outside the checkpoint", id="a path out of the folder"),
        pytest.param(point_behind_the_end, "no room", id="an offset behind the end of the file"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_before_anything_is_loaded(
    change: Callable[[Metadata], None], message: str
) -> None:
    saved, state = rewrite_metadata(a_save(), change), destination()
    with pytest.raises(CorruptSnapshotError, match=message):
        load(state, saved.reader(), planner=dcp.DefaultLoadPlanner())
    assert untouched(state)


def test_half_of_a_tensor_is_noticed_in_a_checkpoint_that_torch_saved(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        dcp.save(a_state(), storage_writer=dcp.FileSystemWriter(tmp_path))
    metadata = pickle.loads((tmp_path / METADATA_NAME).read_bytes())
    halve(metadata)
    (tmp_path / METADATA_NAME).write_bytes(pickle.dumps(metadata))
    state = destination()
    with pytest.raises(CorruptSnapshotError, match="second do not cover its shape"):
        load(state, SnapshotReader(open_store(StoreSettings(f"file://{tmp_path}")), "", None))
    assert untouched(state)


MISFITS = [
    pytest.param({"second": torch.zeros(ELEMENTS, dtype=torch.int8)}, r"float32 .*torch\.int8", id="another dtype"),
    pytest.param({"second": torch.zeros(5)}, "(?i)size mismatch .* second", id="another shape"),
    pytest.param({"third": torch.zeros(5)}, "Missing key .* third", id="a tensor that was not saved"),
    pytest.param({"name": torch.zeros(5)}, "name was saved as an object", id="a tensor that was saved as an object"),
    pytest.param({"second": "text"}, "second", id="an object that was saved as a tensor"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_a_misfit_is_refused_before_anything_is_loaded(change: dict[str, Any], message: str) -> None:
    saved, state = a_save(), destination()
    with pytest.raises(IncompatibleSnapshotError, match=message):
        load({**state, **change}, saved.reader())
    assert untouched(state)


def test_torchs_default_planner_does_not_cast_silently_either() -> None:
    saved, state = a_save(), destination()
    state["second"] = state["second"].to(torch.int8)
    with pytest.raises(IncompatibleSnapshotError, match="float32"):
        load(state, saved.reader(), planner=dcp.DefaultLoadPlanner())
    assert untouched(state)


class Exploit:
    """What an attacker would put into a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os; os.environ['CHECKPOINT_EXPLOITED'] = '1'",)


@pytest.fixture
def exploited(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    monkeypatch.delenv("CHECKPOINT_EXPLOITED", raising=False)
    return lambda: os.environ.pop("CHECKPOINT_EXPLOITED", "") == "1"


def metadata_holding(thing: object) -> bytes:
    return pickle.dumps(Metadata({}, planner_data={"x": thing}))


class Dotted:
    """Reaches for the globals of an allowed class through a dotted name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (torch.Size, "numel")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        pytest.param(metadata_holding(Exploit()), "builtins.exec", id="code"),
        pytest.param(metadata_holding(os.system), "posix.system", id="a function of a foreign module"),
        pytest.param(b"\x80\x04\x8c\x05torch\x8c\x0dSize.__init__\x93.", r"torch\.Size\.__init__", id="a dotted name"),
        pytest.param(b"ctorch\nload\n(S'x'\ntR.", r"torch\.load", id="a function of torch"),
        pytest.param(metadata_holding(Dotted()), "builtins.getattr", id="getattr on an allowed class"),
    ],
)
def test_malicious_metadata_executes_nothing_and_names_what_it_wanted(
    data: bytes, named: str, exploited: Callable[[], bool]
) -> None:
    saved = with_metadata(a_save(), data)
    with pytest.raises(UntrustedSnapshotError, match=named) as caught:
        load(destination(), saved.reader())
    assert 'trust="full"' in str(caught.value)
    assert not exploited()


def test_the_exploit_works_where_everything_is_trusted(exploited: Callable[[], bool]) -> None:
    """Or the tests above would prove nothing."""
    saved = with_metadata(a_save(), metadata_holding(Exploit()))
    with pytest.raises(CheckpointError):
        load(destination(), saved.reader(trust="full"))
    assert exploited()


def test_a_malicious_object_executes_nothing(exploited: Callable[[], bool]) -> None:
    saved = a_save(thing=Exploit())
    with pytest.raises(UntrustedSnapshotError, match="thing"):
        load({**destination(), "thing": None}, saved.reader())
    assert not exploited()
    load({**destination(), "thing": None}, saved.reader(trust="full"))
    assert exploited()


@pytest.mark.parametrize(
    "data", [b"", b"not a pickle", pickle.dumps({"x": 1})], ids=["nothing", "text", "a pickle of something else"]
)
def test_what_is_no_metadata_is_called_that(data: bytes) -> None:
    store = MemoryStore()
    store.put(METADATA_NAME, data)
    with pytest.raises(CorruptSnapshotError, match="metadata"):
        load(destination(), SnapshotReader(store, "", None))


def test_a_folder_without_metadata_says_so() -> None:
    with pytest.raises(CheckpointError, match="no such object"):
        load(destination(), SnapshotReader(MemoryStore(), "", None))


def test_a_checkpoint_id_is_refused_where_the_log_decides() -> None:
    saved = a_save()
    with pytest.raises(ConfigurationError, match="checkpoint_id"):
        saved.reader().reset("s3://other/place")
    with pytest.raises(ConfigurationError, match="checkpoint_id"):
        SnapshotWriter(saved.store, None).reset("s3://other/place")


def chunk(offsets: list[int], sizes: list[int]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


@pytest.mark.parametrize(
    ("size", "chunks", "covered"),
    [
        pytest.param([4], [chunk([0], [2]), chunk([2], [2])], True, id="two halves"),
        pytest.param([4], [chunk([0], [2])], False, id="one half"),
        pytest.param([4], [chunk([0], [2]), chunk([0], [2])], False, id="the same half twice"),
        pytest.param([4], [chunk([0], [3]), chunk([2], [1])], False, id="an overlap that makes up for a gap"),
        pytest.param([4], [chunk([2], [4])], False, id="out of bounds"),
        pytest.param([2, 2], [chunk([i, j], [1, 1]) for i in (0, 1) for j in (0, 1)], True, id="a grid"),
        pytest.param([2, 2], [chunk([0, 0], [2, 1]), chunk([0, 0], [1, 2])], False, id="a cross"),
        pytest.param([3], [chunk([0], [3]), chunk([3], [0])], True, id="an empty chunk of an uneven shard"),
        pytest.param([], [chunk([], [])], True, id="a scalar"),
        pytest.param([], [], False, id="a scalar that is not there"),
        pytest.param([0, 3], [], True, id="nothing of nothing"),
    ],
)
def test_chunks_tile_a_tensor_only_when_they_cover_it_exactly(
    size: list[int], chunks: list[ChunkStorageMetadata], covered: bool
) -> None:
    assert tiles(size, chunks) is covered
