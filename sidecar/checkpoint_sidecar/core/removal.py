"""What a user may delete at once, without waiting for the policy and its grace period. Pure.

A removal takes the same three entries as a purge of the policy: SnapshotRetired, PurgeStarted, SnapshotPurged. It asks
neither for a retention policy nor for a compared snapshot that stays, since a user has named what goes.
"""

from __future__ import annotations

from checkpoint_sidecar.core.lineage import in_use, quarantined, rollback_target, walk
from checkpoint_sidecar.core.log import PurgeStarted, SnapshotRetired
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.sharing import to_keep, why_not_purged

REMOVED = "Removed"
"""The reason in SnapshotRetired."""


def why_not_removed(run: Run, snapshot: str, *, force: bool) -> str:
    """Return why a user cannot delete a snapshot now, or an empty string.

    Args:
        force: Also delete a held snapshot, and the newest one that a start can restore. One that an attempt or a
            pending rollback needs is never deleted.
    """
    found = run.snapshots.get(snapshot)
    if found is None:
        return "there is no such snapshot"
    if found.state in (SnapshotState.PURGED, SnapshotState.REJECTED):
        return f"it is {found.state.value.lower()}"
    if found.state is SnapshotState.PURGING:
        return ""
    if snapshot == in_use(run):
        return "an attempt restores it or continues from it"
    if snapshot == rollback_target(run):
        return "a pending rollback restores it"
    if cause := why_not_purged(run, snapshot):
        return f"{cause}. Remove some of those snapshots first"
    if force:
        return ""
    if found.disposition == "Hold":
        return "it is held. Release it first, or use force"
    return "it is the newest that a start can trust. Use force if the run may lose it" if _last(run, found) else ""


def retire_for_removal(run: Run, snapshot: str) -> SnapshotRetired | None:
    """Return the entry that takes a snapshot from the candidates; None if it is none."""
    found = run.snapshots.get(snapshot)
    return SnapshotRetired(snapshot, (REMOVED,)) if found is not None and found.live else None


def start_removal(run: Run, snapshot: str) -> PurgeStarted | None:
    """Return the entry after which there is no way back; None if the snapshot is not retired, or must stay whole."""
    found = run.snapshots.get(snapshot)
    retired = found is not None and found.state is SnapshotState.RETIRED
    return PurgeStarted(snapshot, to_keep(run, snapshot)) if retired and not why_not_purged(run, snapshot) else None


def _last(run: Run, snapshot: Snapshot) -> bool:
    """Return whether it is the newest verified snapshot of the lineage; without any, the newest that may be tried."""
    chain = [each for each in walk(run, run.newest) if each.live and not quarantined(run, each)]
    proven = [each for each in chain if each.proven]
    return [each.id for each in (proven or chain)[:1]] == [snapshot.id]
