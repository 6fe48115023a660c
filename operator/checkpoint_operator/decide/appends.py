"""What the operator may append, computed from the log as it stands.

One function per action. Each takes the current ``Run`` and returns the *whole* entry, or None when there is nothing to
write (any more): the plan asks them whether an action is due, and the append asks them again after every lost race for
a log number, so that no decision outlives the state it was made from.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

from checkpoint_operator.model import actions
from checkpoint_operator.model.actions import LogAction
from checkpoint_sidecar.core.lineage import in_use, walk
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    Body,
    DispositionSet,
    EvictionNoticed,
    Owner,
    PurgeStarted,
    QuarantineReleased,
    RollbackRequested,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SaveRequested,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
)
from checkpoint_sidecar.core.policy import NOT_CHECKED
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

_MAX_REASONS = 8


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
    found = run.snapshots.get(action.snapshot)
    if found is None or found.state is not SnapshotState.RETIRED or run.owner != owner:
        return None
    due = action.snapshot in purge_due(judge(run, now=now, terms=action.terms))
    return PurgeStarted(action.snapshot) if due else None


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
    found = run.snapshots.get(snapshot)
    if found is None or found.state is not SnapshotState.PURGING or run.owner != owner:
        return None
    return SnapshotPurged(snapshot, found.commit.bytes)


def why_not_retired(run: Run, snapshot: str) -> str:
    """Return why a user cannot retire a snapshot now, or an empty string."""
    if run.policy.retention is None:
        return "the Checkpoint has no spec.retention, without which nothing is ever retired"
    if snapshot == in_use(run):
        return "an attempt restores it or continues from it"
    newest_verified = next((s.id for s in walk(run, run.newest) if s.live and s.proven), None)
    return "it is the newest verified snapshot" if snapshot == newest_verified else ""


def _adopt(run: Run, owner: Owner, action: actions.Adopt) -> RunAdopted | None:
    if run.owner is None or run.owner == owner or run.owner.is_deleted or str(run.owner) != action.previous:
        return None
    # One value of takeOverFrom acts once for each Checkpoint object: if the other side took the run back, a human must
    # decide again. Entries of version 0.1.0 do not say which object asked.
    uid = action.request.partition("/")[0]
    before = {
        each.request
        for each in run.adoptions
        if (each.owner, each.previous_owner) == (owner, run.owner) and each.request.partition("/")[0] in ("", uid)
    }
    may = not before or (action.renewed and action.request not in before)
    return RunAdopted(owner, run.owner, action.request) if may else None


def _configure(run: Run, action: actions.Configure, _: dt.datetime) -> Body | None:
    known = run.configured
    if known and known[0] == action.uid and known[1] >= action.generation:
        return None
    return RunConfigured(action.uid, action.generation, action.policy)


def _rollback(run: Run, action: actions.RequestRollback, _: dt.datetime) -> Body | None:
    if action.request in run.rollbacks or not rollback_target_exists(run, action.snapshot):
        return None
    return RollbackRequested(action.request, action.snapshot)


def rollback_target_exists(run: Run, snapshot: str) -> bool:
    """Whether a rollback to this snapshot could still read it."""
    found = run.snapshots.get(snapshot)
    return found is not None and found.state in (SnapshotState.LIVE, SnapshotState.RETIRED)


def answered_saves(run: Run) -> Iterator[str]:
    """Yield the save requests that commits answered, newest first; a commit answers earlier ones of its attempt too."""
    for snapshot in reversed(tuple(run.snapshots.values())):
        answered = snapshot.commit.save_request
        if not answered or snapshot.state is SnapshotState.REJECTED:
            continue
        yield answered
        attempt = run.attempts.get(snapshot.commit.attempt)
        asked = [each.request for each in attempt.save_requests] if attempt else []
        if answered in asked:
            yield from reversed(asked[: asked.index(answered)])


def answered_user(run: Run) -> str | None:
    """Return the newest of the user's save requests that a commit answered, or None."""
    own = {each.request for attempt in run.attempts.values() for each in attempt.save_requests if each.reason}
    return next((request for request in answered_saves(run) if request not in own), None)


def _save(run: Run, action: actions.RequestSave, _: dt.datetime) -> Body | None:
    attempt = run.attempt
    if attempt is None or not run.may_commit(attempt.number):
        return None
    asked = (each.request for each in attempt.save_requests)
    if action.request in asked or action.request in answered_saves(run):
        return None
    return SaveRequested(action.request, attempt.number, action.reason)


def _eviction(run: Run, action: actions.NoticeEviction, _: dt.datetime) -> Body | None:
    attempt = run.attempt
    if attempt is None or attempt.number != action.attempt or attempt.eviction is not None:
        return None
    return EvictionNoticed(action.attempt, action.pod, action.reason)


def _disposition(run: Run, action: actions.SetDisposition, _: dt.datetime) -> Body | None:
    found = run.snapshots.get(action.snapshot)
    if found is None or found.disposition == action.disposition:
        return None
    if action.disposition == "Retire" and why_not_retired(run, action.snapshot):
        return None
    return DispositionSet(action.snapshot, action.disposition)


def _release(run: Run, action: actions.ReleaseQuarantine, _: dt.datetime) -> Body | None:
    # Also if nothing was found yet: the request acts now, and not on damage that is found years later.
    found = run.snapshots.get(action.snapshot)
    if found is None or found.state not in (SnapshotState.LIVE, SnapshotState.RETIRED):
        return None
    return None if action.request in found.releases else QuarantineReleased(action.snapshot, action.request)


def _check(run: Run, action: actions.RecordCheck, _: dt.datetime) -> Body | None:
    # A purge that began meanwhile deletes the very objects; their absence would look like evidence. What another reader
    # found meanwhile must not count twice (two operators during a roll-out would quarantine a snapshot by themselves),
    # and a look that began before it must not clear it.
    check = action.finding.check
    found = run.snapshots.get(check.snapshot)
    if found is None or not found.live:
        return None
    if found.failures != action.finding.failures:
        return None
    clears = found.failures and check.level == "Checksums"
    return check if not check.passed or clears or not found.verified_at_least(check.level) else None


def unverified(snapshot: Snapshot) -> bool:
    """Whether nothing is known yet about the stored objects of a live snapshot, for or against it."""
    return snapshot.live and snapshot.verified == NOT_CHECKED and snapshot.failures == 0


def _retire(run: Run, action: actions.Retire, now: dt.datetime) -> SnapshotRetired | None:
    found = run.snapshots.get(action.snapshot)
    policy = run.policy.retention
    if found is None or not found.live or policy is None or policy.dry_run:
        return None
    reasons = judge(run, now=now, terms=action.terms).retire.get(action.snapshot)
    return SnapshotRetired(action.snapshot, reasons[:_MAX_REASONS]) if reasons else None


def _reinstate(run: Run, action: actions.Reinstate, now: dt.datetime) -> SnapshotReinstated | None:
    found = run.snapshots.get(action.snapshot)
    if found is None or found.state is not SnapshotState.RETIRED:
        return None
    wanted = action.snapshot in judge(run, now=now, terms=action.terms).keep
    return SnapshotReinstated(action.snapshot) if wanted else None


_ENTRY: dict[type, Callable[[Run, Any, dt.datetime], Body | None]] = {
    actions.Configure: _configure,
    actions.RequestRollback: _rollback,
    actions.RequestSave: _save,
    actions.NoticeEviction: _eviction,
    actions.SetDisposition: _disposition,
    actions.ReleaseQuarantine: _release,
    actions.RecordCheck: _check,
    actions.Retire: _retire,
    actions.Reinstate: _reinstate,
}
