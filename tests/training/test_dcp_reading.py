"""What a load reads, and how the bytes arrive: little more than needed, with few copies, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.distributed.tensor as dtensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard

from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError
from checkpoint_sidecar.engine.limits import LEAST_MEMORY_BYTES, EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp import delivery
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.slices import Slice
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from doubles.targets import RecordingTarget, Saved, load, save
from training.ranks import playing

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

MIB = 1024 * 1024

State = dict[str, Any]


def shards(shapes: dict[str, tuple[int, ...]], ranks: int, placement: Placement) -> State:
    """This rank's part of tensors whose elements are their own positions."""
    mesh = init_device_mesh("cpu", (ranks,))
    state: State = {}
    for name, shape in shapes.items():
        tensor = dtensor.empty(*shape, dtype=torch.int32, device_mesh=mesh, placements=[placement])
        tensor.to_local().copy_(part_of(shape, tensor))
        state[name] = tensor
    return state


def part_of(shape: tuple[int, ...], tensor: DTensor) -> torch.Tensor:
    whole = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
    for chunk in tensor.__create_chunk_list__():
        for dimension, (offset, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            whole = whole.narrow(dimension, offset, length)
    return whole


def save_as(ranks: int, store: MemoryStore, make: Callable[[], State]) -> Saved:
    """The save of so many ranks, one after the other."""
    target = RecordingTarget()
    writers = [SnapshotWriter(store, target if rank == 0 else None) for rank in range(ranks)]
    planners = [dcp.DefaultSavePlanner() for _ in range(ranks)]
    plans = []
    for rank, (writer, planner) in enumerate(zip(writers, planners, strict=True)):
        with playing(rank, ranks):
            planner.set_up_planner(make(), writer.storage_meta(), rank == 0)
            writer.set_up_storage_writer(rank == 0)
            plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [
        writer.write_data(planner.finish_plan(plan), planner).wait()
        for writer, planner, plan in zip(writers, planners, plans, strict=True)
    ]
    writers[0].finish(metadata, results)
    ((new, manifest, _),) = target.committed
    return Saved(store, new, manifest)


def load_as(ranks: int, saved: Saved, make: Callable[[], State]) -> int:
    """The load of so many ranks; every one gets what it should. Returns bytes needed by all of them."""
    needed = 0
    for rank in range(ranks):
        with playing(rank, ranks):
            expected, state = make(), make()
            for tensor in state.values():
                tensor.to_local().zero_()
            planner, reader = StrictLoadPlanner(), saved.reader()
            metadata = reader.read_metadata()
            planner.set_up_planner(state, metadata, rank == 0)
            reader.set_up_storage_reader(metadata, rank == 0)
            plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
            reader.read_data(plan, planner).wait()
            for name, tensor in state.items():
                assert torch.equal(tensor.to_local(), expected[name].to_local())
                needed += tensor.to_local().nbytes
    return needed


def bytes_read(store: CountingStore) -> int:
    return sum(count for key, count in store.read.items() if key.endswith(".distcp"))


@pytest.mark.parametrize(
    ("loaded_by", "limit"), [pytest.param(8, 1.02, id="8 to 8 ranks"), pytest.param(6, 1.15, id="8 to 6 ranks")]
)
def test_a_load_reads_little_more_than_it_needs(loaded_by: int, limit: float) -> None:
    shapes = {"up": (8192, 1024), "norm": (1024,), "gate": (8192, 1024), "down": (4096, 2048)}
    store = MemoryStore()
    saved = save_as(8, store, lambda: shards(shapes, 8, Shard(0)))
    counting = CountingStore(store)
    needed = load_as(
        loaded_by, Saved(counting, saved.save, saved.manifest), lambda: shards(shapes, loaded_by, Shard(0))
    )
    assert needed == sum(torch.Size(shape).numel() * 4 for shape in shapes.values())
    assert needed < bytes_read(counting) <= limit * needed


@pytest.mark.parametrize(
    ("saved_as", "loaded_as"), [(0, 1), (1, 0), (1, 1)], ids=["rows to columns", "back", "columns"]
)
def test_columns_become_rows_and_back(saved_as: int, loaded_as: int) -> None:
    shapes = {"x": (60, 35), "y": (7, 3, 5)}
    saved = save_as(4, MemoryStore(), lambda: shards(shapes, 4, Shard(saved_as)))
    load_as(3, saved, lambda: shards(shapes, 3, Shard(loaded_as)))


DESTINATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "like the saved tensor": torch.zeros_like,
    "transposed": lambda saved: torch.zeros(saved.shape[::-1]).t(),
    "strided": lambda saved: torch.zeros(saved.shape[0], 2 * saved.shape[1])[:, ::2],
    "a part of a larger tensor": lambda saved: torch.zeros(3, *saved.shape)[1],
    "negated when read": lambda saved: torch._neg_view(torch.zeros(saved.shape)),
    "a parameter": lambda saved: torch.nn.Parameter(torch.zeros(saved.shape)),
}


