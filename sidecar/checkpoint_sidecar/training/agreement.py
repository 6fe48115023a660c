"""Collectives among all ranks, on a separate gloo group.

The model's group is not used: it belongs to the user and may be NCCL, which needs GPU tensors for everything. Without a
process group, everything works as in a world of one rank.
"""

from __future__ import annotations

import datetime as dt
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from checkpoint_sidecar.core.errors import RankLostError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.training.vote import Agreed, Vote

T = TypeVar("T")

# The connection reports a peer that dies at once. The timeout is for peers that are alive and slow: one that uploads
# for an hour longer than this rank, or compiles before its first step.
_TIMEOUT = dt.timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class _Returned:
    value: Any


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


class Agreement:
    """Collectives of one group. Every rank must call the same methods in the same order, from one thread per instance.

    Args:
        group: The gloo group, or None for a world of one.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world_size = 1 if group is None else dist.get_world_size(group)

    @classmethod
    def among_all(cls) -> Agreement:
        """Create a group of all ranks. Collective: every rank calls it at the same point."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(None)
        with exchange(dist.get_rank(), dist.get_world_size()):
            return cls(cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=_TIMEOUT)))

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone reads and writes the run's log."""
        return self.rank == 0

    def vote(self, vote: Vote) -> Agreed:
        """Combine all ranks' votes in one small all-reduce."""
        ballot = vote.encode()
        if self.group is None:
            return Agreed.decode(ballot)
        tally = torch.tensor(ballot, dtype=torch.int64)
        with exchange(self.rank, self.world_size):
            dist.all_reduce(tally, op=dist.ReduceOp.MAX, group=self.group)
        return Agreed.decode(tally.tolist())

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        with exchange(self.rank, self.world_size):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def combine(self, flags: bytearray) -> None:
        """Replace flags, one byte each and equally many on every rank, by the maximum over all ranks."""
        if self.group is not None and flags:
            dist.all_reduce(torch.frombuffer(flags, dtype=torch.uint8), op=dist.ReduceOp.MAX, group=self.group)

    def from_rank_0(self, operation: Callable[[], T]) -> T:
        """Run ``operation`` on rank 0 only; every rank returns its result, or raises its error."""
        outcome: _Returned | _Raised | None = None
        if self.leads:
            try:
                outcome = _Returned(operation())
            except INTERRUPTS:
                raise
            except BaseException as error:  # whatever it is, the other ranks must not wait for it
                outcome = _Raised(portable(error, operation="finish the work of", subject="rank 0"))
                if outcome.error is error and self.group is None:
                    raise
        if self.group is not None:
            box: list[Any] = [outcome]
            with exchange(self.rank, self.world_size):
                dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0), group=self.group)
            outcome = box[0]
        if isinstance(outcome, _Raised):
            raise outcome.error
        return cast("T", cast("_Returned", outcome).value)

    def from_rank(self, rank: int, value: T) -> T:
        """Return the value of one rank on every rank."""
        if self.group is None:
            return value
        box: list[Any] = [value if self.rank == rank else None]
        with exchange(self.rank, self.world_size):
            dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, rank), group=self.group)
        return cast("T", box[0])

    def gather_errors(self, error: Exception | None) -> list[Exception | None]:
        """Return every rank's error or None, by rank, on every rank."""
        subject = f"rank {self.rank}"
        return self.gather(None if error is None else portable(error, operation="finish the work of", subject=subject))

    def raise_any(self, error: Exception | None) -> None:
        """Raise the same error on every rank if any rank has one; see ``most_telling``."""
        found = most_telling(self.gather_errors(error))
        if found is not None:
            raise found

    def close(self) -> None:
        """Leave the group. Not collective."""
        group, self.group = self.group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def break_off(self) -> None:
        """Leave during a collective, so that peers get an error at once instead of waiting for the timeout.

        The connections close when the last reference to the group is gone, so call this outside of ``except`` blocks,
        whose tracebacks may hold one.
        """
        if self.group is not None:
            self.close()
            gc.collect()


@contextmanager
def exchange(rank: int, world_size: int) -> Iterator[None]:
    """Run a collective; if it fails, raise an error that names this rank."""
    try:
        yield
    except RuntimeError as error:
        raise rank_lost(error, rank=rank, world_size=world_size) from error


def rank_lost(error: RuntimeError, *, rank: int, world_size: int) -> RankLostError:
    """Return the error for a failed collective."""
    return RankLostError(
        "exchange data between ranks as",
        f"rank {rank} of {world_size}",
        str(error).split(". ")[0],
        "Another rank has ended or hangs: its log says why.",
    )


def most_telling(errors: Iterable[Exception | None]) -> Exception | None:
    """Return the lowest rank's error, but prefer any error over one that only reports the end of another rank."""
    found = [error for error in errors if error is not None]
    return min(found, key=lambda error: isinstance(error, RankLostError), default=None)
