"""What the operator may append, computed from the log as it stands.

One function per action. Each takes the current ``Run`` and returns the *whole* entry, or None when there is nothing to
write (any more): the plan asks them whether an action is due, and the append asks them again after every lost race for
a log number, so that no decision outlives the state it was made from.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from checkpoint_operator.model import actions
from checkpoint_operator.model.actions import LogAction
from checkpoint_sidecar.core import purging, requests, warm_start
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    Body,
    EvictionNoticed,
    Owner,
    PurgeStarted,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SnapshotPurged,
)
from checkpoint_sidecar.core.run import Run


def entry_for(action: LogAction, run: Run, *, owner: Owner, now: dt.datetime) -> Body | None:
    """Return the entry that carries out an action, or None when the log already says so or no longer allows it.

    Args:
        owner: The owner that this operator acts for; it never writes into the log of another.
        now: The store's clock.
    """
    if isinstance(action, actions.Claim):
        return RunClaimed(owner) if run.free else None
    if isinstance(action, actions.End):
        return RunAdopted(owner.deleted, owner) if run.owner == owner else None
    if isinstance(action, actions.Adopt):
        return _adopt(run, owner, action)
    if run.owner != owner:
        return None
    return _ENTRY[type(action)](run, action, now)


def start_purge(run: Run, action: actions.Purge, *, owner: Owner, now: dt.datetime) -> PurgeStarted | None:
    """Return the entry after which there is no way back, or None if the policy in the log no longer wants the purge."""
    return purging.start_purge(run, action.snapshot, now=now, terms=action.terms) if run.owner == owner else None


def fence(run: Run, action: actions.CollectLast, *, owner: Owner) -> AttemptFenced | None:
    """Return the entry that fences a silent attempt, or None if it has shown a sign of life since this was planned."""
    attempt = run.attempt
    if attempt is None or attempt.number != action.attempt or run.owner != owner:
        return None
    if not run.may_commit(action.attempt) or (attempt.last_commit or "") != action.commit:
        return None
    return AttemptFenced(action.attempt)


def finish_purge(run: Run, snapshot: str, *, owner: Owner) -> SnapshotPurged | None:
    """Return the entry that ends a purge whose data is gone."""
    return purging.finish_purge(run, snapshot) if run.owner == owner else None


def _adopt(run: Run, owner: Owner, action: actions.Adopt) -> RunAdopted | None:
    if run.owner is None or run.owner == owner or run.owner.is_deleted or str(run.owner) != action.previous:
        return None
    # One value of takeOverFrom acts once for each Checkpoint object: if the other side took the run back, a user must
    # decide again. Entries of version 0.1.0 do not say which object asked.
    uid = action.request.partition("/")[0]
    asked_at = [
        int(generation) if generation.isdigit() else 0
        for each in run.adoptions
        for asking, _, generation in [each.request.partition("/")]
        if (each.owner, each.previous_owner) == (owner, run.owner) and asking in ("", uid)
    ]
    # Requests since the field last had another value are this one.
    may = not asked_at or 0 < action.unset_at >= max(asked_at)
    return RunAdopted(owner, run.owner, action.request) if may else None


def _configure(run: Run, action: actions.Configure, _: dt.datetime) -> Body | None:
    known = run.configured
    if known and known[0] == action.uid and known[1] >= action.generation:
        return None
    return RunConfigured(action.uid, action.generation, action.policy)


def _eviction(run: Run, action: actions.NoticeEviction, _: dt.datetime) -> Body | None:
    attempt = run.attempt
    if attempt is None or attempt.number != action.attempt or attempt.eviction is not None:
        return None
    return EvictionNoticed(action.attempt, action.pod, action.reason)


def _reinstate(run: Run, action: actions.Reinstate, now: dt.datetime) -> Body | None:
    return purging.reinstate(run, action.snapshot, now=now, terms=action.terms)


def _save(run: Run, action: actions.RequestSave, _: dt.datetime) -> Body | None:
    return requests.save(run, action.request, reason=action.reason)


def _rollback(run: Run, action: actions.RequestRollback, _: dt.datetime) -> Body | None:
    return requests.roll_back(run, action.snapshot, action.request)


def _warm_start(run: Run, action: actions.ChooseWarmStart, _: dt.datetime) -> Body | None:
    return warm_start.choose(run, action.chosen)


def _disposition(run: Run, action: actions.SetDisposition, _: dt.datetime) -> Body | None:
    return requests.dispose(run, action.snapshot, action.disposition)


def _release(run: Run, action: actions.ReleaseQuarantine, _: dt.datetime) -> Body | None:
    return requests.release_quarantine(run, action.snapshot, action.request)


def _check(run: Run, action: actions.RecordCheck, _: dt.datetime) -> Body | None:
    return requests.record_check(run, action.finding.check, judged=action.finding.judged)


def _retire(run: Run, action: actions.Retire, now: dt.datetime) -> Body | None:
    return purging.retire(run, action.snapshot, now=now, terms=action.terms)


_ENTRY: dict[type, Callable[[Run, Any, dt.datetime], Body | None]] = {
    actions.Configure: _configure,
    actions.RequestRollback: _rollback,
    actions.ChooseWarmStart: _warm_start,
    actions.RequestSave: _save,
    actions.NoticeEviction: _eviction,
    actions.SetDisposition: _disposition,
    actions.ReleaseQuarantine: _release,
    actions.RecordCheck: _check,
    actions.Retire: _retire,
    actions.Reinstate: _reinstate,
}