@pytest.mark.parametrize("name", DESTINATIONS)
@pytest.mark.parametrize("rows", [3, 3000], ids=["small", "larger than a request"])
def test_a_tensor_comes_into_a_destination_of_any_layout(name: str, rows: int) -> None:
    saved_state = {"x": torch.randn(rows, 2000)}
    saved = save(MemoryStore(), saved_state)
    state = {"x": DESTINATIONS[name](saved_state["x"])}
    load(state, saved.reader())
    assert torch.equal(state["x"], saved_state["x"])


def test_a_destination_of_one_element_may_have_any_stride() -> None:
    saved = save(MemoryStore(), {"x": torch.ones(1)})
    state = {"x": torch.zeros(10)[::5][:1]}
    load(state, saved.reader())
    assert state["x"] == 1


def test_a_destination_on_a_device_is_filled_as_bytes_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device at hand: host memory that is taken for one."""
    monkeypatch.setattr(delivery, "_in_host_memory", lambda _: False)
    saved_state = {"x": torch.randn(3000, 2000), "scalar": torch.tensor(2.5), "half": torch.randn(5).bfloat16()}
    saved = save(MemoryStore(), saved_state)
    state = {name: torch.zeros_like(tensor) for name, tensor in saved_state.items()}
    load(state, saved.reader())
    assert all(torch.equal(state[name], tensor) for name, tensor in saved_state.items())


def test_scalars_empty_tensors_and_objects_come_along() -> None:
    expected: dict[str, Any] = {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 5),
        "none": None,
        "x": torch.randn(70_000),
    }
    saved = save(MemoryStore(), expected)
    state: dict[str, Any] = {
        "scalar": torch.tensor(0.0),
        "empty": torch.empty(0, 5),
        "none": 1,
        "x": torch.zeros(70_000),
    }
    load(state, saved.reader())
    assert state["scalar"] == 2.5
    assert state["none"] is None
    assert torch.equal(state["x"], expected["x"])


def test_what_two_names_share_in_memory_is_loaded_one_after_the_other_and_the_last_wins() -> None:
    """Delivered to the same memory at once, each would make the other look damaged."""
    saved = save(MemoryStore(), {"a": torch.ones(4 * MIB), "b": torch.full((4 * MIB,), 2.0)})
    shared = torch.zeros(4 * MIB)
    for _ in range(5):
        load({"a": shared, "b": shared}, saved.reader())
        assert torch.equal(shared, torch.full((4 * MIB,), 2.0))


def test_tensors_that_only_touch_in_memory_are_delivered_directly() -> None:
    memory = torch.zeros(10)
    part = [delivery.WantedPart(Slice((5,), (0,), (5,)), memory[start : start + 5]) for start in (0, 5, 4)]
    items = [delivery.Item("", ByteRange(0, 0), each, lambda _: None) for each in part]
    assert delivery._sharing_memory(items[:2]) == set()
    assert delivery._sharing_memory(items) == {0, 1, 2}


def test_loading_holds_no_more_memory_than_it_may_beyond_the_tensors() -> None:
    store = MemoryStore()
    saved = save(store, {"x": torch.randn(12_000, 4000), "y": torch.randn(2000, 4000)})
    state = {"x": torch.zeros(4000, 12_000).t(), "y": torch.zeros(2000, 4000)}
    settings = EngineSettings(memory_bytes=LEAST_MEMORY_BYTES, connections=16)
    reader = saved.reader(settings=settings)
    tracemalloc.start()
    try:
        load(state, reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LEAST_MEMORY_BYTES + 2 * MIB


def test_five_thousand_tensors_load_with_few_requests() -> None:
    expected = {f"t{number}": torch.full((number % 700 + 1,), float(number)) for number in range(5_000)}
    store = MemoryStore()
    saved = save(store, expected)
    counting = CountingStore(store)
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    load(state, Saved(counting, saved.save, saved.manifest).reader())
    assert counting.requests["get"] < 20
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_archives_that_are_framed_otherwise_are_unpacked_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transposed tensor is stored as it lies in memory, with its strides: the length is right, the head is not."""
    expected = {"x": torch.randn(300, 500).t(), "y": torch.randn(500, 300)}
    dcp.save(expected, storage_writer=FileSystemWriter(tmp_path))
    unpacked: list[str] = []
    original = SnapshotReader._unpack_tensor

    def watching(self: SnapshotReader, item: Any, *arguments: Any) -> None:
        unpacked.append(item.storage_index.fqn)
        original(self, item, *arguments)

    monkeypatch.setattr(SnapshotReader, "_unpack_tensor", watching)
    state = {"x": torch.zeros(500, 300), "y": torch.zeros(500, 300)}
    load(state, SnapshotReader(open_store(StoreSettings(f"file://{tmp_path}")), "", None))
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert unpacked == ["x"]


