"""Plans the CheckpointSnapshot objects, which mirror the snapshots of the log. Pure: no clock, no I/O."""

from __future__ import annotations

from checkpoint_operator.model.actions import (
    CreateMirror,
    DeleteMirror,
    MirrorAction,
    ReportMirror,
)
from checkpoint_operator.model.observed import Mirror, Observed
from checkpoint_operator.report import resources
from checkpoint_sidecar.core.lineage import lineage
from checkpoint_sidecar.core.run import Snapshot, SnapshotState

MAX_NEW_MIRRORS = 64
"""Limit per pass, so that one Checkpoint cannot keep the others waiting."""


def mirror_actions(observed: Observed) -> tuple[MirrorAction, ...]:
    """Plan what to do to the CheckpointSnapshot objects; nothing while the log is not known to be ours."""
    run, verdict = observed.run, observed.verdict
    # While the Checkpoint is deleted its objects may go before it, and are not wanted back.
    if run is None or verdict is None or not observed.ours or observed.checkpoint.deleted_at is not None:
        return ()
    chain = {snapshot.id for snapshot in lineage(run)}
    existing = {mirror.snapshot: mirror for mirror in observed.cluster.mirrors}
    # Left by another object of this name, or restored from a backup: the name is needed, the content does not count.
    foreign = [mirror for mirror in observed.cluster.mirrors if not mirror.belongs_to(observed.checkpoint, run)]
    planned: list[MirrorAction] = [DeleteMirror(m.name, m.uid) for m in foreign[:MAX_NEW_MIRRORS] if not m.deleting]
    strangers = {mirror.name for mirror in foreign}
    created = 0
    for snapshot in reversed(tuple(run.snapshots.values())):
        mirror = existing.get(snapshot.id)
        if mirror is not None and mirror.name in strangers:
            continue  # created when the name is free
        if not _mirrored(snapshot):
            if mirror is not None and not mirror.deleting:
                planned.append(DeleteMirror(mirror.name, mirror.uid))
        elif mirror is None and created < MAX_NEW_MIRRORS:
            created += 1
            body = resources.mirror(observed.checkpoint, snapshot)
            fresh = Mirror(body["metadata"]["name"], snapshot.id, 1, snapshot.disposition)
            status = resources.mirror_status(observed, run, snapshot, verdict, chain=chain, mirror=fresh)
            planned.append(CreateMirror(body, status))
        elif mirror is not None and not mirror.deleting:
            status = resources.mirror_status(observed, run, snapshot, verdict, chain=chain, mirror=mirror)
            if status != mirror.status:
                planned.append(ReportMirror(mirror.name, status))
    return tuple(planned)


def _mirrored(snapshot: Snapshot) -> bool:
    # A malformed path may be anything, and the API server would refuse the object every time.
    well_formed = snapshot.commit.path.startswith("step-") and "InvalidPath" not in snapshot.reasons
    return well_formed and snapshot.state is not SnapshotState.PURGED
