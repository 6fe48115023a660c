"""Builds ``Checkpoint.status`` from observations. Pure; the clock alone never changes it."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from checkpoint_operator.decide.gang import members
from checkpoint_operator.model.observed import Checkpoint, Observed, StoreFault
from checkpoint_operator.model.timestamps import timestamp
from checkpoint_operator.report import conditions
from checkpoint_operator.report.conditions import Judgement
from checkpoint_operator.report.health import judge_conditions
from checkpoint_operator.report.resources import encode_status, purge_after
from checkpoint_operator.report.warm_starts import begun, begun_at, warm_start_status
from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.api import MAX_LISTED, ConditionType
from checkpoint_sidecar.core.attempt import places
from checkpoint_sidecar.core.best import best_snapshot
from checkpoint_sidecar.core.lineage import lineage, quarantined
from checkpoint_sidecar.core.log import RestoreFinished
from checkpoint_sidecar.core.requests import answered_user
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot
from checkpoint_sidecar.core.sharing import distinct_bytes, freed_bytes
from checkpoint_sidecar.core.units import quantity
from checkpoint_sidecar.core.wire import MAX_INT64


def status_of(observed: Observed) -> dict[str, Any]:
    """Return the whole status, as the API server would store it.

    Fields that follow from the log alone keep their values while the log cannot be read.
    """
    checkpoint = observed.checkpoint
    judged = conditions.merge(
        checkpoint.status.get("conditions", ()),
        judge_conditions(observed),
        generation=checkpoint.generation,
        wall=observed.wall,
    )
    head = encode_status(api.CheckpointStatus(observed_generation=checkpoint.generation, conditions=judged))
    if observed.run is None:
        return {**checkpoint.status, **head}
    claimed_by = str(observed.run.owner) if observed.run.owner else None
    if not observed.ours:
        return {**head, **encode_status(api.CheckpointStatus(claimed_by=claimed_by))}
    return {**head, **encode_status(_facts(observed, observed.run, claimed_by))}


def status_with(checkpoint: Checkpoint, fault: StoreFault, *, wall: dt.datetime) -> dict[str, Any]:
    """Return the stored status with Ready set to False because of a fault, if nothing else is known."""
    before = checkpoint.status.get("conditions", ())
    judged = (Judgement(ConditionType.READY, "False", fault.reason, fault.message, quotes=True),)
    ready = conditions.merge(before, judged, generation=checkpoint.generation, wall=wall)
    others = [dict(condition) for condition in before if condition.get("type") != ConditionType.READY]
    encoded = encode_status(api.CheckpointStatus(conditions=ready))
    return {**checkpoint.status, "conditions": [*encoded["conditions"], *others]}


def _facts(observed: Observed, run: Run, claimed_by: str | None) -> api.CheckpointStatus:
    live = [s for s in run.snapshots.values() if s.live]
    retained = min(distinct_bytes(live), MAX_INT64)
    pending = _pending_purge(observed, run)
    suspects = [s for s in reversed(tuple(run.snapshots.values())) if s.live and quarantined(run, s)]
    return api.CheckpointStatus(
        claimed_by=claimed_by,
        latest=_latest(run),
        best=_best(run),
        last_restore=_last_restore(observed, run),
        warm_start=warm_start_status(observed, run),
        attempt=_attempt(observed, run),
        snapshots=len(live),
        retained_bytes=retained,
        retained_size=quantity(retained),
        pending_purge=pending[:MAX_LISTED],
        pending_purge_snapshots=len(pending),
        pending_purge_bytes=min(sum(each.bytes for each in pending), MAX_INT64),
        quarantined=tuple(api.QuarantinedSnapshot(s.id, s.failures, s.evidence) for s in suspects[:MAX_LISTED]),
        quarantined_snapshots=len(suspects),
        last_save_request=answered_user(run),
        last_rollback=run.rollbacks[-1] if run.rollbacks else None,
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
    # The committed text, whose length is bounded: Python may format the same number with more digits.
    return api.BestSnapshot(best.step, best.id, metric, best.commit.metrics[metric].strip())


def _attempt(observed: Observed, run: Run) -> api.AttemptStatus | None:
    attempt = run.attempt
    if attempt is None:
        return None
    restored = run.snapshots.get(attempt.restored or "")
    return api.AttemptStatus(
        number=attempt.number,
        started_at=timestamp(attempt.started_at),
        restored_step=restored.step if restored else begun_at(attempt),
        pod_count=_pod_count(observed, attempt) or None,
        pods=tuple(pod.name for pod in attempt.started.pods)[:MAX_LISTED],
        notice=_notice(attempt),
    )


def _notice(attempt: Attempt) -> str | None:
    if attempt.eviction is not None:
        return f"Pod {attempt.eviction.pod.name} is leaving: {attempt.eviction.reason}"
    return next((each.reason for each in reversed(attempt.save_requests) if each.reason), None)


def _pod_count(observed: Observed, attempt: Attempt) -> int:
    reported = observed.checkpoint.status.get("attempt", {})
    counted = [places(attempt.started.pods), sum(1 for _ in members(attempt, observed.cluster.pods))]
    # Deleted pods still belong to the attempt.
    if reported.get("number") == attempt.number:
        counted.append(reported.get("podCount", 0))
    return max(counted)


def _last_restore(observed: Observed, run: Run) -> api.LastRestore | None:
    """Return the restore of the newest attempt that reached training."""
    for attempt in reversed(tuple(run.attempts.values())):
        outcome = next((r for r in reversed(attempt.restores) if r.restored), None)
        if outcome is not None:
            return _restored(observed, run, attempt, outcome)
        if attempt.warm_start is not None and attempt.warm_start.restored:
            return begun(attempt, attempt.warm_start)
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
    """Return the previous attempt's steps and seconds that must be repeated, as far as known.

    Reported values are kept, because the new attempt soon overwrites the file that they come from.
    """
    reported = observed.checkpoint.status.get("lastRestore", {})
    if reported.get("attempt") == attempt.number and reported.get("lostSteps") is not None:
        return reported["lostSteps"], reported.get("lostSeconds")
    before = run.attempts.get(attempt.number - 1)
    progress = observed.memory.progress.get(attempt.number - 1)
    if before is None or progress is None or snapshot is None:
        return None, None
    steps = max(0, progress.step - snapshot.step)
    # Training may have paused between the snapshot and the attempt that continued from it; that time is not lost.
    since = max(snapshot.committed_at, before.started_at)
    return steps, max(0, round((progress.at - since).total_seconds())) if steps else 0


def _pending_purge(observed: Observed, run: Run) -> tuple[api.PendingPurge, ...]:
    pending = [
        api.PendingPurge(s.id, freed_bytes(run, s), after, s.reasons)
        for s in run.snapshots.values()
        if (after := purge_after(run, s)) is not None
    ]
    pending.sort(key=lambda each: each.purge_after)
    policy = run.policy.retention
    verdict = observed.verdict
    if policy is not None and policy.dry_run and verdict is not None:
        # A dry run does not retire, so the wait has not begun: the earliest time is a grace period after the commit.
        pending += [
            api.PendingPurge(s.id, freed_bytes(run, s), _earliest(s, policy.grace_seconds), verdict.retire[s.id])
            for s in run.snapshots.values()
            if s.live and s.id in verdict.retire
        ]
    return tuple(pending)


def _earliest(snapshot: Snapshot, grace_seconds: float) -> str:
    return timestamp(snapshot.committed_at + dt.timedelta(seconds=grace_seconds))
