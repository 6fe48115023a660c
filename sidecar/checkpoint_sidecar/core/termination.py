"""Decides on the last actions between SIGTERM and SIGKILL. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from checkpoint_sidecar.core.schedule import RESERVE_SECONDS, seconds_to_end

CLEANUP_SECONDS = 1.5
"""Part of ``RESERVE_SECONDS`` for a canceled save to abort its uploads and delete its files."""


class LastAct(Enum):
    """The next action of a terminating attempt."""

    FINISH_RUNNING_SAVE = "finish the running save"
    SAVE = "save"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Situation:
    """The situation of a terminating attempt.

    Attributes:
        remaining_seconds: Time until SIGKILL.
        saving: Whether a save is still uploading.
        saved: Whether the present step is committed already.
        wanted: Whether the policy wants a save on termination, termination was requested once, and nothing failed.
        expected_seconds: Duration of the latest save, from the copy to the commit; None before the first.
    """

    remaining_seconds: float
    saving: bool
    saved: bool
    wanted: bool
    expected_seconds: float | None


def next_act(situation: Situation) -> LastAct:
    """Finish the running save, then save the present step if it can commit in time, else stop with the last commit.

    A save that cannot commit would only take bandwidth from others that can. A save of unknown duration is tried: if it
    is killed, it costs only an orphan.
    """
    if situation.remaining_seconds <= RESERVE_SECONDS:
        return LastAct.STOP
    if situation.saving:
        return LastAct.FINISH_RUNNING_SAVE
    if situation.saved or not situation.wanted:
        return LastAct.STOP
    expected = situation.expected_seconds
    fits = expected is None or seconds_to_end(expected) <= situation.remaining_seconds
    return LastAct.SAVE if fits else LastAct.STOP
