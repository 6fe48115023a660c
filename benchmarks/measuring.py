"""Seconds, CPU seconds and memory of a piece of work that all ranks do together."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Attributes:
    seconds: From the moment all ranks began until the last one was done.
    cpu_seconds: User and system, of all ranks, their threads and their child processes.
    """

    seconds: float
    cpu_seconds: float


def measured(work: Callable[[], None]) -> Cost:
    """On every rank; every rank gets the same answer."""
    gc.collect()
    dist.barrier()
    began, cpu_began = time.perf_counter(), cpu_seconds()
    work()
    mine = Cost(time.perf_counter() - began, cpu_seconds() - cpu_began)
    costs = gathered(mine)
    return Cost(max(cost.seconds for cost in costs), sum(cost.cpu_seconds for cost in costs))


def gathered(mine: T) -> list[T]:
    """What every rank has, in order of rank."""
    found: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def cpu_seconds() -> float:
    """Of this process and its child processes, those that have ended included."""
    here = psutil.Process()
    running = [child.cpu_times() for child in here.children(recursive=True)]
    mine = here.cpu_times()
    return (
        time.process_time()
        + mine.children_user
        + mine.children_system
        + sum(times.user + times.system for times in running)
    )


class PeakMemory:
    """The most resident memory of this process since ``start``, above what it had then.

    The kernel keeps count (``VmHWM``, reset through ``clear_refs``), so that nothing is missed between samples. Memory
    of child processes is not counted.
    """

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self._start = _status_bytes("VmRSS")

    def extra_bytes(self) -> int:
        return max(0, _status_bytes("VmHWM") - self._start)


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
