"""What metadata costs on many ranks: rank 0's CPU time and bytes in a save and a restore, and those of each rank.

    make bench-ranks
    PYTHONPATH=tests:tools .venv/bin/python benchmarks/ranks.py --ranks 64 --tensors 100

All ranks are played in one process, one after the other, with the product's functions, on tensors that are each sharded
over all ranks; no data exists. What travels between ranks is pickled and unpickled, as DCP's collectives do. CPU
seconds are those of one thread; the garbage collector runs as it does in training.

``Checkpointer`` saves objects beside the tensors: here those of an optimizer with a schedule, and the random number
generators of each rank, all of which change from save to save.
"""

from __future__ import annotations

import gc
import json
import pickle
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult

from checkpoint_sidecar import RandomState
from checkpoint_sidecar.core.garbage import collection_paused
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.metadata_index import with_index, without_pickle
from checkpoint_sidecar.core.policy import NOT_CHECKED
from checkpoint_sidecar.engine.verify import check_sizes
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan, with_storage_data
from checkpoint_sidecar.training.dcp.index import encode
from checkpoint_sidecar.training.dcp.indexed_metadata import IndexedMetadata
from checkpoint_sidecar.training.dcp.metadata_pickle import metadata_pickles
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.receipts import Results, stored_inventory
from checkpoint_sidecar.training.dcp.replicas import Holding, Kind
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner, History
from checkpoint_sidecar.training.dcp.saved_metadata import SavedMetadata
from checkpoint_sidecar.training.state.application import TrainingState
from doubles.counting import CountingStore
from doubles.memory import MemoryStore

RESULT = Path("build/bench/ranks.json")
ROWS, COLUMNS = 4, 128 * 1024  # a shard is large enough to be passed on
REPLICAS = 8
ALL_RANKS: Any = object()
"""Stands in for the process group, which planning does not use."""
_SAVES = 4
"""Of ``Checkpointer``: the first, and those after it, of which the median counts."""
FOLDER = "step-100/0001-abcdefgh"
PROPERTIES = TensorProperties(torch.bfloat16)

Made = TypeVar("Made")


@dataclass
class Costs:
    """CPU seconds and bytes of one size.

    Attributes:
        steps: CPU seconds of each step, by name.
        rank0_cpu_s_first: Rank 0's in a save.
        rank0_cpu_s_repeated: Rank 0's in a save with the plan of the one before.
        checkpointer_rank0_cpu_s_first: Rank 0's in the first save of a ``Checkpointer``.
        checkpointer_rank0_cpu_s_later: Rank 0's in a later one, after the schedule and random states have changed.
        rank0_bytes_repeated: Bytes that rank 0 sends and receives in it.
        rank_cpu_s: Another rank's in a save.
        restore_rank_cpu_s, restore_rank_bytes: A rank's in a restore.
        shared_reads_rank0_bytes: Bytes that rank 0 sends and receives in the plans of a restore with replicas.
        size_checks: Requests for the sizes of files in a restore, of all ranks together.
    """

    ranks: int
    tensors: int
    steps: dict[str, float] = field(default_factory=dict)
    rank0_cpu_s_first: float = 0.0
    rank0_cpu_s_repeated: float = 0.0
    checkpointer_rank0_cpu_s_first: float = 0.0
    checkpointer_rank0_cpu_s_later: float = 0.0
    rank0_bytes_repeated: int = 0
    rank_cpu_s: float = 0.0
    restore_rank_cpu_s: float = 0.0
    restore_rank_bytes: int = 0
    shared_reads_rank0_bytes: int = 0
    size_checks: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.steps[name] = time.process_time() - began

    def sum(self, *names: str) -> float:
        return sum(self.steps[name] for name in names)


def main(
    ranks: Annotated[list[int], typer.Option(help="Numbers of ranks.")] = [64, 256, 1024],  # noqa: B006
    tensors: Annotated[int, typer.Option(help="Tensors, each sharded over all ranks.")] = 1000,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = RESULT,
) -> None:
    """Measure the metadata of a save and a restore, and write the figures."""
    console = Console()
    measured = []
    for number in ranks:
        with console.status(f"{number} ranks x {tensors} tensors"):
            measured.append(measure(number, tensors))
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"python": platform.python_version(), "torch": str(torch.__version__)}
    output.write_text(json.dumps({**about, "sizes": [asdict(costs) for costs in measured]}, indent=1) + "\n")
    console.print(table(measured))


