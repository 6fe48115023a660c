"""Reads data that several ranks need once, and sends it to the others: replicated tensors, hybrid sharding's replicas.

The coordinator plans the reads of each rank. Data is sent only after every rank has read, so that a rank that cannot
read makes all ranks fail instead of leaving its peers waiting.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from checkpoint_sidecar.engine.budget import groups_within
from checkpoint_sidecar.training.dcp.memory import as_bytes

MINIMUM_BYTES = 1024 * 1024
"""Every rank that needs a smaller item reads it."""

_WINDOW_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Transfer:
    """The transfer of one item from the rank that reads it to another.

    Attributes:
        number: Unique number, the same on both sides: all ranks follow this order.
        item: The item in this side's plan.
        peer: The other side's rank in the group.
        sending: Whether this side sends.
    """

    number: int
    item: ReadItem
    peer: int
    sending: bool


@dataclass(frozen=True, slots=True)
class SharedReads:
    """One rank's transfers of data that was read."""

    transfers: tuple[Transfer, ...]

    @property
    def received(self) -> frozenset[ReadItem]:
        """Items that this rank receives instead of reading."""
        return frozenset(transfer.item for transfer in self.transfers if not transfer.sending)


def plan_shares(
    plans: Sequence[Sequence[ReadItem]], size_of: Callable[[ReadItem], int], *, minimum: int = MINIMUM_BYTES
) -> list[SharedReads] | None:
    """Assign each item that several ranks need to one of them: largest first, to the rank that reads least so far.

    Args:
        plans: Items by rank.
        size_of: Returns the bytes of a tensor's item.
        minimum: Minimum bytes of an item that is sent.

    Returns:
        Shares by rank, or None if no item is sent.
    """
    holders: defaultdict[object, dict[int, ReadItem]] = defaultdict(dict)
    for rank, items in enumerate(plans):
        for item in items:
            if item.type is LoadItemType.TENSOR and size_of(item) >= minimum:
                # A rank with two items of the same bytes reads the second one itself.
                holders[item.storage_index, item.storage_offsets, item.lengths].setdefault(rank, item)
    load = [0] * len(plans)
    transfers: list[list[Transfer]] = [[] for _ in plans]
    numbers = itertools.count()
    # Items that only one rank needs come first, because that rank reads them in any case.
    for held in sorted(holders.values(), key=lambda held: (len(held) > 1, -size_of(next(iter(held.values()))))):
        reader = min(held, key=load.__getitem__)
        load[reader] += size_of(held[reader])
        for rank in held:
            if rank != reader:
                number = next(numbers)
                transfers[reader].append(Transfer(number, held[reader], rank, sending=True))
                transfers[rank].append(Transfer(number, held[rank], reader, sending=False))
    if not any(transfers):
        return None
    return [SharedReads(tuple(own)) for own in transfers]


def all_succeeded(succeeded: bool, group: dist.ProcessGroup) -> bool:
    """Return whether every rank has succeeded. Collective."""
    failures = torch.tensor(0 if succeeded else 1)
    dist.all_reduce(failures, op=dist.ReduceOp.MAX, group=group)
    return not failures.item()


def pass_on(share: SharedReads, targets: Mapping[ReadItem, torch.Tensor], group: dist.ProcessGroup) -> None:
    """Send and receive the planned items. Every rank calls this, after all ranks have read.

    A window of transfers runs at a time. Since all ranks follow the same order, the first unfinished transfer has begun
    on both sides, and no two ranks wait for each other.

    Args:
        targets: Each item's tensor: the source if it is sent, the destination if it is received.
        group: A gloo group.
    """
    for window in groups_within(_WINDOW_BYTES, share.transfers, lambda transfer: targets[transfer.item].nbytes):
        under_way: list[tuple[dist.Work | None, torch.Tensor, torch.Tensor | None]] = []
        for transfer in window:
            target = targets[transfer.item]
            peer = dist.get_global_rank(group, transfer.peer)
            # As bytes, because gloo does not know every dtype.
            if transfer.sending:
                data = as_bytes(target.to("cpu").contiguous())
                work = dist.isend(data, peer, group=group, tag=transfer.number)
                under_way.append((work, data, None))
            else:
                direct = target.device.type == "cpu" and target.is_contiguous()
                host = target if direct else torch.empty(target.shape, dtype=target.dtype)
                work = dist.irecv(as_bytes(host), peer, group=group, tag=transfer.number)
                under_way.append((work, host, None if direct else target))
        for work, host, destination in under_way:
            assert work is not None  # this rank is a member of the group
            work.wait()
            if destination is not None:
                destination.copy_(host)
