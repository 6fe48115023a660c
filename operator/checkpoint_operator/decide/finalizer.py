"""The deletion of a run whose Checkpoint is deleted. Pure.

With ``deletionPolicy: Delete`` a finalizer keeps the Checkpoint until its run is gone from the bucket:

1. The run log says that the run has no owner any more (``Owner.deleted``): no attempt may start or commit from here
   on, neither one that still runs somewhere nor one of a new Checkpoint at the same prefix.
2. When its pods are gone, its data is deleted, and after everything else its log. The last entry stays: the tombstone
   of the run, after which the next run at the prefix continues the numbers.
3. The finalizer goes, and with it the Checkpoint.

The finalizer must not block a namespace forever: an obstacle that lasts for ``TIMEOUT`` leaves the data in the bucket.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from checkpoint_operator.model.actions import End, Erase, StoreAction
from checkpoint_operator.model.event_draft import EventDraft
from checkpoint_operator.model.observed import Checkpoint, Observed
from checkpoint_sidecar.core.api import GROUP, EventReason, Reason
from checkpoint_sidecar.core.belongings import describe
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.core.sharing import left_bytes
from checkpoint_sidecar.core.units import size

FINALIZER = f"{GROUP}/purge"

TIMEOUT = dt.timedelta(hours=1)
"""From the deletion of a Checkpoint until an obstacle counts as permanent."""

SILENCE = dt.timedelta(minutes=1)
"""An attempt that reports every ten seconds counts as ended after this much silence, wherever its pods are."""


@dataclass(frozen=True, slots=True)
class Release:
    """The removal of the finalizer.

    Attributes:
        retained: Why data stays in the bucket, and what; empty when nothing of the run is left.
        foreign: What else lies there that the run did not write.
    """

    retained: str = ""
    foreign: str = ""


def finalizers(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Return the finalizers that a Checkpoint should have, or None if they are right or the spec is not known."""
    has, spec = FINALIZER in checkpoint.finalizers, checkpoint.spec
    if spec is None or checkpoint.deleted_at is not None or has == (spec.deletion_policy == "Delete"):
        return None
    return without(checkpoint) if has else (*checkpoint.finalizers, FINALIZER)


def without(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the finalizers of others."""
    return tuple(each for each in checkpoint.finalizers if each != FINALIZER)


def ending(observed: Observed) -> bool:
    """Return whether the Checkpoint is deleted and waits for the deletion of its run."""
    return observed.checkpoint.deleted_at is not None and FINALIZER in observed.checkpoint.finalizers


def actions(observed: Observed) -> tuple[StoreAction, ...]:
    """Plan the next step of the deletion of a run."""
    run, spec = observed.run, observed.checkpoint.spec
    if run is None or spec is None or spec.deletion_policy != "Delete" or _unusable(observed):
        return ()
    if run.owner == observed.owner:
        return (End(),)
    done = run.erased and not run.remnants
    return (Erase(),) if run.owner == observed.owner.deleted and not done and not _too_early(observed) else ()


def release(observed: Observed) -> Release | None:
    """Return why the finalizer is removed: its work is done or cannot be done; None while it is too early to say."""
    deleted_at, spec, run = observed.checkpoint.deleted_at, observed.checkpoint.spec, observed.run
    if deleted_at is None or not ending(observed):
        return None
    if spec is not None and spec.deletion_policy == "Retain":
        return _retain(observed, "spec.deletionPolicy is Retain")
    if observed.cluster.rival is not None:
        return _retain(observed, f"the prefix overlaps that of {observed.rival_named}")
    if run is not None and not observed.fault and run.free and not run.remnants:
        return Release(foreign=describe(observed.memory.survey.foreign) if observed.memory.survey else "")
    if run is not None and run.owner not in (None, observed.owner, observed.owner.deleted):
        return _retain(observed, f"the run belongs to {run.owner}")
    obstacle = in_the_way(observed)
    if obstacle and (_hopeless(observed) or observed.wall - deleted_at >= TIMEOUT):
        return _retain(observed, obstacle)
    return None


def last_word(released: Release) -> EventDraft:
    """Draft the Event that says why the finalizer is removed."""
    if released.retained:
        return EventDraft(EventReason.DATA_RETAINED, released.retained, "retained", warning=True)
    message = "Nothing of the run is left in the bucket but the last entry of its log, which marks that it was deleted."
    if released.foreign:
        message += f" Left alone, because the run did not write it: {released.foreign}."
    return EventDraft(EventReason.RUN_DELETED, message, "deleted")


def in_the_way(observed: Observed) -> str:
    """Return why the data cannot be deleted now, or an empty string."""
    return _unusable(observed) or _too_early(observed)


def next_pass(observed: Observed) -> float | None:
    """Seconds until the passing of time alone makes something due, or None."""
    if observed.checkpoint.deleted_at is None or not in_the_way(observed):
        return None
    waits = [TIMEOUT - (observed.wall - observed.checkpoint.deleted_at)]
    heard = _heard_at(observed)
    if heard is not None and observed.now is not None:
        waits.append(SILENCE - (observed.now - heard))
    return min((wait.total_seconds() for wait in waits if wait > dt.timedelta()), default=None)


def _unusable(observed: Observed) -> str:
    """Return why the run's log cannot be read or written, or an empty string."""
    if observed.fault is not None:
        return observed.fault.message
    if observed.cluster.rival is not None or observed.run is None or observed.now is None:
        return "The run log was not read yet."
    kind = observed.run.unknown_critical
    return f"The run log holds a critical {kind} entry. Upgrade the operator." if kind else ""


def _too_early(observed: Observed) -> str:
    """Return why no data is deleted yet although the run may be, or an empty string."""
    training = next((pod.name for pod in observed.cluster.pods if pod.active), "")
    if training:
        return f"Pod {training} has not ended yet."
    heard = _heard_at(observed)
    if heard is not None and observed.now is not None and observed.now - heard < SILENCE:
        return "An attempt reported progress a moment ago."
    return observed.memory.refusal


def _heard_at(observed: Observed) -> dt.datetime | None:
    """Return when the newest attempt last reported, unless it reported its end. It may train outside this cluster."""
    heard = observed.memory.progress.get(max(observed.memory.progress, default=0))
    return heard.at if heard is not None and not heard.ended else None


def _hopeless(observed: Observed) -> bool:
    """Return whether waiting cannot help: an object that a namespace loses while it is deleted never comes back."""
    lost = observed.fault is not None and observed.fault.reason is Reason.SECRET_NOT_FOUND
    return lost and observed.cluster.namespace_deleted


def _retain(observed: Observed, why: str) -> Release:
    spec = observed.checkpoint.spec
    where = f"under {spec.storage.url}" if spec is not None else "in the bucket"
    return Release(f"{why.rstrip('.')}. What is left {where}: {_left(observed)}.")


def _left(observed: Observed) -> str:
    run, status = observed.run, observed.checkpoint.status
    if run is not None and run.owner in (observed.owner, observed.owner.deleted):
        held = [s for s in run.snapshots.values() if s.state is not SnapshotState.PURGED]
        total = sum(left_bytes(run, s) for s in run.snapshots.values())
        return f"the run log and up to {len(held)} snapshots, {size(total)}"
    if "retainedBytes" in status:
        return f"{status.get('snapshots', 0)} snapshots, {size(status['retainedBytes'])} when it was last seen"
    return "nothing that is known to be this Checkpoint's"