@pytest.mark.parametrize(
    "destination", [torch.zeros, lambda *size: torch.zeros(*size[::-1]).t()], ids=["memory", "staged"]
)
@pytest.mark.parametrize("position", [0, 0.3, 0.7, 0.999], ids=lambda position: f"at {position}")
def test_a_flipped_bit_is_found_wherever_it_lands(destination: Callable[..., torch.Tensor], position: float) -> None:
    store = MemoryStore()
    saved = save(store, {"x": torch.ones(3000, 2000)})
    data = bytearray(store.get(saved.data_key, max_bytes=10**8).data)
    data[int(position * len(data))] ^= 1
    store.corrupt(saved.data_key, data)
    with pytest.raises(CorruptSnapshotError) as caught:
        load({"x": destination(3000, 2000)}, saved.reader())
    assert caught.value.evidence == "ChecksumMismatch"


class Resolving(StrictLoadPlanner):
    """Gives out tensors that do not fit."""

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        resolved: torch.Tensor = super().resolve_tensor(read_item)
        return resolved.double()


def test_a_planner_that_gives_out_misfits_is_refused_before_anything_is_read() -> None:
    store = MemoryStore()
    saved = save(store, {"x": torch.ones(5)})
    counting = CountingStore(store)
    with pytest.raises(IncompatibleSnapshotError, match=r"float32 .* destination is torch\.float64"):
        load({"x": torch.zeros(5)}, Saved(counting, saved.save, saved.manifest).reader(), planner=Resolving())
    assert bytes_read(counting) == 0


def test_progress_ends_at_its_total_whatever_the_way(tmp_path: Path) -> None:
    expected = {"x": torch.randn(300, 500).t(), "y": torch.randn(500, 300), "z": "text"}
    dcp.save(expected, storage_writer=FileSystemWriter(tmp_path))
    progress = TransferMeter()
    reader = SnapshotReader(open_store(StoreSettings(f"file://{tmp_path}")), "", None, progress=progress)
    load({"x": torch.zeros(500, 300), "y": torch.zeros(300, 500).t(), "z": ""}, reader)
    snapshot = progress.snapshot()
    assert snapshot.done == snapshot.total >= 2 * 600_000
