"""Decides which rank reads what several ranks need, and how the bytes reach the others. Pure.

Each rank describes the parts of stored tensors that it needs as rows of integers. Ranks of different replicas need the
same and send the same bytes, which are planned once. A part with few holders goes from its reader to each of the
others; with many, along a binomial tree, in which ranks that have it pass it on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np

from checkpoint_sidecar.training.dcp.columns import pack_rows, unpack_rows
from checkpoint_sidecar.training.dcp.inventory import Integers, padded

MOST_DIRECT = 8
"""Maximum number of ranks with the same part among which its reader sends it to each of the others."""


@dataclass(frozen=True, slots=True)
class NeededPart:
    """A part of a stored tensor that a rank needs and may get from another.

    Attributes:
        number: The stored chunk's, the same on every rank.
        size: Bytes.
        offsets, lengths: The part's position in the chunk.
    """

    number: int
    size: int
    offsets: Sequence[int]
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True)
class SharedPart:
    """One rank's transfers of a part that several ranks need.

    Attributes:
        number: Unique number, the same on all of these ranks: every rank follows this order.
        position: Which of this rank's needed parts it is.
        source: The rank that sends it to this one; None if this one reads it.
        destinations: The ranks to which this one sends it.
    """

    number: int
    position: int
    source: int | None
    destinations: tuple[int, ...]


def packed_needs(parts: Iterable[NeededPart]) -> bytes:
    """Return what a rank needs, for ``plan_shares``. Equal needs have equal bytes."""
    return pack_rows(padded([(part.number, part.size, *part.offsets, *part.lengths) for part in parts], width=2))


def plan_shares(needs: Sequence[bytes]) -> list[bytes] | None:
    """Assign each part that several ranks need to one of them: largest first, to the rank that reads least so far.

    Args:
        needs: By rank, from ``packed_needs``.

    Returns:
        Transfers by rank, for ``shared_parts``; None if no part is sent.
    """
    alike_by_needs: defaultdict[bytes, list[int]] = defaultdict(list)
    for rank, packed in enumerate(needs):
        alike_by_needs[packed].append(rank)
    classes = list(alike_by_needs.values())
    found = _Needs.of([unpack_rows(packed) for packed in alike_by_needs], list(map(len, classes)))
    loads = [0] * len(needs)
    for alike, load in zip(classes, found.alone.tolist(), strict=True):
        for rank in alike:
            loads[rank] = load
    transfers = [holders.transfers(found.position) for holders in _assigned(found, classes, loads)]
    return _by_rank(np.concatenate(transfers), len(needs)) if transfers else None


def shared_parts(packed: bytes) -> tuple[SharedPart, ...]:
    """Return one rank's transfers from the plan of ``plan_shares``, in their order."""
    parts = []
    for (number, position), rows in groupby(unpack_rows(packed).tolist(), key=lambda row: row[:2]):
        peers = [(peer, bool(sending)) for _, _, peer, sending in rows]
        source = next((peer for peer, sending in peers if not sending), None)
        parts.append(SharedPart(number, position, source, tuple(peer for peer, sending in peers if sending)))
    return tuple(parts)


