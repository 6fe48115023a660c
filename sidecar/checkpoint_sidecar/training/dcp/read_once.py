"""Reads data that several ranks need once, and sends it to the others: replicated tensors, hybrid sharding's replicas.

The coordinator plans the reads of each rank; see ``shared_reads``. Data is sent only after every rank has read, so that
a rank that cannot read makes all ranks fail instead of leaving its peers waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from checkpoint_sidecar.engine.budget import groups_within
from checkpoint_sidecar.training.dcp.columns import pack_table, unpack_table
from checkpoint_sidecar.training.dcp.memory import as_bytes
from checkpoint_sidecar.training.dcp.shared_reads import SharedPart, plan_shares

MINIMUM_BYTES = 1024 * 1024
"""Every rank that needs a smaller item reads it."""

_WINDOW_BYTES = 64 * 1024 * 1024


class SharingPlan(LoadPlan):
    """A rank's plan, of which rank 0 receives only what it needs to share reads. The items stay where they are.

    Attributes:
        needs: The shareable items; see ``shared_reads.packed_needs``.
        files: Names of the files that the items are in; see ``columns.pack_table``.
    """

    needs: bytes
    files: bytes

    @classmethod
    def of(cls, plan: LoadPlan, needs: bytes, files: Iterable[str]) -> Self:
        return cls.received(needs, pack_table(tuple(sorted(files))), plan.planner_data, plan.items)

    @classmethod
    def received(cls, needs: bytes, files: bytes, planner_data: Any, items: Sequence[ReadItem] = ()) -> Self:
        made = cls(list(items), planner_data=planner_data)
        made.needs, made.files = needs, files
        return made

    def __reduce__(self) -> Any:
        return SharingPlan.received, (self.needs, self.files, self.planner_data)


@dataclass(frozen=True, slots=True)
class SharedReads:
    """What a rank exchanges with others of its shareable items.

    Attributes:
        packed: See ``shared_reads.shared_parts``; None if no rank exchanges anything.
    """

    packed: bytes | None


def files_of(plans: Iterable[SharingPlan]) -> set[str]:
    """Return the names of the files that any rank needs."""
    return {name for packed in {plan.files for plan in plans} for name in unpack_table(packed)}


def with_shares(plans: Sequence[SharingPlan]) -> list[LoadPlan]:
    """Return each rank's part in reading once what several ranks need."""
    planned = plan_shares([plan.needs for plan in plans])
    shares: Sequence[bytes | None] = [None] * len(plans) if planned is None else planned
    return [LoadPlan([], SharedReads(packed), plan.planner_data) for plan, packed in zip(plans, shares, strict=True)]


def all_succeeded(succeeded: bool, group: dist.ProcessGroup) -> bool:
    """Return whether every rank has succeeded. Collective."""
    failures = torch.tensor(0 if succeeded else 1)
    dist.all_reduce(failures, op=dist.ReduceOp.MAX, group=group)
    return not failures.item()


def pass_on(parts: Sequence[SharedPart], targets: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Send and receive the planned parts. Every rank calls this, after all ranks have read.

    A window of parts is under way at a time. Since all ranks follow the same order, and a rank receives before it
    sends on, the first unfinished transfer has begun on both sides, and no two ranks wait for each other.

    Args:
        targets: Tensors by position: the source of a part that this rank has read, or else its destination.
        group: A gloo group.

    Raises:
        Exception: A destination did not take what was received. The other ranks get their parts nevertheless.
    """
    failures: list[Exception] = []
    for window in groups_within(_WINDOW_BYTES, parts, lambda part: targets[part.position].nbytes):
        under_way = [_Passing(part, targets[part.position], group) for part in window]
        for passing in under_way:
            passing.send_on()
            try:
                passing.deliver()
            except Exception as error:  # noqa: BLE001 - the ranks behind this one wait for the rest
                failures.append(error)
        for passing in under_way:
            passing.finish()
    if failures:
        raise failures[0]


class _Passing:
    """A part that this rank has or receives, and sends to others."""

    def __init__(self, part: SharedPart, target: torch.Tensor, group: dist.ProcessGroup) -> None:
        self._part = part
        self._target = target
        self._group = group
        self._sent: list[dist.Work | None] = []
        self._arrival: dist.Work | None = None
        if part.source is None:
            self._host = target.to("cpu").contiguous()
        else:
            direct = target.device.type == "cpu" and target.is_contiguous()
            self._host = target if direct else torch.empty(target.shape, dtype=target.dtype)
            source = dist.get_global_rank(group, part.source)
            self._arrival = dist.irecv(self._bytes, source, group=group, tag=part.number)

    @property
    def _bytes(self) -> torch.Tensor:
        return as_bytes(self._host)  # gloo does not know every dtype

    def send_on(self) -> None:
        """Wait for the part, and begin to send it to others."""
        if self._arrival is not None:
            self._arrival.wait()
        for rank in self._part.destinations:
            peer = dist.get_global_rank(self._group, rank)
            self._sent.append(dist.isend(self._bytes, peer, group=self._group, tag=self._part.number))

    def deliver(self) -> None:
        """Copy what was received to its destination, unless it was received there."""
        if self._arrival is not None and self._host is not self._target:
            self._target.copy_(self._host)

    def finish(self) -> None:
        """Wait until the part is sent."""
        for work in self._sent:
            assert work is not None  # this rank is a member of the group
            work.wait()
