"""``Checkpoint.status`` from what is observed. Pure; nothing in it changes by the clock alone.

Each condition is judged by an ordered list of checks, first failure wins.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from checkpoint_operator import conditions
from checkpoint_operator.conditions import Judgement, timestamp
from checkpoint_operator.model import Fault, Observed
from checkpoint_operator.plan import best_snapshot, members, rollback_target
from checkpoint_operator.resources import encode_status, purge_after
from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.api import MAX_LISTED, ConditionType, Reason
from checkpoint_sidecar.core.lineage import lineage, quarantined
from checkpoint_sidecar.core.log import RestoreFinished
from checkpoint_sidecar.core.retention import judge, metric_value
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot, SnapshotState

REPORT_WITHIN = dt.timedelta(minutes=10)
"""How long labelled pods may run before an AttemptStarted is missed: imports and process groups take minutes."""

NOT_AS_ASKED = frozenset({"NothingRestored", "WrongParent", "WrongRequest"})
"""Why replay rejected a commit of an attempt that went on from something else than it was told to restore."""

CADENCES = 3
"""A verified snapshot older than this many save intervals does not protect a running attempt."""


def status_of(observed: Observed) -> dict[str, Any]:
    """The whole status, as the API server would store it.

    What only the log could tell stays as it was while the log cannot be read.
    """
    checkpoint = observed.checkpoint
    judged = conditions.merge(
        checkpoint.status.get("conditions", ()), _judge(observed), generation=checkpoint.generation, wall=observed.wall
    )
    head = encode_status(api.CheckpointStatus(observed_generation=checkpoint.generation, conditions=judged))
    if observed.run is None:
        return {**checkpoint.status, **head}
    claimed_by = str(observed.run.owner) if observed.run.owner else None
    if not observed.ours:
        return {**head, **encode_status(api.CheckpointStatus(claimed_by=claimed_by))}
    return {**head, **encode_status(_facts(observed, observed.run, claimed_by))}


def fault_of(observed: Observed) -> Fault | None:
    """The first thing that keeps this Checkpoint from working, or None."""
    if observed.rival is not None:
        message = f"The prefix overlaps that of the older Checkpoint {observed.rival}. Choose another prefix."
        return Fault(Reason.PREFIX_CLAIMED, message, stalled=True)
    if observed.fault is not None:
        return observed.fault
    run = observed.run
    if run is None:
        return Fault(Reason.STORE_UNAVAILABLE, "The run log was not read yet.")
    if run.unknown_critical:
        message = f"The run log holds a critical {run.unknown_critical} entry. Upgrade the operator."
        return Fault(Reason.UPGRADE_REQUIRED, message, stalled=True)
    if run.owner is not None and run.owner != observed.owner:
        message = (
            f"The prefix is claimed by {run.owner}. Choose another prefix, or take this one over with "
            f"spec.storage.takeOverFrom: {run.owner}."
        )
        return Fault(Reason.PREFIX_CLAIMED, message, stalled=True)
    return None


def _judge(observed: Observed) -> tuple[Judgement, ...]:
    return (
        _ready(observed),
        _storage(observed),
        _protected(observed),
        _restore_enforced(observed),
        _stalled(observed),
    )


def _ready(observed: Observed) -> Judgement:
    fault = fault_of(observed)
    if fault:
        return Judgement(ConditionType.READY, "False", fault.reason, fault.message, quotes=True)
    run, checkpoint = observed.run, observed.checkpoint
    if run is None or run.configured != (checkpoint.uid, checkpoint.generation):
        message = "The policy is not in the run log yet."
        return Judgement(ConditionType.READY, "False", Reason.STORE_UNAVAILABLE, message)
    message = "The prefix is ours, the store was probed, and the policy is in the run log."
    return Judgement(ConditionType.READY, "True", Reason.CONFIGURED, message)


def _storage(observed: Observed) -> Judgement:
    fault = observed.fault
    if fault is not None:
        return Judgement(ConditionType.STORAGE_AVAILABLE, "False", fault.reason, fault.message, quotes=True)
    if observed.run is None:
        return Judgement(ConditionType.STORAGE_AVAILABLE, "Unknown", Reason.STORE_UNAVAILABLE, "Not probed yet.")
    message = "The store can be read and written, and creates objects conditionally."
    return Judgement(ConditionType.STORAGE_AVAILABLE, "True", Reason.AVAILABLE, message)


def _stalled(observed: Observed) -> Judgement:
    fault = fault_of(observed)
    if fault and fault.stalled:
        return Judgement(ConditionType.STALLED, "True", fault.reason, fault.message, quotes=True)
    return Judgement(ConditionType.STALLED, "False", Reason.NOT_STALLED, "Nothing waits for a human.")


def _protected(observed: Observed) -> Judgement:
    run, now = observed.run, observed.now
    if run is None or now is None or not observed.ours or not any(pod.active for pod in observed.pods):
        return Judgement(ConditionType.PROTECTED, "Unknown", Reason.NOT_RUNNING, "Judged only while an attempt runs.")
    live = [s for s in lineage(run) if s.live]
    proven = [s for s in live if s.proven]
    if not live:
        return Judgement(ConditionType.PROTECTED, "False", Reason.NO_SNAPSHOT, "Nothing is committed yet.")
    if not proven:
        return Judgement(ConditionType.PROTECTED, "False", Reason.NOT_VERIFIED, "No snapshot is verified yet.")
    interval = run.policy.save.every_seconds
    # By steps alone nobody can say when the next save is due, so only a cadence in time can be missed.
    if interval is not None and (now - proven[0].committed_at).total_seconds() > CADENCES * interval:
        message = f"The newest verified snapshot is older than {CADENCES} intervals of {interval:g} s."
        return Judgement(ConditionType.PROTECTED, "False", Reason.SNAPSHOT_TOO_OLD, message)
    message = "A verified snapshot is recent enough."
    return Judgement(ConditionType.PROTECTED, "True", Reason.RECENT_SNAPSHOT, message)


def _restore_enforced(observed: Observed) -> Judgement:
    run, spec = observed.run, observed.checkpoint.spec
    if run is None or spec is None or not observed.ours:
        return Judgement(ConditionType.RESTORE_ENFORCED, "Unknown", Reason.NOT_RUNNING, "The run log is not known.")
    attempt = run.attempt
    silent = _silent_pod(observed, attempt)
    if silent:
        message = (
            f"Pod {silent} has run for more than {REPORT_WITHIN.seconds // 60} minutes without starting an attempt. "
            "Does its container use the library, and was it injected?"
        )
        return Judgement(ConditionType.RESTORE_ENFORCED, "False", Reason.NOT_REPORTED, message)
    if attempt is None:
        message = "No attempt has started yet."
        return Judgement(ConditionType.RESTORE_ENFORCED, "Unknown", Reason.NOT_RUNNING, message)
    if _ignored_restore(run, attempt):
        message = f"Attempt {attempt.number} saved without restoring {attempt.started.candidate or 'anything'} first."
        return Judgement(ConditionType.RESTORE_ENFORCED, "False", Reason.RESTORE_MISMATCH, message)
    rollback = spec.restore.rollback
    served = rollback is None or rollback.request in run.consumed or observed.checkpoint.status.get("lastRollback")
    if rollback is not None and not served and rollback_target(spec, run) is None:
        message = f"Rollback {rollback.request} names no snapshot that could be restored."
        return Judgement(ConditionType.RESTORE_ENFORCED, "False", Reason.RESTORE_MISMATCH, message)
    message = f"Attempt {attempt.number} restored what the policy says."
    if attempt.restored is None and attempt.started.candidate:
        message = f"Attempt {attempt.number} is restoring."
    return Judgement(ConditionType.RESTORE_ENFORCED, "True", Reason.RESTORED_AS_ASKED, message)


def _ignored_restore(run: Run, attempt: Attempt) -> bool:
    if attempt.started.candidate and attempt.restored is None and attempt.last_commit is not None:
        return True
    mine = (s for s in run.snapshots.values() if s.commit.attempt == attempt.number)
    return any(not NOT_AS_ASKED.isdisjoint(s.reasons) for s in mine if s.state is SnapshotState.REJECTED)


def _silent_pod(observed: Observed, attempt: Attempt | None) -> str:
    for pod in observed.pods:
        if pod.phase != "Running" or pod.started_at is None:
            continue
        reported = attempt is not None and attempt.started_at >= pod.started_at
        if not reported and observed.wall - pod.started_at > REPORT_WITHIN:
            return pod.name
    return ""


def _facts(observed: Observed, run: Run, claimed_by: str | None) -> api.CheckpointStatus:
    live = [s for s in run.snapshots.values() if s.live]
    suspects = [s for s in reversed(tuple(run.snapshots.values())) if s.live and quarantined(run, s)]
    return api.CheckpointStatus(
        claimed_by=claimed_by,
        latest=_latest(run),
        best=_best(run),
        last_restore=_last_restore(observed, run),
        attempt=_attempt(observed, run),
        snapshots=len(live),
        retained_bytes=sum(s.commit.bytes for s in live),
        pending_purge=_pending_purge(observed, run),
        quarantined=tuple(api.QuarantinedSnapshot(s.id, s.failures, s.evidence) for s in suspects[:MAX_LISTED]),
        quarantined_snapshots=len(suspects),
        last_save_request=_served_request(observed, run),
        last_rollback=_passed_rollback(observed, run),
        log_sequence=run.head,
    )


def _latest(run: Run) -> api.LatestSnapshot | None:
    newest = next((s for s in lineage(run) if s.live), None)
    if newest is None:
        return None
    return api.LatestSnapshot(
        step=newest.step,
        snapshot=newest.id,
        time=timestamp(newest.committed_at),
        bytes=newest.commit.bytes,
        world_size=newest.commit.world_size,
    )


def _best(run: Run) -> api.BestSnapshot | None:
    best = best_snapshot(run)
    if best is None or run.policy.retention is None:
        return None
    metric = run.policy.retention.keep_best[0].metric
    return api.BestSnapshot(best.step, best.id, metric, str(metric_value(best, metric)))


def _attempt(observed: Observed, run: Run) -> api.AttemptStatus | None:
    attempt = run.attempt
    if attempt is None:
        return None
    restored = run.snapshots.get(attempt.restored or "")
    return api.AttemptStatus(
        number=attempt.number,
        started_at=timestamp(attempt.started_at),
        restored_step=restored.step if restored else None,
        pod_count=_pod_count(observed, attempt) or None,
        pods=tuple(pod.name for pod in attempt.started.pods)[:MAX_LISTED],
    )


def _pod_count(observed: Observed, attempt: Attempt) -> int:
    reported = observed.checkpoint.status.get("attempt", {})
    counted = [len(attempt.started.pods), sum(1 for _ in members(attempt, observed.pods))]
    # Pods that are gone were still pods of the attempt.
    if reported.get("number") == attempt.number:
        counted.append(reported.get("podCount", 0))
    return max(counted)


def _last_restore(observed: Observed, run: Run) -> api.LastRestore | None:
    """How the newest attempt that came as far as training began."""
    for attempt in reversed(tuple(run.attempts.values())):
        outcome = next((r for r in reversed(attempt.restores) if r.restored), None)
        if outcome is not None:
            return _restored(observed, run, attempt, outcome)
        if attempt.last_commit is not None and attempt.restored is None:
            return api.LastRestore(attempt.number, "FreshStart", timestamp(attempt.started_at))
    return None


def _restored(observed: Observed, run: Run, attempt: Attempt, outcome: RestoreFinished) -> api.LastRestore:
    snapshot = run.snapshots.get(outcome.snapshot)
    skipped = tuple(r.snapshot for r in reversed(attempt.restores) if not r.restored and r.snapshot != outcome.snapshot)
    request = attempt.started.restore_request
    lost_steps, lost_seconds = _lost(observed, run, attempt, snapshot)
    return api.LastRestore(
        attempt=attempt.number,
        reason="Rollback" if request else "Fallback" if skipped else "Latest",
        time=timestamp(attempt.started_at),
        step=snapshot.step if snapshot else None,
        snapshot=outcome.snapshot,
        skipped=skipped[:MAX_LISTED],
        lost_steps=lost_steps,
        lost_seconds=lost_seconds,
        seconds=math.ceil(outcome.seconds),
    )


def _lost(observed: Observed, run: Run, attempt: Attempt, snapshot: Snapshot | None) -> tuple[int | None, int | None]:
    """Steps and seconds of the previous attempt that are trained again, as far as known.

    Once reported they stay: the evidence is a file that the new attempt soon overwrites.
    """
    reported = observed.checkpoint.status.get("lastRestore", {})
    if reported.get("attempt") == attempt.number and reported.get("lostSteps") is not None:
        return reported["lostSteps"], reported.get("lostSeconds")
    before = run.attempts.get(attempt.number - 1)
    progress = observed.progress.get(attempt.number - 1)
    if before is None or progress is None or snapshot is None:
        return None, None
    steps = max(0, progress.step - snapshot.step)
    # Training may have paused between the snapshot and the attempt that went on from it; that time was not trained.
    since = max(snapshot.committed_at, before.started_at)
    return steps, max(0, round((progress.at - since).total_seconds())) if steps else 0


def _pending_purge(observed: Observed, run: Run) -> tuple[api.PendingPurge, ...]:
    pending = [
        api.PendingPurge(s.id, s.commit.bytes, after, s.reasons)
        for s in run.snapshots.values()
        if (after := purge_after(run, s)) is not None
    ]
    pending.sort(key=lambda each: each.purge_after)
    policy = run.policy.retention
    if policy is not None and policy.dry_run and observed.now is not None:
        verdict = judge(run, now=observed.now)
        # A dry run retires nothing, so the wait has not begun: the earliest moment is a grace period after the commit.
        pending += [
            api.PendingPurge(s.id, s.commit.bytes, _earliest(s, policy.grace_seconds), verdict.retire[s.id])
            for s in run.snapshots.values()
            if s.live and s.id in verdict.retire
        ]
    return tuple(pending[:MAX_LISTED])


def _earliest(snapshot: Snapshot, grace_seconds: float) -> str:
    return timestamp(snapshot.committed_at + dt.timedelta(seconds=grace_seconds))


def _served_request(observed: Observed, run: Run) -> str | None:
    """The save request that a commit answered last; the spec's own as soon as one did."""
    served = {s.commit.save_request for s in run.snapshots.values() if s.state is not SnapshotState.REJECTED}
    spec = observed.checkpoint.spec
    if spec is not None and spec.save.request and spec.save.request in served:
        return spec.save.request
    previous = observed.checkpoint.status.get("lastSaveRequest")
    return previous if isinstance(previous, str) else None


def _passed_rollback(observed: Observed, run: Run) -> str | None:
    spec = observed.checkpoint.spec
    rollback = spec.restore.rollback if spec else None
    if rollback is not None:
        pending = run.pending.id if run.pending else None
        if rollback.request in run.consumed or rollback.request == pending:
            return rollback.request
    previous = observed.checkpoint.status.get("lastRollback")
    return previous if isinstance(previous, str) else None
