"""Encodes each rank's vote after a step as a few integers. Pure.

All ranks must save, stop or raise at the same step. So each casts a ``Vote``, one all-reduce takes the element-wise
maximum, and every rank decodes the same ``Agreed``. Each field is encoded so that the value that must win is the
largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.log import Trigger

_TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
_NEVER = -(2**62)

UNLIMITED = 1e9
"""Seconds that stand for no limit, small enough to be sent as an integer."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A request to stop.

    Attributes:
        remaining_seconds: Time until the first process is killed; ``UNLIMITED`` if none will be.
        repeated: Whether the request came more than once, so that nothing new may start.
        save: Whether the training code asked, so that the policy for SIGTERM does not apply.
    """

    remaining_seconds: float
    repeated: bool = False
    save: bool = False

    @property
    def limited(self) -> bool:
        """Whether the process will be killed."""
        return self.remaining_seconds < UNLIMITED / 2


@dataclass(frozen=True, slots=True)
class Vote:
    """The state of one rank after a step.

    Attributes:
        step: The step that it has just finished.
        trigger: The reason for a save; only rank 0 knows it, the others vote None.
        saving: Whether an earlier save is still being uploaded.
        failed: Whether a background save failed, or the run was taken over.
        stop: The request to terminate, if any.
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


@dataclass(frozen=True, slots=True)
class Agreed:
    """The combined votes, the same on all ranks.

    Attributes:
        first, last: Lowest and highest step voted; they differ only if the ranks' loops are out of step.
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
        """Decode the element-wise maximum of all encoded votes."""
        last, first, trigger, saving, failed, spent, repeated, save = maximum
        return cls(
            first=-first,
            last=last,
            trigger=_TRIGGERS[trigger - 1] if trigger else None,
            saving=bool(saving),
            failed=bool(failed),
            stop=None if spent == _NEVER else Stop(-spent / 1000, bool(repeated), bool(save)),
        )


def check_together(agreed: Agreed) -> None:
    """Raise an error if the ranks are at different steps.

    Raises:
        ConfigurationError: They are.
    """
    if agreed.first != agreed.last:
        raise ConfigurationError(
            "finish",
            f"steps {agreed.first} to {agreed.last}",
            "the ranks are at different steps",
            "Call step() equally often, with the same number, on every rank.",
        )
