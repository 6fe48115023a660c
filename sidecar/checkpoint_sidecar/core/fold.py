"""The effect of each kind of entry on a run: one small function each, and a table of them.

Each takes the run so far and returns the run after the entry. An entry that breaks a rule of the protocol changes
nothing, or is kept as REJECTED. ``core.replay`` has the theory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    AttemptStarted,
    DispositionSet,
    EvictionNoticed,
    PurgeStarted,
    QuarantineReleased,
    RestoreFinished,
    RestoreStarted,
    RollbackRequested,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SaveFailed,
    SaveRequested,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotCommittedSharing,
    SnapshotPurged,
    SnapshotRead,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    WarmStartChosen,
    WarmStartFinished,
)
from checkpoint_sidecar.core.overwrite import rejection
from checkpoint_sidecar.core.policy import NO_RESTORE, NOT_CHECKED, VerifyLevel
from checkpoint_sidecar.core.purging import with_grace_of
from checkpoint_sidecar.core.reading import readings_after
from checkpoint_sidecar.core.run import Attempt, RestoreRequest, Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.sharing import may_purge
from checkpoint_sidecar.core.working import Working


def _claimed(run: Run, working: Working, entry: StoredEntry, body: RunClaimed) -> Run:
    if run.owner is not None and not run.owner.is_deleted:
        return run
    # A new run, which shares only the numbering of its entries with the deleted one.
    for table in (working.attempts, working.snapshots, working.first_commits, working.sharers):
        table.clear()
    return Run(
        first=entry.number,
        identity=entry.digest,
        remnants=run.remnants,
        owner=body.owner,
        attempts=working.attempts,
        snapshots=working.snapshots,
        first_commits=working.first_commits,
        sharers=working.sharers,
    )


def _adopted(run: Run, _: Working, entry: StoredEntry, body: RunAdopted) -> Run:
    if run.owner != body.previous_owner:
        return run
    return replace(
        run,
        owner=body.owner,
        adoptions=(*run.adoptions, body),
        tombstone=entry.number if body.owner.is_deleted else 0,
        fenced_up_to=run.highest_attempt,
    )


def _saves_identified(run: Run, _: Working, __: StoredEntry, body: SavesIdentified) -> Run:
    return replace(run, identified=True) if body.run == run.short_identity else run


def _configured(run: Run, _: Working, entry: StoredEntry, body: RunConfigured) -> Run:
    if run.configured and run.configured[0] == body.uid and body.generation <= run.configured[1]:
        return run
    run = with_grace_of(run, body.policy.retention, entry.stored_at)
    pending = run.pending
    was, now = run.policy.restore.mode, body.policy.restore.mode
    fresh = RestoreRequest(f"fresh-{body.uid[:8]}-{body.generation}", None)
    if now == NO_RESTORE and was == "Latest" and fresh.id not in run.consumed:
        pending = fresh
    elif now == "Latest" and pending is not None and pending.snapshot is None:
        pending = None
    return replace(run, configured=(body.uid, body.generation), policy=body.policy, pending=pending)


def _rollback(run: Run, working: Working, _: StoredEntry, body: RollbackRequested) -> Run:
    restorable = working.state(body.snapshot) in (SnapshotState.LIVE, SnapshotState.RETIRED)
    if body.request in run.rollbacks or not restorable:
        return run
    working.reinstate(body.snapshot)
    return replace(run, pending=RestoreRequest(body.request, body.snapshot), rollbacks=(*run.rollbacks, body.request))


def _warm_start_chosen(run: Run, _: Working, __: StoredEntry, body: WarmStartChosen) -> Run:
    return run if run.ever_committed else replace(run, warm_start=body)


def _attempt_started(run: Run, working: Working, entry: StoredEntry, body: AttemptStarted) -> Run:
    if body.attempt == run.highest_attempt + 1:
        served = run.pending if run.pending and run.pending.id == body.restore_request else None
        working.attempts[body.attempt] = Attempt(
            started=body,
            number=body.attempt,
            started_at=entry.stored_at,
            fresh=served is not None and served.snapshot is None,
            in_use=body.candidate or None,
        )
    return run


def _restore_started(run: Run, working: Working, _: StoredEntry, body: RestoreStarted) -> Run:
    working.change_attempt(body.attempt, in_use=body.snapshot)
    return run


def _restore_finished(run: Run, working: Working, entry: StoredEntry, body: RestoreFinished) -> Run:
    attempt = working.attempts.get(body.attempt)
    if attempt is None or working.state(body.snapshot) in (None, SnapshotState.REJECTED):
        return run
    working.change_attempt(body.attempt, restores=(*attempt.restores, body))
    if body.restored:
        working.change_attempt(body.attempt, in_use=body.snapshot, restored=body.snapshot)
    elif attempt.in_use == body.snapshot:
        working.change_attempt(body.attempt, in_use=None)
    level = _claim(body, working.snapshots[body.snapshot])
    working.record_check(body, passed=body.restored, level=level, number=entry.number)
    return run


def _warm_start_finished(run: Run, working: Working, _: StoredEntry, body: WarmStartFinished) -> Run:
    if not run.ever_committed:
        working.change_attempt(body.attempt, warm_start=body)
    return run


def _claim(body: RestoreFinished, snapshot: Snapshot) -> VerifyLevel:
    """Return how far a restore has verified a snapshot; reading a part says nothing about the rest."""
    compared = 0 if isinstance(body.compared_bytes, msgspec.UnsetType) else body.compared_bytes
    return body.verified if compared >= snapshot.commit.bytes else NOT_CHECKED


def _committed(run: Run, working: Working, entry: StoredEntry, body: SnapshotCommitted) -> Run:
    reason = rejection(run, body)
    if body.snapshot not in working.snapshots:
        working.snapshots[body.snapshot] = Snapshot(
            commit=body,
            number=entry.number,
            committed_at=entry.stored_at,
            state=SnapshotState.REJECTED if reason else SnapshotState.LIVE,
            reasons=(reason,) if reason else (),
        )
        working.first_commits.setdefault(body.step, entry.number)
    if reason:
        return run
    for shared in shares_of(body):
        working.sharers[shared.snapshot] = (*working.sharers.get(shared.snapshot, ()), body.snapshot)
    working.change_attempt(body.attempt, in_use=None, last_commit=body.snapshot, save_failure=None)
    if not body.restore_request:
        return replace(run, newest=body.snapshot)
    served = run.pending is not None and run.pending.id == body.restore_request
    return replace(
        run,
        newest=body.snapshot,
        consumed=run.consumed | {body.restore_request},
        pending=None if served else run.pending,
    )


def _verified(run: Run, working: Working, entry: StoredEntry, body: SnapshotVerified) -> Run:
    working.record_check(body, passed=body.passed, level=body.level, number=entry.number)
    return run


def _save_requested(run: Run, working: Working, _: StoredEntry, body: SaveRequested) -> Run:
    attempt = working.attempts.get(body.attempt)
    if attempt is not None:
        working.change_attempt(body.attempt, save_requests=(*attempt.save_requests, body))
    return run


def _save_failed(run: Run, working: Working, _: StoredEntry, body: SaveFailed) -> Run:
    working.change_attempt(body.attempt, save_failure=body)
    return run


def _eviction(run: Run, working: Working, entry: StoredEntry, body: EvictionNoticed) -> Run:
    attempt = working.attempts.get(body.attempt)
    if attempt is not None and attempt.eviction is None:
        working.change_attempt(body.attempt, eviction=body, eviction_at=entry.stored_at)
    return run


def _fenced(run: Run, _: Working, __: StoredEntry, body: AttemptFenced) -> Run:
    return replace(run, fenced_up_to=body.attempt) if body.attempt == run.highest_attempt else run


def _disposition(run: Run, working: Working, _: StoredEntry, body: DispositionSet) -> Run:
    working.change_snapshot(body.snapshot, disposition=body.disposition)
    return run


def _released(run: Run, working: Working, entry: StoredEntry, body: QuarantineReleased) -> Run:
    found = working.snapshots.get(body.snapshot)
    if found is None or body.request in found.releases:
        return run
    working.change_snapshot(body.snapshot, releases=(*found.releases, body.request), judged=entry.number)
    working.clear_files(found)
    if found.failures:
        # A verification before the damage was found says nothing about the present bytes.
        working.change_snapshot(body.snapshot, failures=0, evidence="", verified=NOT_CHECKED)
    return run


def _read(run: Run, working: Working, entry: StoredEntry, body: SnapshotRead) -> Run:
    found = working.snapshots.get(body.snapshot)
    if found is not None:
        readings = readings_after(found.readings, body, entry.stored_at)
        working.change_snapshot(body.snapshot, readings=readings)
    return run


def _retired(run: Run, working: Working, entry: StoredEntry, body: SnapshotRetired) -> Run:
    if working.state(body.snapshot) is SnapshotState.LIVE:
        working.change_snapshot(
            body.snapshot, state=SnapshotState.RETIRED, retired_at=entry.stored_at, reasons=body.reasons
        )
    return run


def _reinstated(run: Run, working: Working, _: StoredEntry, body: SnapshotReinstated) -> Run:
    if working.state(body.snapshot) is SnapshotState.RETIRED:
        working.reinstate(body.snapshot)
        if body.attempt is not None:
            working.change_attempt(body.attempt, in_use=body.snapshot)
    return run


def _purge_started(run: Run, working: Working, entry: StoredEntry, body: PurgeStarted) -> Run:
    found = working.snapshots.get(body.snapshot)
    if found is not None and may_purge(working, found, body.keep):
        working.change_snapshot(
            body.snapshot,
            state=SnapshotState.PURGING,
            purge_started_at=found.purge_started_at or entry.stored_at,
            kept=body.keep,
        )
    return run


def _purged(run: Run, working: Working, _: StoredEntry, body: SnapshotPurged) -> Run:
    if working.state(body.snapshot) is SnapshotState.PURGING:
        purged = working.snapshots[body.snapshot].purged_bytes + body.bytes
        working.change_snapshot(body.snapshot, state=SnapshotState.PURGED, purged_bytes=purged)
    return run


FOLD: dict[type, Callable[[Run, Working, StoredEntry, Any], Run]] = {
    RunClaimed: _claimed,
    RunAdopted: _adopted,
    SavesIdentified: _saves_identified,
    RunConfigured: _configured,
    RollbackRequested: _rollback,
    WarmStartChosen: _warm_start_chosen,
    AttemptStarted: _attempt_started,
    RestoreStarted: _restore_started,
    RestoreFinished: _restore_finished,
    WarmStartFinished: _warm_start_finished,
    SnapshotCommitted: _committed,
    SnapshotCommittedSharing: _committed,
    SnapshotVerified: _verified,
    SaveRequested: _save_requested,
    SaveFailed: _save_failed,
    EvictionNoticed: _eviction,
    AttemptFenced: _fenced,
    DispositionSet: _disposition,
    QuarantineReleased: _released,
    SnapshotRead: _read,
    SnapshotRetired: _retired,
    SnapshotReinstated: _reinstated,
    PurgeStarted: _purge_started,
    SnapshotPurged: _purged,
}
