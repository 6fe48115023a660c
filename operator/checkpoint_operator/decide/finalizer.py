"""What becomes of a run whose Checkpoint is deleted. Pure.

With ``deletionPolicy: Delete`` a finalizer keeps the Checkpoint until its run is gone from the bucket:

1. The run log says that the run belongs to nobody (``Owner.deleted``): no attempt may start or commit from here on,
   neither one that runs on somewhere nor one of a new Checkpoint at the same prefix.
2. When its pods are gone, its data is deleted, and after everything else its log. The last entry stays: the tombstone
   of the run, after which the next one at the prefix goes on counting.
3. The finalizer goes, and with it the Checkpoint.

The finalizer must not block a namespace for ever: what is in the way for ``PATIENCE`` leaves the data where it is.
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
from checkpoint_sidecar.core.units import size

FINALIZER = f"{GROUP}/purge"

PATIENCE = dt.timedelta(hours=1)
"""From the deletion of a Checkpoint until what is in the way is taken for lasting."""

SILENCE = dt.timedelta(minutes=1)
"""After how long an attempt that reports every ten seconds is taken for ended, wherever its pods are."""


@dataclass(frozen=True, slots=True)
class Release:
    """The finalizer goes.

    Attributes:
        retained: Why data stays in the bucket, and what; empty when nothing of the run is left.
        foreign: What else lies there that the run did not write.
    """

    retained: str = ""
    foreign: str = ""


def finalizers(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Those that a Checkpoint should have, or None while they are right or it is not known what the spec asks for."""
    has, spec = FINALIZER in checkpoint.finalizers, checkpoint.spec
    if spec is None or checkpoint.deleted_at is not None or has == (spec.deletion_policy == "Delete"):
        return None
    return without(checkpoint) if has else (*checkpoint.finalizers, FINALIZER)


def without(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The finalizers of others."""
    return tuple(each for each in checkpoint.finalizers if each != FINALIZER)


def ending(observed: Observed) -> bool:
    """Whether the Checkpoint is deleted and waits for its run to be."""
    return observed.checkpoint.deleted_at is not None and FINALIZER in observed.checkpoint.finalizers


def actions(observed: Observed) -> tuple[StoreAction, ...]:
    """What to do next to a run whose Checkpoint waits for its deletion."""
    run, spec = observed.run, observed.checkpoint.spec
    if run is None or spec is None or spec.deletion_policy != "Delete" or _unusable(observed):
        return ()
    if run.owner == observed.owner:
        return (End(),)
    done = run.erased and not run.remnants
    return (Erase(),) if run.owner == observed.owner.deleted and not done and not _too_early(observed) else ()


def release(observed: Observed) -> Release | None:
    """Whether the finalizer has done its work, or cannot do it; None while it is too early to say."""
    deleted_at, spec, run = observed.checkpoint.deleted_at, observed.checkpoint.spec, observed.run
    if deleted_at is None or not ending(observed):
        return None
    if spec is not None and spec.deletion_policy == "Retain":
        return _retain(observed, "spec.deletionPolicy is Retain")
    if observed.rival is not None:
        return _retain(observed, f"the prefix overlaps that of {observed.rival_named}")
    if run is not None and not observed.fault and run.free and not run.remnants:
        return Release(foreign=describe(observed.memory.survey.foreign) if observed.memory.survey else "")
    if run is not None and run.owner not in (None, observed.owner, observed.owner.deleted):
        return _retain(observed, f"the run belongs to {run.owner}")
    obstacle = in_the_way(observed)
    if obstacle and (_hopeless(observed) or observed.wall - deleted_at >= PATIENCE):
        return _retain(observed, obstacle)
    return None


def last_word(released: Release) -> EventDraft:
    """The Event that tells why the finalizer goes."""
    if released.retained:
        return EventDraft(EventReason.DATA_RETAINED, released.retained, "retained", warning=True)
    message = "Nothing of the run is left in the bucket but the last entry of its log, which marks that it was deleted."
    if released.foreign:
        message += f" Left alone, because the run did not write it: {released.foreign}."
    return EventDraft(EventReason.RUN_DELETED, message, "deleted")


def in_the_way(observed: Observed) -> str:
    """What keeps the data from being deleted now, or an empty string."""
    return _unusable(observed) or _too_early(observed)


def next_look(observed: Observed) -> float | None:
    """Seconds until the passing of time alone makes something due, or None."""
    if observed.checkpoint.deleted_at is None or not in_the_way(observed):
        return None
    waits = [PATIENCE - (observed.wall - observed.checkpoint.deleted_at)]
    heard = _heard_at(observed)
    if heard is not None and observed.now is not None:
        waits.append(SILENCE - (observed.now - heard))
    return min((wait.total_seconds() for wait in waits if wait > dt.timedelta()), default=None)


def _unusable(observed: Observed) -> str:
    """Why the run's log cannot be read or written."""
    if observed.fault is not None:
        return observed.fault.message
    if observed.rival is not None or observed.run is None or observed.now is None:
        return "The run log was not read yet."
    kind = observed.run.unknown_critical
    return f"The run log holds a critical {kind} entry. Upgrade the operator." if kind else ""


def _too_early(observed: Observed) -> str:
    """Why no data is deleted yet although the run may be."""
    training = next((pod.name for pod in observed.pods if pod.active), "")
    if training:
        return f"Pod {training} has not ended yet."
    heard = _heard_at(observed)
    if heard is not None and observed.now is not None and observed.now - heard < SILENCE:
        return "An attempt has reported progress a moment ago."
    return observed.memory.refusal


def _heard_at(observed: Observed) -> dt.datetime | None:
    """When the newest attempt reported last, unless that was its goodbye. Not all that trains need be a pod here."""
    heard = observed.memory.progress.get(max(observed.memory.progress, default=0))
    return heard.at if heard is not None and not heard.ended else None


def _hopeless(observed: Observed) -> bool:
    """Whether waiting cannot help: what a namespace loses while it is deleted never comes back."""
    lost = observed.fault is not None and observed.fault.reason is Reason.SECRET_NOT_FOUND
    return lost and observed.namespace_deleted


def _retain(observed: Observed, why: str) -> Release:
    spec = observed.checkpoint.spec
    where = f"under {spec.storage.url}" if spec is not None else "in the bucket"
    return Release(f"{why.rstrip('.')}. What is left {where}: {_left(observed)}.")


def _left(observed: Observed) -> str:
    run, status = observed.run, observed.checkpoint.status
    if run is not None and run.owner in (observed.owner, observed.owner.deleted):
        held = [s for s in run.snapshots.values() if s.state is not SnapshotState.PURGED]
        return f"the run log and up to {len(held)} snapshots, {size(sum(s.commit.bytes for s in held))}"
    if "retainedBytes" in status:
        return f"{status.get('snapshots', 0)} snapshots, {size(status['retainedBytes'])} when it was last seen"
    return "nothing that is known to be this Checkpoint's"
