"""Checks behind RetentionEnforced and ForeignData, which judge deletion and the data under the prefix. Pure."""

from __future__ import annotations

from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.checks import Answer, ConditionCheck, Quote, check, otherwise
from checkpoint_operator.report.faults import fault_of
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.belongings import describe
from checkpoint_sidecar.core.purging import left_whole, waits_for_comparison
from checkpoint_sidecar.core.sharing import why_not_purged
from checkpoint_sidecar.core.units import size


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


@check("True", Reason.ENFORCED)
def _some_left_whole(observed: Observed) -> Answer:
    verdict = observed.verdict
    whole = left_whole(verdict) if verdict is not None else ()
    if verdict is None or not whole:
        return None
    others = f", and {len(whole) - 1} more" if len(whole) > 1 else ""
    return (
        f"What the policy does not keep is retired, and later deleted, except {whole[0]}{others}: "
        f"{why_not_purged(verdict.run, whole[0])}. It stays retired; retire some of those snapshots to free it."
    )


# ForeignData


@check("Unknown", Reason.NOT_KNOWN)
def _prefix_not_listed(observed: Observed) -> Answer:
    known = observed.memory.survey is not None and observed.ours and observed.fault is None
    return None if known else "The prefix was not listed yet."


@check("True", Reason.LEFT_ALONE)
def _foreign_objects(observed: Observed) -> Answer:
    if observed.memory.survey is None or not observed.memory.survey.foreign:
        return None
    return f"Never collected or deleted, because this run did not write it: {describe(observed.memory.survey.foreign)}."


RETENTION_ENFORCED: tuple[ConditionCheck[Observed], ...] = (
    _read_only,
    _retention_not_known,
    _deletion_refused,
    _quota_exceeded,
    _suspended,
    _no_retention,
    _dry_run,
    _unreliable_reads,
    _comparison_pending,
    _some_left_whole,
    otherwise("True", Reason.ENFORCED, "What the policy does not keep is retired, and later deleted."),
)

FOREIGN_DATA: tuple[ConditionCheck[Observed], ...] = (
    _prefix_not_listed,
    _foreign_objects,
    otherwise("False", Reason.ONLY_THE_RUN, "Everything under the prefix is the run's own."),
)
