"""Decides when a save is due, and estimates the time of a last one.

One rank decides and broadcasts the decision, because the clocks of different ranks would disagree at the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_sidecar.core.log import Trigger
from checkpoint_sidecar.core.policy import SavePolicy

RESERVE_SECONDS = 3.0
"""Time reserved after the last save, for the last heartbeat, the log line and the interpreter's exit."""

_SAFETY = 1.25
"""Factor for a save during an eviction: it shares the network with the saves of others, and so takes longer."""


def seconds_to_end(save_seconds: float) -> float:
    """Return the time that a last save needs between SIGTERM and SIGKILL.

    Args:
        save_seconds: Duration of an earlier save, from the copy to the commit.
    """
    return save_seconds * _SAFETY + RESERVE_SECONDS


@dataclass(frozen=True, slots=True)
class LastSave:
    """The latest save, or the start of the attempt.

    Attributes:
        step: Its step; at the start, the restored step (0 for a fresh start).
        at: Time in seconds on a monotonic clock.
        request: The newest save request that was served, or empty.
    """

    step: int
    at: float
    request: str = ""


UNSAVED_CADENCES = 3
"""Number of save intervals without a commit after which failing saves stop training."""

UNSAVED_SECONDS = 900.0
"""Minimum time before that, so that an outage of minutes never stops training, even with short intervals."""

_LONGEST_DELAY = 60.0


def retry_delay(failures: int) -> float:
    """Return the seconds between a failed requested save and its retry, after that many successive failures.

    Scheduled saves have their cadence; a request would otherwise be retried at every step.
    """
    return 0.0 if failures <= 1 else min(_LONGEST_DELAY, 5.0 * 2 ** (failures - 2))


def given_up(policy: SavePolicy, *, failures: int, unsaved_steps: int, unsaved_seconds: float) -> str:
    """Return why training should stop after a failed automatic save, or empty if it continues.

    Args:
        failures: Number of successive failures.
        unsaved_steps, unsaved_seconds: Steps and time since the last commit, or the start of the attempt.
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
    """Return the reason to save after ``step``, or None.

    ``every_steps`` counts multiples, so that snapshots return to round steps after one from a SIGTERM.

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
