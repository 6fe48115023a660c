"""Overwrite policy: what it means to save a step the running attempt already descends from."""

from __future__ import annotations

from checkpoint_sidecar.core.lineage import ancestors
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot


def base_of(attempt: Attempt) -> str:
    """What the attempt's next commit descends from.

    Its previous commit, else what it restored, else what it said it continues, else nothing.
    """
    return attempt.last_commit or attempt.restored or attempt.started.continues


def existing_save(run: Run, base: str, step: int) -> Snapshot | None:
    """The live snapshot of ``step`` among ``base`` and its ancestors.

    Only the attempt's own ancestors count: looking at the whole log would forbid steps of an abandoned branch.
    """
    return next((s for s in ancestors(run, base) if s.step == step and s.live), None)


def rejection(run: Run, commit: SnapshotCommitted) -> str:
    """Why replay must not accept a commit, or empty: how the policy holds even against a library that ignores it."""
    if not run.may_commit(commit.attempt):
        return "Fenced"
    if commit.snapshot in run.snapshots:
        return "DuplicateSnapshot"
    existing = existing_save(run, commit.parent, commit.step)
    if existing is None:
        return "ReplacesNothing" if commit.replaces else ""
    if commit.replaces != existing.id:
        return "StepExists"
    if run.configured and run.policy.overwrite != "Replace":
        return "ReplaceNotAllowed"
    return ""
