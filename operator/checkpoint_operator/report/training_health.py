"""Checks behind Protected, RestoreEnforced and SavesFailing, which judge training. Pure."""

from __future__ import annotations

import datetime as dt

from checkpoint_operator.decide.grace_period import too_short
from checkpoint_operator.decide.plan import rollback_target
from checkpoint_operator.decide.warm_starts import judge_warm_start
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.checks import Answer, ConditionCheck, Reasoned, check, otherwise
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.lineage import lineage
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.warm_start import address_of

REPORT_WITHIN = dt.timedelta(minutes=10)
"""How long labeled pods may run before AttemptStarted is overdue: imports and process groups take minutes."""

NOT_AS_ASKED = frozenset({"NothingRestored", "WrongParent", "WrongRequest"})
"""Why replay rejects a commit of an attempt that did not continue from the snapshot it had to restore."""

CADENCES = 3
"""A verified snapshot older than this many save intervals does not protect a running attempt."""


@check("Unknown", Reason.NOT_RUNNING)
def _no_attempt_runs(observed: Observed) -> Answer:
    running = observed.now is not None and observed.ours and observed.cluster.trains
    return None if running else "Judged only while an attempt runs."


@check("False", Reason.NO_SNAPSHOT)
def _nothing_committed(observed: Observed) -> Answer:
    return None if _live(observed) else "Nothing is committed yet."


@check("False", Reason.NOT_VERIFIED)
def _nothing_verified(observed: Observed) -> Answer:
    return None if any(s.proven for s in _live(observed)) else "No snapshot is verified yet."


@check("False", Reason.SNAPSHOT_TOO_OLD)
def _verified_too_old(observed: Observed) -> Answer:
    run, now = observed.run, observed.now
    # With a cadence in steps alone, the time of the next save is unknown: only a cadence in time can be overdue.
    if run is None or now is None or run.policy.save.every_seconds is None:
        return None
    interval = run.policy.save.every_seconds
    newest = next((s for s in _live(observed) if s.proven), None)
    if newest is None or (now - newest.committed_at).total_seconds() <= CADENCES * interval:
        return None
    return f"The newest verified snapshot is older than {CADENCES} intervals of {interval:g} s."


@check("False", Reason.GRACE_PERIOD_TOO_SHORT)
def _grace_period_too_short(observed: Observed) -> Answer:
    return (too_short(observed.run, observed.cluster.pods) or None) if observed.run is not None else None


# RestoreEnforced


@check("Unknown", Reason.NOT_RUNNING)
def _log_not_known(observed: Observed) -> Answer:
    known = observed.run is not None and observed.checkpoint.spec is not None and observed.ours
    return None if known else "The run log is not known."


@check("False", Reason.WARM_START_NOT_GRANTED, Reason.WARM_START_NOT_FOUND, Reason.WARM_START_NEEDS_SECRET)
def _warm_start_refused(observed: Observed) -> Answer:
    verdict = judge_warm_start(observed)
    return Reasoned(verdict.reason, verdict.message) if verdict is not None and verdict.reason is not None else None


@check("False", Reason.NOT_REPORTED)
def _pod_started_no_attempt(observed: Observed) -> Answer:
    silent = _silent_pod(observed)
    if not silent:
        return None
    return (
        f"Pod {silent} has run for more than {REPORT_WITHIN.seconds // 60} minutes without starting an attempt. "
        "Does its container use the library, and was it injected?"
    )


@check("Unknown", Reason.NOT_RUNNING)
def _nothing_started(observed: Observed) -> Answer:
    return "No attempt has started yet." if observed.run is None or observed.run.attempt is None else None


@check("False", Reason.RESTORE_MISMATCH)
def _restore_ignored(observed: Observed) -> Answer:
    attempt = observed.run.attempt if observed.run is not None else None
    if observed.run is None or attempt is None or not _ignored_restore(observed.run):
        return None
    return f"Attempt {attempt.number} saved without restoring {attempt.started.candidate or 'anything'} first."