def table(measured: list[Costs]) -> Table:
    """Return the figures with a column for each size."""
    drawn = Table(title="metadata of many ranks, CPU seconds", box=box.SIMPLE_HEAD)
    drawn.add_column("")
    for costs in measured:
        drawn.add_column(f"{costs.ranks} x {costs.tensors}", justify="right")
    rows: dict[str, Callable[[Costs], str]] = {
        name: lambda costs, name=name: f"{costs.steps[name]:.3f}"  # type: ignore[misc]
        for name in measured[0].steps
    }
    for name in (each.name for each in fields(Costs) if "cpu_s" in each.name):
        rows[name] = lambda costs, name=name: f"{getattr(costs, name):.3f}"  # type: ignore[misc]
    for name in ("rank0_bytes_repeated", "restore_rank_bytes", "shared_reads_rank0_bytes", "size_checks"):
        rows[name] = lambda costs, name=name: f"{getattr(costs, name):,}"  # type: ignore[misc]
    for name, cell in rows.items():
        drawn.add_row(name, *map(cell, measured))
    return drawn


def measure(ranks: int, tensors: int) -> Costs:
    """Play a save and a restore."""
    costs = Costs(ranks, tensors)
    data = _save(costs)
    again = Costs(ranks, tensors)
    assert _save(again) == data
    costs.rank0_cpu_s_repeated = again.rank0_cpu_s_first
    costs.rank0_bytes_repeated = again.rank0_bytes_repeated
    _restore(costs, data)
    training = _Training(ranks)
    saves = [Costs(ranks, tensors) for _ in range(_SAVES)]
    for save in saves:
        gc.collect()  # what playing other ranks leaves behind would be collected in one of the steps
        training.step()
        _save(save, training.objects())
    costs.checkpointer_rank0_cpu_s_first, *later = (save.rank0_cpu_s_first for save in saves)
    costs.checkpointer_rank0_cpu_s_later = median(later)
    return costs


class _Training:
    """The objects of a ``Checkpointer``'s state. Their number and names are those of any model of one group."""

    def __init__(self, ranks: int) -> None:
        model = torch.nn.Linear(2, 2)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, 0.1, total_steps=1000)
        shared = {"model": model, "optim": self._optimizer, "schedule": self._schedule}
        self._model = model
        self._shared = TrainingState(shared, rank=0)
        self._own = [TrainingState({"random": RandomState()}, rank=rank) for rank in range(ranks)]
        self._histories = [History() for _ in range(ranks)]

    def step(self) -> None:
        self._model(torch.randn(2, 2)).sum().backward()
        self._optimizer.step()
        self._schedule.step()

    def objects(self) -> list[dict[str, int]]:
        """Return the size of each object on each rank."""
        shared = self._sizes(self._shared, self._histories[0])
        found = []
        for state, history in zip(self._own, self._histories, strict=True):
            random.seed(random.random())
            torch.manual_seed(random.randrange(1 << 60))
            found.append(shared | self._sizes(state, history))
        return found

    def _sizes(self, state: TrainingState, history: History) -> dict[str, int]:
        planner = BalancedSavePlanner(history=history)
        planner.set_up_planner(state.capture(), is_coordinator=True)
        items = [item for item in planner.create_local_plan().items if item.type is WriteItemType.BYTE_IO]
        return {item.index.fqn: planner.resolve_data(item).getbuffer().nbytes for item in items}  # type: ignore[union-attr]


def _save(costs: Costs, objects: Sequence[Mapping[str, int]] = ()) -> bytes:
    """Play a save. Returns its ``.metadata``.

    Args:
        objects: By rank, the sizes of the objects that it saves beside the tensors.
    """
    objects = objects or [{}] * costs.ranks
    plans = [_local_plan(rank, costs, objects[rank]) for rank in range(costs.ranks)]
    with costs.step("a rank: plan sent"):
        sent = [pickle.dumps(plans[0])]
    sent += map(pickle.dumps, plans[1:])
    plans.clear()  # else it takes longer to free the items of all ranks than to receive their plans
    with costs.step("rank 0: plans received"):
        plans = _received(sent)
    planner = BalancedSavePlanner()
    with costs.step("rank 0: global plan"), collection_paused():
        given, metadata = planner.create_global_plan(plans)
    with costs.step("rank 0: plans sent"), collection_paused():
        returned = [pickle.dumps(with_storage_data(plan, FOLDER)) for plan in given]
    local = _local_plan(0, costs, objects[0])
    with costs.step("a rank: plan received"):
        (share,) = _received(returned[:1])
        _ = share.within(local).items
    results = [pickle.dumps(_results(rank, plan, objects[rank])) for rank, plan in enumerate(given)]
    done = _results(0, given[0], objects[0])
    with costs.step("a rank: results sent"):
        pickle.dumps(done)
    with costs.step("rank 0: results received"):
        received = _received(results)
    with costs.step("rank 0: .metadata written"), collection_paused():
        inventory = stored_inventory(metadata, received)
        assert inventory is not None
        here, _ = metadata_pickles(metadata, inventory, ["", FOLDER])
        data = with_index(here, encode(inventory) or b"")
    line = File(".metadata", len(data), 0, b"")
    with costs.step("rank 0: metadata sent"):
        SavedMetadata.of(metadata, "s3://bucket/run", FOLDER, line)
        address = pickle.dumps(metadata)
    with costs.step("a rank: metadata received"):
        _received([address])
    own = [name for name in costs.steps if name.startswith("rank 0: ")]
    costs.rank0_cpu_s_first = costs.sum(*own)
    costs.rank_cpu_s = costs.sum(*(name for name in costs.steps if name.startswith("a rank: ")))
    sizes = [len(each) for part in (sent, returned, results) for each in part]
    costs.rank0_bytes_repeated = sum(sizes) + costs.ranks * len(address)
    return data


