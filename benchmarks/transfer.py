"""Saving and loading by one system: speed, CPU, memory, and what the server saw."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import llama
from measuring import Cost, PeakMemory, gathered, measured
from processes import Result, serve
from sink import counts_of
from systems import Server, System, system

_GB = 1e9


@dataclass(frozen=True)
class Direction:
    """The medians of saves, or of loads. Attributes:
    extra_memory_mb: The most of any rank, above the state itself, since before the first of them.
    requests: To the sink, by the last one.
    server_cpu_s_per_gb: Of the sink.
    transferred_per_needed: Bytes of the sink's answers (of requests, for saves) per byte of the state.
    """

    gb_per_s: float
    cpu_s_per_gb: float
    seconds: float
    extra_memory_mb: float
    requests: int | None = None
    server_cpu_s_per_gb: float | None = None
    transferred_per_needed: float | None = None


def transfer(
    *,
    name: str,
    server: dict[str, str],
    save_to: str,
    keep_at: str,
    total_bytes: int = 0,
    tensors: int = 0,
    repetitions: int,
    sink: bool,
    saves: bool = True,
) -> Result:
    """Save and load, each once to warm up and then ``repetitions`` times.

    Args:
        save_to: A URL for saves that are never read.
        keep_at: A URL for saves that can be read.
        total_bytes: Size of a sharded model; or ``tensors``, the number of small tensors.
        sink: Whether the server can be asked what it saw.
        saves: Whether the system can save; if not, it is asked to prepare one file for loading.
    """
    at = Server(**server)
    tested = system(name, at, rank=dist.get_rank())
    state = _state(total_bytes, tensors)
    needed = sum(gathered(sum(llama.local(tensor).nbytes for tensor in state.values())))
    _load_the_libraries(tested, keep_at)
    watched = at.endpoint if sink else ""

    memory, folders = PeakMemory(), (f"{save_to}/{number}" for number in range(1 + repetitions))
    costs = [
        _watched(watched, lambda: tested.save(state, next(folders))) for _ in range(1 + repetitions if saves else 0)
    ]
    save = asdict(_direction(costs[1:], needed, memory)) if saves else None

    tested.save_for_loading(state, f"{keep_at}/state")
    dist.barrier()
    llama.clear(state)
    memory = PeakMemory()
    loads = [_watched(watched, lambda: tested.load(state, f"{keep_at}/state")) for _ in range(1 + repetitions)]
    load = _direction(loads[1:], needed, memory)
    llama.check(state)
    return {"bytes": needed, "tensors": len(state), "save": save, "load": asdict(load)}


def _state(total_bytes: int, tensors: int) -> llama.State:
    if tensors:
        state = llama.whole(llama.small_shapes(tensors))
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        state = llama.sharded(llama.shapes(total_bytes), mesh, [Shard(0)])
    llama.fill(state)
    return state


def _load_the_libraries(tested: System, keep_at: str) -> None:
    """A small round trip, so that their memory counts as the process's own."""
    state = llama.whole(llama.small_shapes(8))
    llama.fill(state)
    tested.save_for_loading(state, f"{keep_at}/small")
    dist.barrier()
    tested.load(state, f"{keep_at}/small")


def _watched(endpoint: str, work: Any) -> tuple[Cost, Any]:
    """What it cost, and what the sink saw of it: it is asked on rank 0, between barriers."""
    before = counts_of(endpoint) if endpoint else None
    cost = measured(work)
    dist.barrier()
    after = counts_of(endpoint) if endpoint else None
    dist.barrier()
    return cost, after - before if before and after else None


def _direction(runs: list[tuple[Cost, Any]], needed: int, memory: PeakMemory) -> Direction:
    seconds = statistics.median(cost.seconds for cost, _ in runs)
    cpu_seconds = statistics.median(cost.cpu_seconds for cost, _ in runs)
    counts = [seen for _, seen in runs if seen]
    moved = max((seen.received + seen.sent for seen in counts), default=0)
    return Direction(
        gb_per_s=needed / seconds / _GB,
        cpu_s_per_gb=cpu_seconds / needed * _GB,
        seconds=seconds,
        extra_memory_mb=max(gathered(memory.extra_bytes())) / 1e6,
        requests=counts[-1].requests if counts else None,
        server_cpu_s_per_gb=statistics.median(seen.cpu_seconds for seen in counts) / needed * _GB if counts else None,
        transferred_per_needed=moved / needed if counts else None,
    )


if __name__ == "__main__":
    serve(transfer)