@check("False", Reason.ROLLBACK_NOT_FOUND)
def _rollback_not_found(observed: Observed) -> Answer:
    run, spec = observed.run, observed.checkpoint.spec
    rollback = spec.restore.rollback if spec is not None else None
    if run is None or spec is None or rollback is None or rollback.request in run.rollbacks:
        return None
    if rollback_target(spec, run) is not None:
        return None
    return (
        f"Rollback {rollback.request} names no snapshot that can be restored: {rollback.snapshot or rollback.to}. "
        f"An id is the name of a CheckpointSnapshot without {observed.checkpoint.key.name}- at its beginning."
    )


@check("True", Reason.RESTORED_AS_ASKED)
def _restored_as_asked(observed: Observed) -> Answer:
    attempt = observed.run.attempt if observed.run is not None else None
    if attempt is None:
        return None
    if attempt.restored is None and attempt.started.candidate:
        return f"Attempt {attempt.number} is restoring."
    if attempt.warm_start is not None and attempt.warm_start.restored:
        return f"Attempt {attempt.number} began at {address_of(attempt.warm_start)}."
    return f"Attempt {attempt.number} restored what the policy says."


# SavesFailing


@check("Unknown", Reason.NOT_KNOWN)
def _log_unusable(observed: Observed) -> Answer:
    return None if observed.ours else "The run log cannot be used."


@check("True", Reason.SAVE_FAILED)
def _save_failed(observed: Observed) -> Answer:
    attempt = observed.run.attempt if observed.run is not None else None
    failure = attempt.save_failure if attempt is not None else None
    if failure is None:
        return None
    saves = "a save" if failure.failures == 1 else f"{failure.failures} saves in a row"
    return (
        f"Attempt {failure.attempt} has committed nothing since {saves} failed, at step {failure.step}: "
        f"{failure.message}"
    )


def _live(observed: Observed) -> list[Snapshot]:
    return [s for s in lineage(observed.run) if s.live] if observed.run is not None else []


def _ignored_restore(run: Run) -> bool:
    attempt = run.attempt
    if attempt is None:
        return False
    expected = attempt.started.candidate or (run.warm_start and not attempt.fresh and not attempt.warm_start)
    if expected and attempt.restored is None and attempt.last_commit is not None:
        return True
    mine = (s for s in run.snapshots.values() if s.commit.attempt == attempt.number)
    return any(not NOT_AS_ASKED.isdisjoint(s.reasons) for s in mine if s.state is SnapshotState.REJECTED)


def _silent_pod(observed: Observed) -> str:
    attempt = observed.run.attempt if observed.run is not None else None
    # By identity first: the attempt's time is from the store's clock, the pod's from its kubelet's; they may differ.
    listed = {pod.uid for pod in attempt.started.pods} if attempt else set()
    for pod in observed.cluster.pods:
        if pod.phase != "Running" or pod.started_at is None or pod.uid in listed:
            continue
        reported = attempt is not None and attempt.started_at >= pod.started_at
        if not reported and observed.wall - pod.started_at > REPORT_WITHIN:
            return pod.name
    return ""


PROTECTED: tuple[ConditionCheck[Observed], ...] = (
    _no_attempt_runs,
    _nothing_committed,
    _nothing_verified,
    _verified_too_old,
    _grace_period_too_short,
    otherwise("True", Reason.RECENT_SNAPSHOT, "A verified snapshot is recent enough."),
)

RESTORE_ENFORCED: tuple[ConditionCheck[Observed], ...] = (
    _log_not_known,
    _warm_start_refused,
    _pod_started_no_attempt,
    _nothing_started,
    _restore_ignored,
    _rollback_not_found,
    _restored_as_asked,
)

SAVES_FAILING: tuple[ConditionCheck[Observed], ...] = (
    _log_unusable,
    _save_failed,
    otherwise("False", Reason.NOT_FAILING, "No save failed since the last commit."),
)
