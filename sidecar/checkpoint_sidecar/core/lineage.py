"""Decides which snapshots an attempt descends from, and which it may restore.

Each commit names its ``parent``: the attempt's previous commit, else the snapshot that it restored. The lineage is the
chain of parents from the newest valid commit. A restore walks it, newest first::

    100 <-- 500 <-- 900 <-- 1000 <-- 1100       attempt 1; superseded by the first commit of attempt 2
                     ^
                     +------ 950 <-- 1000       attempt 2, rolled back to 900; lineage: 1000, 950, 900, 500, 100

It is neither the highest step in the bucket (a rollback makes higher steps obsolete) nor the chain of AttemptStarted
entries (an attempt that dies before its first commit must orphan nothing):

- The lineage changes with a commit only. Until attempt 2 commits 950, a start that dies leaves 1100 the newest.
- A superseded snapshot is restored by a rollback alone. It stays until the lineage has enough good ones of its own.
- Links survive purging: a snapshot whose data is gone still connects the ones after it to the ones before.
- A parent is always committed before its child; a link that says otherwise is forged, and ends the walk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from checkpoint_sidecar.core.run import RestoreRequest, Run, Snapshot, SnapshotState


def ancestors(run: Run, snapshot: str | None) -> tuple[Snapshot, ...]:
    """Return ``snapshot`` and everything it descends from, newest first."""
    return tuple(walk(run, snapshot))


def walk(run: Run, snapshot: str | None) -> Iterator[Snapshot]:
    """Yield ``ancestors`` one at a time, for callers that seldom need them all."""
    found = run.snapshots.get(snapshot or "")
    while found is not None:
        yield found
        # A parent is always committed earlier; any other link is forged, and following it could loop.
        parent = run.snapshots.get(found.commit.parent)
        found = parent if parent and parent.number < found.number else None


def lineage(run: Run) -> tuple[Snapshot, ...]:
    """Return the chain of the newest valid commit, newest first."""
    return ancestors(run, run.newest)


def quarantined(run: Run, snapshot: Snapshot) -> bool:
    """Return whether there is so much evidence against a snapshot that restores no longer try it."""
    return snapshot.failures >= run.policy.restore.max_failures_per_snapshot


def in_use(run: Run) -> str | None:
    """Return the snapshot that the highest attempt announced or restored and depends on; it is never retired."""
    return run.attempt.in_use if run.attempt else None


def rollback_target(run: Run) -> str | None:
    """Return the target of a pending rollback; the next start restores it, so it is never retired."""
    return run.pending.snapshot if run.pending else None


def superseded(run: Run) -> tuple[Snapshot, ...]:
    """Return the snapshots that still hold data and are not in the lineage, in order of commit."""
    chain = {snapshot.id for snapshot in lineage(run)}
    held = (SnapshotState.LIVE, SnapshotState.RETIRED)
    return tuple(s for s in run.snapshots.values() if s.id not in chain and s.state in held)


def newest_compared(run: Run) -> Snapshot | None:
    """Return the newest live snapshot of the lineage whose checksums were all compared, and match."""
    good = (s for s in walk(run, run.newest) if s.live and not s.failures and s.verified_at_least("Checksums"))
    return next(good, None)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Snapshots that a start may load, in the order to try.

    Attributes:
        candidates: Live snapshots, newest first.
        last_resort: Retired snapshots whose data still exists; reinstated only after every candidate has failed.
        fresh_start: Whether to start from step 0 if neither list yields a snapshot.
        request: Id of the rollback or fresh start this plan serves, or empty.
    """

    candidates: tuple[str, ...]
    last_resort: tuple[str, ...]
    fresh_start: bool
    request: str


def restore_plan(run: Run, request: RestoreRequest | None) -> RestorePlan:
    """Plan what an attempt that serves ``request`` (usually ``run.pending``) restores.

    A pending request is served until a commit carries it. A rollback falls back only to its target's ancestors: falling
    back to something newer would undo the rollback.
    """
    if request is not None and request.snapshot is None:
        return RestorePlan((), (), fresh_start=True, request=request.id)
    chain = lineage(run) if request is None else ancestors(run, request.snapshot)
    usable = [s for s in chain if not quarantined(run, s)]
    on_missing = run.policy.restore.on_missing
    return RestorePlan(
        candidates=tuple(s.id for s in usable if s.state is SnapshotState.LIVE),
        last_resort=tuple(s.id for s in usable if s.state is SnapshotState.RETIRED),
        fresh_start=request is None
        and (on_missing == "StartFresh" or (on_missing == "Auto" and not run.ever_committed)),
        request=request.id if request else "",
    )
