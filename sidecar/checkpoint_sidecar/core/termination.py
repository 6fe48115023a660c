"""What is still worth doing between SIGTERM and SIGKILL. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from checkpoint_sidecar.core.schedule import RESERVE_SECONDS, seconds_to_end

CLEANUP_SECONDS = 1.5
"""Of ``RESERVE_SECONDS``, what a save that did not make it has for aborting its uploads and deleting its files."""


class LastAct(Enum):
    """The next thing a terminating attempt does."""

    FINISH_RUNNING_SAVE = "finish the running save"
    SAVE = "save"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a terminating attempt stands.

    Attributes:
        remaining_seconds: Until SIGKILL.
        saving: A save is still being uploaded.
        saved: The present step is committed already.
        wanted: The policy asks for a save on termination, termination was requested only once, and nothing failed.
        expected_seconds: How long a save takes, from the copy to the commit, by the latest one; None before the first.
    """

    remaining_seconds: float
    saving: bool
    saved: bool
    wanted: bool
    expected_seconds: float | None


def next_act(situation: Situation) -> LastAct:
    """Finish what runs, then save the present step if that can commit in time, else stop with the last commit.

    A save that cannot commit would only take bandwidth from others that can. One of unknown duration is tried: until it
    is killed it costs nothing but an orphan.
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