@dataclass(frozen=True, eq=False, slots=True)
class _Needs:
    """Parts that several ranks need. Ranks with equal needs are a class; a row stands for one part of one class.

    Attributes:
        alone: By class, bytes that each of its ranks reads for itself.
        origin: Each row's class. Rows of the same part follow each other, in the order of classes.
        position: Which of the class's needs each row is.
        begins, ends: By part, its rows.
        sizes: Bytes of each part.
    """

    alone: Integers
    origin: Integers
    position: Integers
    begins: Integers
    ends: Integers
    sizes: Integers

    @classmethod
    def of(cls, tables: Sequence[Integers], members: Sequence[int]) -> _Needs:
        """Find them.

        Args:
            tables: The needs of each class.
            members: Number of ranks of each class.
        """
        counts = [len(table) for table in tables]
        rows = np.zeros((sum(counts), max(table.shape[1] for table in tables)), np.int64)
        for end, table in zip(np.cumsum(counts).tolist(), tables, strict=True):
            rows[end - len(table) : end, : table.shape[1]] = table
        origin = np.repeat(np.arange(len(tables)), counts)
        position = np.concatenate([np.arange(count) for count in counts])
        ranks = np.array(members)[origin]
        # Most chunks are needed by one rank only: no need to compare their parts.
        order = np.flatnonzero(np.bincount(rows[:, 0], ranks)[rows[:, 0]] > 1)
        order = order[np.lexsort(rows[order].T)]
        first = np.ones(len(order), bool)
        first[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
        # A rank that needs the same bytes twice reads them for itself the second time.
        once = first.copy()
        once[1:] |= origin[order[1:]] != origin[order[:-1]]
        order, first = order[once], first[once]
        part = np.cumsum(first) - 1
        several = np.bincount(part, ranks[order])[part] > 1
        order, part = order[several], part[several]
        begins, ends = np.flatnonzero(np.diff(part, prepend=-1)), np.flatnonzero(np.diff(part, append=-1)) + 1
        alone = np.ones(len(rows), bool)
        alone[order] = False
        read = np.bincount(origin[alone], rows[alone, 1], minlength=len(tables)).astype(np.int64)
        return cls(read, origin[order], position[order], begins, ends, rows[order[begins], 1])


@dataclass(frozen=True, eq=False, slots=True)
class _Holders:
    """Ranks that need the same parts.

    Attributes:
        ranks: In ascending order.
        columns: By rank, which of a part's rows is its own.
        numbers, begins, readers: By part: its number, its first row, and which of ``ranks`` reads it.
    """

    ranks: list[int]
    columns: list[int]
    numbers: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, classes: Iterable[Sequence[int]]) -> _Holders:
        """Return the ranks of some classes, without parts."""
        members = sorted((rank, column) for column, alike in enumerate(classes) for rank in alike)
        return cls([rank for rank, _ in members], [column for _, column in members])

    def transfers(self, position: Integers) -> Integers:
        """Return a row for each transfer: the part's number; rank and position of the sender, and of the receiver.

        Args:
            position: By row; see ``_Needs``.
        """
        count = len(self.ranks)
        receiver = np.arange(1, count)  # counted from the reader
        sender = receiver - 2 ** np.floor(np.log2(receiver)).astype(np.int64)
        if count <= MOST_DIRECT:
            sender[:] = 0
        places = position[np.array(self.begins)[:, None] + np.array(self.columns)]
        columns: list[Integers] = []
        for counted in (sender, receiver):
            index = (np.array(self.readers)[:, None] + counted) % count
            columns += [np.array(self.ranks)[index], np.take_along_axis(places, index, axis=1)]
        number = np.repeat(self.numbers, count - 1)
        return np.column_stack([number, *(column.ravel() for column in columns)])


def _assigned(needs: _Needs, classes: Sequence[Sequence[int]], loads: list[int]) -> Iterable[_Holders]:
    """Assign each part to one of its holders.

    Args:
        classes: Ranks by class.
        loads: Bytes that each rank reads; grows.
    """
    found: dict[bytes, _Holders] = {}
    for number, part in enumerate(np.argsort(-needs.sizes, kind="stable").tolist()):
        begin = int(needs.begins[part])
        origin = needs.origin[begin : needs.ends[part]]
        key = origin.tobytes()
        holders = found.get(key)
        if holders is None:
            holders = found[key] = _Holders.of([classes[each] for each in origin.tolist()])
        reader = min(holders.ranks, key=loads.__getitem__)
        loads[reader] += int(needs.sizes[part])
        holders.numbers.append(number)
        holders.begins.append(begin)
        holders.readers.append(bisect_left(holders.ranks, reader))
    return found.values()


def _by_rank(transfers: Integers, ranks: int) -> list[bytes]:
    """Return each rank's side of its transfers, as ``shared_parts`` reads them."""
    number, sender, at_sender, receiver, at_receiver = transfers[np.argsort(transfers[:, 0], kind="stable")].T
    sent, received = np.ones_like(number), np.zeros_like(number)
    sides = np.stack(
        [
            np.column_stack([sender, number, at_sender, receiver, sent]),
            np.column_stack([receiver, number, at_receiver, sender, received]),
        ],
        axis=1,
    ).reshape(-1, 5)
    sides = sides[np.argsort(sides[:, 0], kind="stable")]
    bounds = np.searchsorted(sides[:, 0], np.arange(ranks + 1)).tolist()
    return [pack_rows(sides[begin:end, 1:]) for begin, end in pairwise(bounds)]
