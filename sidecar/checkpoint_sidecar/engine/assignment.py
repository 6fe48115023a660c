"""Who writes what, of data that several processes hold: decided so that all write about the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PORTION = 0.05
"""Of what each process writes on average: how much is handed out at once. Nobody writes more above that than this."""

LEAST_PORTION_BYTES = 1024 * 1024
"""Less is not worth an item of its own."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor, or something else, that is held alike by some processes.

    Attributes:
        size: In bytes.
        rows: Into how many equal parts it can be cut at most.
        holders: Ranks, at least one.
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


def spread(
    chunks: Sequence[Chunk], ranks: int, *, least_bytes: int = LEAST_PORTION_BYTES
) -> list[tuple[AssignedRows, ...]]:
    """Who writes each chunk: every row exactly once, by a holder; no holder has more than one share of a chunk.

    Args:
        ranks: Of all processes, from 0.
        least_bytes: Smaller portions are not made.
    """
    loads = [0.0] * ranks
    portion = max(sum(chunk.size for chunk in chunks) / ranks * PORTION, least_bytes)
    shares: list[tuple[AssignedRows, ...]] = [()] * len(chunks)
    # What has one holder only leaves no choice and comes first; then the largest, as long as there is room to even out.
    for index in sorted(range(len(chunks)), key=lambda index: (len(chunks[index].holders) > 1, -chunks[index].size)):
        shares[index] = _shares(chunks[index], loads, portion)
    return shares


def _shares(chunk: Chunk, loads: list[float], portion: float) -> tuple[AssignedRows, ...]:
    """Hand a chunk out, portion after portion, each to the holder with the least load, and account for it."""
    count = 1
    if len(chunk.holders) > 1:
        count = max(1, min(chunk.rows, int(chunk.size // portion)))
    taken: Counter[int] = Counter()
    for _ in range(count):
        rank = min(chunk.holders, key=lambda rank: (loads[rank], rank))
        loads[rank] += chunk.size / count
        taken[rank] += 1
    shares = []
    done = 0
    for rank, portions in sorted(taken.items()):
        start, done = done, done + portions
        shares.append(AssignedRows(rank, start * chunk.rows // count, done * chunk.rows // count))
    return tuple(shares)
