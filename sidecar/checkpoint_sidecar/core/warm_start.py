"""Decides whether an attempt begins at a snapshot of another run, and at which. Pure.

The snapshot is chosen once, and the log says which: all ranks, and all starts until the first commit, load the same one
even if ``@best`` of the other run has moved. From the first commit on, a run restores its own snapshots only::

    WarmStartChosen(s3://training/llama@best, 900-...)      what was asked for, and what it meant at that moment
    AttemptStarted(1)
    WarmStartFinished(1, restored)     killed before a commit: attempt 2 loads 900-... again
    SnapshotCommitted(1, parent="")    begins this run's own lineage; WarmStartChosen has no further effect
"""

from __future__ import annotations

from checkpoint_sidecar.core.attempt import current
from checkpoint_sidecar.core.log import WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.run import Run

_WEIGHTS = (".safetensors", ".safetensors.index.json")


def names_weights(url: str) -> bool:
    """Return whether a URL names a safetensors file, or the index of several, instead of a run."""
    return url.endswith(_WEIGHTS)


def may_start_warm(run: Run, attempt: int) -> bool:
    """Return whether an attempt may begin elsewhere: nothing was committed, and it serves no other request.

    Raises:
        FencedError: See ``core.attempt.current``.
    """
    return not current(run, attempt).started.restore_request and not run.ever_committed


def warm_start_of(run: Run, attempt: int) -> WarmStartChosen | None:
    """Return the snapshot of another run at which an attempt begins, or None.

    Raises:
        FencedError: See ``core.attempt.current``.
    """
    return run.warm_start if may_start_warm(run, attempt) else None


def answers(chosen: WarmStartChosen | None, asked: str, part: str) -> bool:
    """Return whether a choice is the answer to what is asked for now, or is that very snapshot."""
    return chosen is not None and chosen.part == part and asked in (chosen.asked, address_of(chosen))


def address_of(chosen: WarmStartChosen | WarmStartFinished) -> str:
    """Return the address of the snapshot, or the URL if that is not a run's."""
    return f"{chosen.url}@{chosen.snapshot}" if chosen.snapshot else chosen.url


def choose(run: Run, chosen: WarmStartChosen) -> WarmStartChosen | None:
    """Return the entry that lets a run begin at a snapshot of another one, or None if it does so or is too late."""
    if run.ever_committed or answers(run.warm_start, chosen.asked, chosen.part):
        return None
    return chosen


def choose_for(run: Run, attempt: int, chosen: WarmStartChosen) -> WarmStartChosen | None:
    """Like ``choose``, for a running attempt.

    Raises:
        FencedError: See ``core.attempt.current``.
    """
    return choose(run, chosen) if may_start_warm(run, attempt) else None


def finish(run: Run, outcome: WarmStartFinished) -> WarmStartFinished:
    """Return the entry with the outcome, if the attempt may still write.

    Raises:
        FencedError: See ``core.attempt.current``.
    """
    current(run, outcome.attempt)
    return outcome
