"""What every rank tells the others after each step, in a handful of integers. Pure.

All ranks must act alike: save, stop or raise at the same step. So each casts a ``Vote``, one all-reduce takes the
element-wise maximum, and every rank reads the same ``Agreed`` from it. Every field is therefore encoded so that the
larger integer is the one that must win.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from checkpoint_sidecar.core.log import Trigger

_TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
_NEVER = -(2**62)

UNLIMITED = 1e9
"""Seconds: as good as for ever, and still a number that is sent as an integer."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A process was asked to stop.

    Attributes:
        remaining_seconds: Until the first process is killed; ``UNLIMITED`` when none will be.
        repeated: The request came more than once: start nothing new.
        save: The training code itself asked: save, whatever the policy says about SIGTERM.
    """

    remaining_seconds: float
    repeated: bool = False
    save: bool = False

    @property
    def limited(self) -> bool:
        """Whether the process is killed at some time."""
        return self.remaining_seconds < UNLIMITED / 2


@dataclass(frozen=True, slots=True)
class Vote:
    """One rank's word.

    Attributes:
        step: The step it has just finished.
        trigger: Why a save is due; only rank 0 looks, the others vote None.
        saving: Its earlier save is still being uploaded.
        failed: Something went wrong behind its back: a save failed, or the run was taken over.
        stop: It was asked to terminate.
    """

    step: int
    trigger: Trigger | None = None
    saving: bool = False
    failed: bool = False
    stop: Stop | None = None

    def encode(self) -> list[int]:
        return [
            self.step,
            -self.step,
            0 if self.trigger is None else 1 + _TRIGGERS.index(self.trigger),
            int(self.saving),
            int(self.failed),
            _NEVER if self.stop is None else -round(1000 * self.stop.remaining_seconds),
            int(self.stop is not None and self.stop.repeated),
            int(self.stop is not None and self.stop.save),
        ]


LENGTH = len(Vote(0).encode())


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all votes together say, the same on all ranks.

    Attributes:
        first, last: Lowest and highest step voted; they differ only if the ranks' loops ran apart.
        trigger, saving, failed, stop: As in ``Vote``, true of at least one rank.
    """

    first: int
    last: int
    trigger: Trigger | None
    saving: bool
    failed: bool
    stop: Stop | None

    @classmethod
    def decode(cls, maximum: list[int]) -> Agreed:
        """Read the element-wise maximum of all encoded votes."""
        last, first, trigger, saving, failed, spent, repeated, save = maximum
        return cls(
            first=-first,
            last=last,
            trigger=_TRIGGERS[trigger - 1] if trigger else None,
            saving=bool(saving),
            failed=bool(failed),
            stop=None if spent == _NEVER else Stop(-spent / 1000, bool(repeated), bool(save)),
        )
