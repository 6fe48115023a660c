"""When a save is due, and the time that a last one needs.

What is due is decided on one rank and broadcast: clocks of different ranks would disagree at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_sidecar.core.log import Trigger
from checkpoint_sidecar.core.policy import SavePolicy

RESERVE_SECONDS = 3.0
"""Kept back for what follows the last save: the goodbye in the bucket, the log line, the interpreter's exit."""

_SAFETY = 1.25
"""A save under an eviction shares the network with everybody else's; expect it to take longer than the last one."""


def seconds_to_end(save_seconds: float) -> float:
    """From SIGTERM to SIGKILL, what a last save needs.

    Args:
        save_seconds: How long an earlier one took, from the copy to the commit.
    """
    return save_seconds * _SAFETY + RESERVE_SECONDS


@dataclass(frozen=True, slots=True)
class LastSave:
    """The latest save, or the start of the attempt.

    Attributes:
        step: The step it holds; the restored step (0 for a fresh start) at the start.
        at: Seconds on a monotonic clock.
        request: The newest save request that was served, or empty.
    """

    step: int
    at: float
    request: str = ""


def due(policy: SavePolicy, last: LastSave, *, step: int, now: float, request: str = "") -> Trigger | None:
    """Why to save after ``step``, or None.

    ``every_steps`` counts multiples, so that snapshots fall on round steps again after an odd one from a SIGTERM.

    Args:
        now: Seconds on the clock of ``last.at``.
        request: The newest save request in the log for this attempt, or empty.
    """
    if step <= last.step:
        return None
    if request and request != last.request:
        return "Request"
    if policy.every_steps is not None and step // policy.every_steps > last.step // policy.every_steps:
        return "Schedule"
    if policy.every_seconds is not None and now - last.at >= policy.every_seconds:
        return "Schedule"
    return None