def _restore(costs: Costs, data: bytes) -> None:
    """Play a restore on the same ranks."""
    sent_index = without_pickle(data)
    store = CountingStore(MemoryStore())
    files = tuple(File(f"__{rank}_0.distcp", 1 << 40, 0, b"") for rank in range(costs.ranks))
    manifest = Manifest("step-100-abcdefgh", 100, 1, costs.ranks, files)
    reader = SnapshotReader(store, FOLDER, manifest, verify=NOT_CHECKED, metadata=sent_index, sharing=ALL_RANKS)
    with costs.step("a rank: .metadata read"):
        metadata = reader.open()
    with costs.step("a rank: own reads"):
        sent = [pickle.dumps(reader.prepare_local_plan(_reads(0, metadata)))]
    sent += [pickle.dumps(reader.prepare_local_plan(_reads(rank, metadata))) for rank in range(1, costs.ranks)]
    with costs.step("rank 0: reads planned, one replica"):
        given = planned(reader, sent)
    costs.restore_rank_cpu_s = costs.sum("a rank: .metadata read", "a rank: own reads")
    costs.restore_rank_bytes = len(sent_index) + len(sent[0]) + len(given[0])
    shards = max(costs.ranks // REPLICAS, 1)
    sent = [sent[rank % shards] for rank in range(costs.ranks)]
    with costs.step(f"rank 0: reads planned, {REPLICAS} replicas"):
        given = planned(reader, sent)
    costs.shared_reads_rank0_bytes = sum(map(len, sent + given))
    lines = [File(f"__{rank}_0.distcp", 1, 0, b"") for rank in range(costs.ranks)]
    for line in lines:
        store.put(f"{FOLDER}/{line.name}", b"x")
    store.requests.clear()
    check_sizes(store, FOLDER, lines)
    costs.size_checks = store.requests.total()


def planned(reader: SnapshotReader, sent: list[bytes]) -> list[bytes]:
    """Let rank 0 plan the reads that ranks have sent, and return what it sends back."""
    return [pickle.dumps(plan) for plan in reader.prepare_global_plan(list(map(pickle.loads, sent)))]


def _received(sent: list[bytes]) -> list[Any]:
    with collection_paused():  # as the writer does
        return list(map(pickle.loads, sent))


def _chunk(rank: int) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size((rank * ROWS, 0)), torch.Size((ROWS, COLUMNS)))


def _local_plan(rank: int, costs: Costs, objects: Iterable[str] = ()) -> SavePlan:
    names = [f"model.layers.{number}.weight" for number in range(costs.tensors)]
    size, chunk = torch.Size((costs.ranks * ROWS, COLUMNS)), _chunk(rank)
    items = [
        WriteItem(
            MetadataIndex(name, chunk.offsets),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(chunk, PROPERTIES, size),
        )
        for name in names
    ]
    holdings = [Holding(Kind.SHARD, divisible=True, mesh=1)] * len(items)
    items += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in objects]
    holdings += [Holding(Kind.OBJECT)] * (len(items) - len(holdings))
    mapping = {name: tuple(name.split(".")) for name in (*names, *objects)}
    return ArrayPlan.of(SavePlan(items, planner_data=mapping), tuple(holdings))


def _results(rank: int, plan: SavePlan, objects: Mapping[str, int]) -> list[WriteResult]:
    """Return what a rank has stored: objects first, as the writer does."""
    name, start, items = f"__{rank}_0.distcp", 0, []
    for item in sorted(plan.items, key=lambda item: item.type is not WriteItemType.BYTE_IO):
        length = objects.get(item.index.fqn, ROWS * COLUMNS * 2 + 1600)
        items.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
        start += length
    return Results([*items, WriteResult(MetadataIndex(name), start, File(name, start, 0, bytes(4)))])


def _reads(rank: int, metadata: Metadata) -> LoadPlan:
    """Plan a rank's reads as ``StrictLoadPlanner`` does."""
    assert isinstance(metadata, IndexedMetadata)
    found: list[ReadItem] = []
    for name, number in metadata.numbers.items():
        rows = metadata.contents.overlapping(number, [_chunk(rank)])
        stored = TensorStorageMetadata(*metadata.kind(name), metadata.contents.chunks(number, rows))
        found += create_read_items_for_chunk_list(name, stored, [_chunk(rank)])
    return LoadPlan(found)


if __name__ == "__main__":
    typer.run(main)
