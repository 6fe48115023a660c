"""Overwrite policy: decides about saves of a step that the running attempt already descends from."""

from __future__ import annotations

from itertools import takewhile

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.lineage import walk
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot
from checkpoint_sidecar.core.sharing import why_not_shared


def base_of(attempt: Attempt) -> str:
    """Return the snapshot that the attempt's next commit descends from.

    It is the attempt's previous commit, else the restored snapshot, else the one that it continues, else none.
    """
    return attempt.last_commit or attempt.restored or attempt.started.continues


def may_begin_anew(run: Run, attempt: Attempt) -> bool:
    """Return whether the attempt's first commit may have no parent, which orphans all earlier snapshots."""
    return attempt.fresh or not run.ever_committed or run.policy.restore.on_missing == "StartFresh"


def existing_save(run: Run, base: str, step: int) -> Snapshot | None:
    """Return the live snapshot of ``step`` among ``base`` and its ancestors.

    Only the attempt's own ancestors count, because the whole log would forbid steps of an abandoned branch.
    """
    first = run.first_commits.get(step)
    if first is None:
        return None
    # Replay calls this for every commit, so a walk down to the first snapshot would make long logs quadratic.
    recent = takewhile(lambda s: s.number >= first, walk(run, base))
    return next((s for s in recent if s.step == step and s.live), None)


def rejection(run: Run, commit: SnapshotCommitted) -> str:
    """Return why replay must reject a commit, or empty. This enforces the rules even if a library ignores them."""
    if not _in_place(run, commit):
        return "InvalidPath"
    if not run.may_commit(commit.attempt):
        return "Fenced"
    if commit.snapshot in run.snapshots:
        return "DuplicateSnapshot"
    attempt = run.attempts[commit.attempt]
    if commit.parent != base_of(attempt) or (commit.parent and commit.parent not in run.snapshots):
        return "WrongParent"
    if commit.restore_request != attempt.started.restore_request:
        return "WrongRequest"
    if not commit.parent and not may_begin_anew(run, attempt):
        return "NothingRestored"
    if why_not_shared(run, shares_of(commit)):
        return "SharedFilesGone"
    existing = existing_save(run, commit.parent, commit.step)
    if existing is None:
        return "ReplacesNothing" if commit.replaces else ""
    if commit.replaces != existing.id:
        return "StepExists"
    if run.configured and run.policy.overwrite != "Replace":
        return "ReplaceNotAllowed"
    return ""


def _in_place(run: Run, commit: SnapshotCommitted) -> bool:
    """Return whether this run's writers make such a path. Under any other, reads and deletes must never happen."""
    try:
        folder = layout.parse_save_folder(commit.path)
    except ValueError:
        return False
    if folder.run not in ("", run.short_identity):
        return False
    identifier = layout.snapshot_id(commit.step, commit.attempt, folder.nonce)
    return folder.attempt == commit.attempt and folder.step in (None, commit.step) and identifier == commit.snapshot
