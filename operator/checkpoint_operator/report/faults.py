"""Finds observed faults that keep a Checkpoint from working: the checks behind Ready and Stalled. Pure."""

from __future__ import annotations

from collections.abc import Callable

from checkpoint_operator.decide import finalizer
from checkpoint_operator.model.observed import Observed, StoreFault
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.run import Run

_REASONS = tuple(Reason)
FAULT_REASONS = _REASONS[_REASONS.index(Reason.INVALID_SPEC) : _REASONS.index(Reason.UPGRADE_REQUIRED) + 1]
"""Reasons that a fault may have. The clients of the store and the API server set some of them."""


def fault_of(observed: Observed) -> StoreFault | None:
    """Return the first fault that keeps this Checkpoint from working, or None."""
    return next((fault for check in FAULTS if (fault := check(observed)) is not None), None)


def _overlapping_prefix(observed: Observed) -> StoreFault | None:
    if observed.cluster.rival is None:
        return None
    message = f"The prefix overlaps that of {observed.rival_named}, which came first. Choose another prefix."
    return StoreFault(Reason.PREFIX_CLAIMED, message, stalled=True)


def _unusable_store(observed: Observed) -> StoreFault | None:
    return observed.fault


def _unread_log(observed: Observed) -> StoreFault | None:
    return StoreFault(Reason.STORE_UNAVAILABLE, "The run log was not read yet.") if observed.run is None else None


def _unknown_critical_entry(observed: Observed) -> StoreFault | None:
    if observed.run is None or not observed.run.unknown_critical:
        return None
    message = f"The run log holds a critical {observed.run.unknown_critical} entry. Upgrade the operator."
    return StoreFault(Reason.UPGRADE_REQUIRED, message, stalled=True)


def _rest_of_a_deleted_run(observed: Observed) -> StoreFault | None:
    run = observed.run
    if run is None or run.owner is None or not run.owner.is_deleted or run.erased or _deletes_it(observed, run):
        return None
    message = "The prefix holds what is left of a run that was deleted. Choose another prefix."
    if run.owner == observed.owner.deleted:
        message += " To have the rest deleted, delete this Checkpoint with deletionPolicy: Delete."
    return StoreFault(Reason.PREFIX_CLAIMED, message, stalled=True)


def _run_of_another_owner(observed: Observed) -> StoreFault | None:
    run = observed.run
    if run is None or run.owner is None or run.owner == observed.owner or _deletes_it(observed, run):
        return None
    return StoreFault(Reason.PREFIX_CLAIMED, _claimed_by_another(observed, run, run.owner), stalled=True)


def _deletes_it(observed: Observed, run: Run) -> bool:
    """Return whether this Checkpoint is deleting its former run."""
    return finalizer.ending(observed) and run.owner == observed.owner.deleted


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


FAULTS: tuple[Callable[[Observed], StoreFault | None], ...] = (
    _overlapping_prefix,
    _unusable_store,
    _unread_log,
    _unknown_critical_entry,
    _rest_of_a_deleted_run,
    _run_of_another_owner,
)
"""The first check that finds a fault decides."""
