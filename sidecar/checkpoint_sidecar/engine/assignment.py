"""Assigns data that several processes hold to the process that writes it, so that all write about the same. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace

PORTION = 0.05
"""Portion size as a fraction of the average load; no process exceeds the average by more than that."""

LEAST_PORTION_BYTES = 1024 * 1024
"""Minimum portion: smaller ones are not worth a separate item."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Data, such as a part of a tensor, of which some processes hold identical copies.

    Attributes:
        size: Bytes.
        rows: Maximum number of equal parts into which it can be cut.
        holders: Ranks that hold it, at least one.
    """

    size: int
    rows: int
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AssignedRows:
    """The rows of a chunk, from ``start`` to ``stop``, that one rank writes."""

    rank: int
    start: int
    stop: int


def assign(
    chunks: Sequence[Chunk],
    ranks: int,
    *,
    least_bytes: int = LEAST_PORTION_BYTES,
    loads: Sequence[float] = (),
) -> list[tuple[AssignedRows, ...]]:
    """Assign every row of every chunk to exactly one of its holders, at most one run of rows for each.

    Args:
        ranks: Number of processes; their ranks count from 0.
        least_bytes: Minimum size of a portion.
        loads: Bytes that each rank writes besides.

    Returns:
        For each chunk, the rows that each rank writes.
    """
    loads = list(loads) or [0.0] * ranks
    portion = max((sum(loads) + sum(chunk.size for chunk in chunks)) / ranks * PORTION, least_bytes)
    assigned: list[tuple[AssignedRows, ...]] = [()] * len(chunks)
    queues: dict[tuple[int, ...], list[tuple[float, int]]] = {}
    # Chunks with a single holder leave no choice and come first; then large ones, while there is room to even out.
    for index in sorted(range(len(chunks)), key=lambda index: (len(chunks[index].holders) > 1, -chunks[index].size)):
        holders = chunks[index].holders
        if holders not in queues:
            queues[holders] = sorted((loads[rank], rank) for rank in holders)
        assigned[index] = _assigned(chunks[index], loads, queues[holders], portion)
    return assigned


def _assigned(
    chunk: Chunk, loads: list[float], queue: list[tuple[float, int]], portion: float
) -> tuple[AssignedRows, ...]:
    """Assign each portion of a chunk to the holder with the smallest load, and add it to that load.

    Args:
        queue: A heap of the holders, by loads that may since have grown.
    """
    count = 1
    if len(chunk.holders) > 1:
        count = max(1, min(chunk.rows, int(chunk.size // portion)))
    taken: Counter[int] = Counter()
    for _ in range(count):
        rank = _least_loaded(queue, loads)
        loads[rank] += chunk.size / count
        taken[rank] += 1
    assigned = []
    done = 0
    for rank, portions in sorted(taken.items()):
        start, done = done, done + portions
        assigned.append(AssignedRows(rank, start * chunk.rows // count, done * chunk.rows // count))
    return tuple(assigned)


def _least_loaded(queue: list[tuple[float, int]], loads: Sequence[float]) -> int:
    """Return the rank with the smallest load, the lowest of several, and bring the top of the queue up to date."""
    while queue[0][0] != loads[queue[0][1]]:
        rank = queue[0][1]
        heapreplace(queue, (loads[rank], rank))
    return queue[0][1]
