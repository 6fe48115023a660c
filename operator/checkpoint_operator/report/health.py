"""Judges the conditions of a Checkpoint from observations. Pure.

Each condition is a chain of named checks; the first that applies decides. ``docs/conditions.md`` lists the reasons in
this order, generated from ``CHAINS``. Ready follows from the same faults as Stalled and StorageAvailable and is never
set independently.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from checkpoint_operator.decide import finalizer
from checkpoint_operator.decide.grace_period import too_short
from checkpoint_operator.decide.plan import rollback_target
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.checks import Answer, ConditionCheck, Quote, check, first_answer, otherwise
from checkpoint_operator.report.conditions import Judgement
from checkpoint_operator.report.faults import FAULT_REASONS, fault_of
from checkpoint_sidecar.core.api import ConditionType, Reason
from checkpoint_sidecar.core.belongings import describe
from checkpoint_sidecar.core.lineage import lineage
from checkpoint_sidecar.core.purging import waits_for_comparison
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.units import size

REPORT_WITHIN = dt.timedelta(minutes=10)
"""How long labeled pods may run before AttemptStarted is overdue: imports and process groups take minutes."""

NOT_AS_ASKED = frozenset({"NothingRestored", "WrongParent", "WrongRequest"})
"""Why replay rejects a commit of an attempt that did not continue from the snapshot it had to restore."""

CADENCES = 3
"""A verified snapshot older than this many save intervals does not protect a running attempt."""


def judge_conditions(observed: Observed) -> tuple[Judgement, ...]:
    """Return all conditions of a Checkpoint, in the order in which they are shown."""
    return tuple(first_answer(kind, chain, observed) for kind, chain in CHAINS.items())


# Ready, StorageAvailable and Stalled


@check("False", Reason.DELETING)
def _being_deleted(observed: Observed) -> Answer:
    if not finalizer.ending(observed):
        return None
    message = finalizer.in_the_way(observed) or "The run is deleted, and then this object."
    return Quote(message) if observed.fault is not None else message


@check("False", *FAULT_REASONS)
def _faulty(observed: Observed) -> Answer:
    return fault_of(observed)


@check("False", Reason.STORE_UNAVAILABLE)
def _not_configured(observed: Observed) -> Answer:
    run, checkpoint = observed.run, observed.checkpoint
    if run is not None and run.configured == (checkpoint.uid, checkpoint.generation):
        return None
    return "The policy is not in the run log yet."


@check(
    "False",
    *FAULT_REASONS,
    see="any of `Ready` from `InvalidSpec` on, but for `PrefixClaimed`, `StatusRefused` and `InternalError`",
)
def _store_faulty(observed: Observed) -> Answer:
    return observed.fault


@check("Unknown", Reason.STORE_UNAVAILABLE)
def _not_probed(observed: Observed) -> Answer:
    return "Not probed yet." if observed.run is None else None


@check("True", *FAULT_REASONS, see="the reason of `Ready`")
def _stalled(observed: Observed) -> Answer:
    fault = fault_of(observed)
    return fault if fault is not None and fault.stalled else None


# Protected


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
    return f"Attempt {attempt.number} restored what the policy says."


# RetentionEnforced


@check("False", Reason.READ_ONLY)
def _read_only(observed: Observed) -> Answer:
    if observed.fault is None or observed.fault.reason is not Reason.READ_ONLY:
        return None
    return "The credentials allow reading only: nothing is retired and nothing is deleted."


@check("Unknown", Reason.NOT_KNOWN)
def _retention_not_known(observed: Observed) -> Answer:
    if observed.checkpoint.spec is not None and not observed.fault and observed.ours:
        return None
    fault = fault_of(observed)
    return f"Nothing is retired or deleted, see condition Ready ({fault.reason})." if fault else "Not read yet."


@check("False", Reason.DELETION_REFUSED)
def _deletion_refused(observed: Observed) -> Answer:
    refusal = observed.memory.refusal
    return Quote(f"Nothing is deleted, everything else continues: {refusal}") if refusal else None


@check("False", Reason.QUOTA_EXCEEDED)
def _quota_exceeded(observed: Observed) -> Answer:
    quota = observed.quota
    if quota is None or not quota.exceeded:
        return None
    # A quote, because the figures change with every commit of the namespace.
    return Quote(
        f"The Checkpoints of namespace {observed.checkpoint.key.namespace} must retain {size(quota.required)}; its "
        f"quota is {size(quota.limit)}. Nothing is lost and saves continue. Give spec.retention to those that have "
        "none, lower keepLast, release held snapshots, or ask the administrator for more."
    )


@check("False", Reason.SUSPENDED)
def _suspended(observed: Observed) -> Answer:
    spec = observed.checkpoint.spec
    return "spec.suspend: nothing is retired and nothing is deleted." if spec is not None and spec.suspend else None


@check("True", Reason.NO_RETENTION)
def _no_retention(observed: Observed) -> Answer:
    without = observed.run is not None and observed.run.policy.retention is None
    return "spec.retention is not set: everything is kept." if without else None


@check("False", Reason.DRY_RUN)
def _dry_run(observed: Observed) -> Answer:
    policy = observed.run.policy.retention if observed.run is not None else None
    dry = policy is not None and policy.dry_run
    return "retention.dryRun: nothing is retired; status.pendingPurge lists what would be." if dry else None


@check("False", Reason.UNRELIABLE_READS)
def _unreliable_reads(observed: Observed) -> Answer:
    read_back = observed.read_back
    if read_back is None or not read_back.unreliable:
        return None
    return Quote(f"Each read returned other bytes. No snapshot is blamed, and it is read again: {read_back.trouble}")


@check("False", Reason.VERIFICATION_PENDING)
def _comparison_pending(observed: Observed) -> Answer:
    read_back, verdict = observed.read_back, observed.verdict
    waiting = waits_for_comparison(verdict) if verdict is not None else ()
    if read_back is None or not waiting:
        return None
    message = (
        f"The deletion of {len(waiting)} snapshots waits until one that stays is read back and its checksums match; "
        f"now {'reading ' + read_back.reading if read_back.reading else 'none is being read'}. All Checkpoints share "
        "the rate at which the operator reads (--verify-rate)."
    )
    return Quote(f"{message} The last try failed: {read_back.trouble}" if read_back.trouble else message)


# SavesFailing and ForeignData


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


@check("Unknown", Reason.NOT_KNOWN)
def _prefix_not_listed(observed: Observed) -> Answer:
    known = observed.memory.survey is not None and observed.ours and observed.fault is None
    return None if known else "The prefix was not listed yet."


@check("True", Reason.LEFT_ALONE)
def _foreign_objects(observed: Observed) -> Answer:
    if observed.memory.survey is None or not observed.memory.survey.foreign:
        return None
    return f"Never collected or deleted, because this run did not write it: {describe(observed.memory.survey.foreign)}."


CHAINS: Mapping[ConditionType, tuple[ConditionCheck[Observed], ...]] = {
    ConditionType.READY: (
        _being_deleted,
        _faulty,
        _not_configured,
        otherwise(
            "True",
            Reason.CONFIGURED,
            "The prefix is ours, the store was probed, and the policy is in the run log.",
        ),
    ),
    ConditionType.STORAGE_AVAILABLE: (
        _store_faulty,
        _not_probed,
        otherwise("True", Reason.AVAILABLE, "The store can be read and written, and creates objects conditionally."),
    ),
    ConditionType.PROTECTED: (
        _no_attempt_runs,
        _nothing_committed,
        _nothing_verified,
        _verified_too_old,
        _grace_period_too_short,
        otherwise("True", Reason.RECENT_SNAPSHOT, "A verified snapshot is recent enough."),
    ),
    ConditionType.RESTORE_ENFORCED: (
        _log_not_known,
        _pod_started_no_attempt,
        _nothing_started,
        _restore_ignored,
        _rollback_not_found,
        _restored_as_asked,
    ),
    ConditionType.RETENTION_ENFORCED: (
        _read_only,
        _retention_not_known,
        _deletion_refused,
        _quota_exceeded,
        _suspended,
        _no_retention,
        _dry_run,
        _unreliable_reads,
        _comparison_pending,
        otherwise("True", Reason.ENFORCED, "What the policy does not keep is retired, and later deleted."),
    ),
    ConditionType.SAVES_FAILING: (
        _log_unusable,
        _save_failed,
        otherwise("False", Reason.NOT_FAILING, "No save failed since the last commit."),
    ),
    ConditionType.FOREIGN_DATA: (
        _prefix_not_listed,
        _foreign_objects,
        otherwise("False", Reason.ONLY_THE_RUN, "Everything under the prefix is the run's own."),
    ),
    ConditionType.STALLED: (
        _stalled,
        otherwise("False", Reason.NOT_STALLED, "No manual action needed."),
    ),
}
"""The checks of each condition, in order of precedence; conditions in the order in which they are shown."""


def _live(observed: Observed) -> list[Snapshot]:
    return [s for s in lineage(observed.run) if s.live] if observed.run is not None else []


def _ignored_restore(run: Run) -> bool:
    attempt = run.attempt
    if attempt is None:
        return False
    if attempt.started.candidate and attempt.restored is None and attempt.last_commit is not None:
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
