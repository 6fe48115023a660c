"""Checks behind Ready, StorageAvailable and Stalled, which judge access to the store and the run. Pure."""

from __future__ import annotations

from checkpoint_operator.decide import finalizer
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.checks import Answer, ConditionCheck, Quote, check, otherwise
from checkpoint_operator.report.faults import FAULT_REASONS, fault_of
from checkpoint_sidecar.core.api import Reason


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


READY: tuple[ConditionCheck[Observed], ...] = (
    _being_deleted,
    _faulty,
    _not_configured,
    otherwise(
        "True",
        Reason.CONFIGURED,
        "The prefix is ours, the store was probed, and the policy is in the run log.",
    ),
)

STORAGE_AVAILABLE: tuple[ConditionCheck[Observed], ...] = (
    _store_faulty,
    _not_probed,
    otherwise("True", Reason.AVAILABLE, "The store can be read and written, and creates objects conditionally."),
)

STALLED: tuple[ConditionCheck[Observed], ...] = (
    _stalled,
    otherwise("False", Reason.NOT_STALLED, "No manual action needed."),
)
