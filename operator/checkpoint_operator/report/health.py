"""Whether a Checkpoint works: its conditions, judged from what is observed. Pure.

Each condition is a list of checks, the first that fails names the reason. Ready follows from the same faults as Stalled
and StorageAvailable and is never set on its own.
"""

from __future__ import annotations

import datetime as dt

from checkpoint_operator.decide import finalizer
from checkpoint_operator.decide.grace_period import too_short
from checkpoint_operator.decide.plan import rollback_target
from checkpoint_operator.model.observed import Observed, Quota, StoreFault
from checkpoint_operator.report.conditions import Judgement
from checkpoint_sidecar.core.api import ConditionType, Reason
from checkpoint_sidecar.core.belongings import describe
from checkpoint_sidecar.core.lineage import lineage
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.purging import waits_for_comparison
from checkpoint_sidecar.core.run import Attempt, Run, SnapshotState
from checkpoint_sidecar.core.units import size

REPORT_WITHIN = dt.timedelta(minutes=10)
"""How long labelled pods may run before an AttemptStarted is missed: imports and process groups take minutes."""

NOT_AS_ASKED = frozenset({"NothingRestored", "WrongParent", "WrongRequest"})
"""Why replay rejected a commit of an attempt that went on from something else than it was told to restore."""

CADENCES = 3
"""A verified snapshot older than this many save intervals does not protect a running attempt."""


def fault_of(observed: Observed) -> StoreFault | None:
    """The first thing that keeps this Checkpoint from working, or None."""
    if observed.rival is not None:
        message = f"The prefix overlaps that of {observed.rival_named}, which came first. Choose another prefix."
        return StoreFault(Reason.PREFIX_CLAIMED, message, stalled=True)
    if observed.fault is not None:
        return observed.fault
    run = observed.run
    if run is None:
        return StoreFault(Reason.STORE_UNAVAILABLE, "The run log was not read yet.")
    if run.unknown_critical:
        message = f"The run log holds a critical {run.unknown_critical} entry. Upgrade the operator."
        return StoreFault(Reason.UPGRADE_REQUIRED, message, stalled=True)
    if finalizer.ending(observed) and run.owner == observed.owner.deleted:
        return None
    if run.owner is not None and run.owner.is_deleted and not run.erased:
        message = "The prefix holds what is left of a run that was deleted. Choose another prefix."
        if run.owner == observed.owner.deleted:
            message += " To have the rest deleted, delete this Checkpoint with deletionPolicy: Delete."
        return StoreFault(Reason.PREFIX_CLAIMED, message, stalled=True)
    if run.owner is not None and run.owner != observed.owner:
        return StoreFault(Reason.PREFIX_CLAIMED, _claimed_by_another(observed, run, run.owner), stalled=True)
    return None


def _claimed_by_another(observed: Observed, run: Run, owner: Owner) -> str:
    spec = observed.checkpoint.spec
    asked = spec.storage.take_over_from if spec is not None else ""
    if asked and asked != str(owner):
        return (
            f"spec.storage.takeOverFrom is {asked}, but the prefix is claimed by {owner}, so nothing is taken over. "
            "Correct takeOverFrom, or choose another prefix."
        )
    if asked and any((each.owner, each.previous_owner) == (observed.owner, owner) for each in run.adoptions):
        return (
            f"The prefix was taken over from {owner}, which has taken it back; one takeOverFrom acts once. To take it "
            "over again, clear spec.storage.takeOverFrom, wait for status.observedGeneration, and set it again."
        )
    return (
        f"The prefix is claimed by {owner}. Choose another prefix, or take this one over with "
        f"spec.storage.takeOverFrom: {owner}."
    )


def judge_conditions(observed: Observed) -> tuple[Judgement, ...]:
    """All conditions of a Checkpoint, in the order in which they are shown."""
    return (
        _ready(observed),
        _storage(observed),
        _protected(observed),
        _restore_enforced(observed),
        _retention_enforced(observed),
        _saves_failing(observed),
        _foreign_data(observed),
        _stalled(observed),
    )


def _ready(observed: Observed) -> Judgement:
    if finalizer.ending(observed):
        message = finalizer.in_the_way(observed) or "The run is deleted, and then this object."
        return Judgement(ConditionType.READY, "False", Reason.DELETING, message, quotes=observed.fault is not None)
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
    hurried = too_short(run, observed.pods)
    if hurried:
        return Judgement(ConditionType.PROTECTED, "False", Reason.GRACE_PERIOD_TOO_SHORT, hurried)
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
    if rollback is not None and rollback.request not in run.rollbacks and rollback_target(spec, run) is None:
        message = (
            f"Rollback {rollback.request} names no snapshot that can be restored: {rollback.snapshot or rollback.to}. "
            f"An id is the name of a CheckpointSnapshot without {observed.checkpoint.key.name}- at its beginning."
        )
        return Judgement(ConditionType.RESTORE_ENFORCED, "False", Reason.ROLLBACK_NOT_FOUND, message)
    message = f"Attempt {attempt.number} restored what the policy says."
    if attempt.restored is None and attempt.started.candidate:
        message = f"Attempt {attempt.number} is restoring."
    return Judgement(ConditionType.RESTORE_ENFORCED, "True", Reason.RESTORED_AS_ASKED, message)


