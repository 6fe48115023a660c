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


UNSAVED_CADENCES = 3
"""How many save intervals may pass without a commit before training stops, if saves fail."""

UNSAVED_SECONDS = 900.0
"""And at least this long: an outage of minutes ends no training, however short the intervals are."""

_LONGEST_DELAY = 60.0


def retry_delay(failures: int) -> float:
    """Seconds from a failed save to the next try of one that was asked for, after so many failures in a row.

    Scheduled saves have their cadence; a request would otherwise be served at every step.
    """
    return 0.0 if failures <= 1 else min(_LONGEST_DELAY, 5.0 * 2 ** (failures - 2))


def given_up(policy: SavePolicy, *, failures: int, unsaved_steps: int, unsaved_seconds: float) -> str:
    """Why training should stop after a failed automatic save, or empty when it continues.

    Args:
        failures: In a row.
        unsaved_steps, unsaved_seconds: Since the last commit, or the start of the attempt.
    """
    if policy.on_failure == "Raise":
        return "save.onFailure is Raise"
    if failures >= policy.max_failures:
        return f"{failures} saves in a row failed, save.maxFailures is {policy.max_failures}"
    if unsaved_seconds < UNSAVED_SECONDS:
        return ""
    if policy.every_seconds is not None and unsaved_seconds > UNSAVED_CADENCES * policy.every_seconds:
        return f"nothing was committed for {UNSAVED_CADENCES} intervals of {policy.every_seconds:g} s"
    if policy.every_steps is not None and unsaved_steps > UNSAVED_CADENCES * policy.every_steps:
        return f"nothing was committed for {UNSAVED_CADENCES} intervals of {policy.every_steps} steps"
    return ""


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