def _retention_enforced(observed: Observed) -> Judgement:
    kind, run, spec = ConditionType.RETENTION_ENFORCED, observed.run, observed.checkpoint.spec
    if observed.fault is not None and observed.fault.reason is Reason.READ_ONLY:
        message = "The credentials allow reading only: nothing is retired and nothing is deleted."
        return Judgement(kind, "False", Reason.READ_ONLY, message)
    if run is None or spec is None or observed.fault or not observed.ours:
        fault = fault_of(observed)
        message = f"Nothing is retired or deleted, see condition Ready ({fault.reason})." if fault else "Not read yet."
        return Judgement(kind, "Unknown", Reason.NOT_KNOWN, message)
    if observed.refusal:
        message = f"Nothing is deleted, the rest goes on: {observed.refusal}"
        return Judgement(kind, "False", Reason.DELETION_REFUSED, message, quotes=True)
    if observed.quota is not None and observed.quota.exceeded:
        # It counts as a quotation: the figures change with every commit of the namespace.
        message = _over_quota(observed.checkpoint.key.namespace, observed.quota)
        return Judgement(kind, "False", Reason.QUOTA_EXCEEDED, message, quotes=True)
    if spec.suspend:
        return Judgement(kind, "False", Reason.SUSPENDED, "spec.suspend: nothing is retired and nothing is deleted.")
    policy = run.policy.retention
    if policy is None:
        return Judgement(kind, "True", Reason.NO_RETENTION, "There is no spec.retention: everything is kept.")
    if policy.dry_run:
        message = "retention.dryRun: nothing is retired; status.pendingPurge lists what would be."
        return Judgement(kind, "False", Reason.DRY_RUN, message)
    if observed.read_back is not None and observed.read_back.unreliable:
        message = f"No snapshot loses its place for it, and it is read again: {observed.read_back.trouble}"
        return Judgement(kind, "False", Reason.UNRELIABLE_READS, message, quotes=True)
    waiting = _waits_for_comparison(observed)
    if waiting:
        return Judgement(kind, "False", Reason.VERIFICATION_PENDING, waiting, quotes=True)
    return Judgement(kind, "True", Reason.ENFORCED, "What the policy does not keep is retired, and later deleted.")


def _saves_failing(observed: Observed) -> Judgement:
    kind, run = ConditionType.SAVES_FAILING, observed.run
    if run is None or not observed.ours:
        return Judgement(kind, "Unknown", Reason.NOT_KNOWN, "The run log cannot be used.")
    failure = run.attempt.save_failure if run.attempt else None
    if failure is None:
        return Judgement(kind, "False", Reason.NOT_FAILING, "No save failed since the last commit.")
    message = (
        f"Attempt {failure.attempt} has committed nothing since {_saves(failure.failures)} failed, at step "
        f"{failure.step}: {failure.message}"
    )
    return Judgement(kind, "True", Reason.SAVE_FAILED, message)


def _saves(count: int) -> str:
    return "a save" if count == 1 else f"{count} saves in a row"


def _waits_for_comparison(observed: Observed) -> str:
    """Which deletions wait for which snapshot to be read back, or empty."""
    read_back, verdict = observed.read_back, observed.verdict
    waiting = waits_for_comparison(verdict) if verdict is not None else ()
    if read_back is None or not waiting:
        return ""
    message = (
        f"The deletion of {len(waiting)} snapshots waits until one that stays is read back and its checksums match; "
        f"now {'reading ' + read_back.reading if read_back.reading else 'none is being read'}. All Checkpoints share "
        "the rate at which the operator reads (--verify-rate)."
    )
    return f"{message} The last try failed: {read_back.trouble}" if read_back.trouble else message


def _foreign_data(observed: Observed) -> Judgement:
    kind, found = ConditionType.FOREIGN_DATA, observed.survey
    if found is None or not observed.ours or observed.fault is not None:
        return Judgement(kind, "Unknown", Reason.NOT_KNOWN, "The prefix was not looked through yet.")
    if not found.foreign:
        return Judgement(kind, "False", Reason.ONLY_THE_RUN, "Everything under the prefix is the run's own.")
    message = f"Never collected or deleted, because this run did not write it: {describe(found.foreign)}."
    return Judgement(kind, "True", Reason.LEFT_ALONE, message)


def _over_quota(namespace: str, quota: Quota) -> str:
    return (
        f"The Checkpoints of namespace {namespace} must retain {size(quota.required)}; its quota is "
        f"{size(quota.limit)}. Nothing is lost and saves go on. Give spec.retention to those that have none, lower "
        "keepLast, release held snapshots, or ask the administrator for more."
    )


def _ignored_restore(run: Run, attempt: Attempt) -> bool:
    if attempt.started.candidate and attempt.restored is None and attempt.last_commit is not None:
        return True
    mine = (s for s in run.snapshots.values() if s.commit.attempt == attempt.number)
    return any(not NOT_AS_ASKED.isdisjoint(s.reasons) for s in mine if s.state is SnapshotState.REJECTED)


def _silent_pod(observed: Observed, attempt: Attempt | None) -> str:
    # By identity first: the attempt's time is by the store's clock, the pod's by its kubelet's, and they may disagree.
    listed = {pod.uid for pod in attempt.started.pods} if attempt else set()
    for pod in observed.pods:
        if pod.phase != "Running" or pod.started_at is None or pod.uid in listed:
            continue
        reported = attempt is not None and attempt.started_at >= pod.started_at
        if not reported and observed.wall - pod.started_at > REPORT_WITHIN:
            return pod.name
    return ""
