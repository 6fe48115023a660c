"""Decides when the data of retired snapshots may be deleted: the last decision that can be undone. Pure.

The policy decides which snapshots are retired (``core.retention``). Deletion also waits for four conditions:

1. The grace period, by the store's clock. After an edit that shortens it the longer one still applies: if the edit also
   tightens the policy, users must have the promised time to notice.
2. A snapshot whose checksums were compared, if snapshots are read back: matching sizes do not justify deleting others.
3. Earlier purges: a few run at a time, so that a user who sees the wrong snapshots disappear has time to stop it.
4. Other snapshots that share more of its files than a purge can leave (``core.sharing``).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace

from checkpoint_sidecar.core.lineage import newest_compared
from checkpoint_sidecar.core.log import PurgeStarted, SnapshotPurged, SnapshotReinstated, SnapshotRetired
from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.retention import RetentionVerdict, judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.selection import NO_TERMS, Terms
from checkpoint_sidecar.core.sharing import freed_bytes, releasable, to_keep, why_not_purged

PURGES_AT_ONCE = 8
"""Purges that may begin within ``PURGE_PAUSE``, so that a wrong policy deletes slowly."""

PURGE_PAUSE = dt.timedelta(seconds=30)
_MAX_REASONS = 8


def purge_due(verdict: RetentionVerdict) -> tuple[str, ...]:
    """Return the snapshots whose data may be deleted now, in order of commit.

    Purges that began always continue, because PurgeStarted cannot be undone; so do those that left files which nothing
    needs any more. Other snapshots must have been retired for the grace period and still be unwanted.
    """
    run = verdict.run
    begun = [s.id for s in run.snapshots.values() if s.state is SnapshotState.PURGING]
    begun += [identifier for identifier in releasable(run) if identifier not in begun]
    if waits_for_comparison(verdict):
        return tuple(begun)
    starts = (s.purge_started_at for s in run.snapshots.values() if s.purge_started_at is not None)
    lately = sum(abs(verdict.now - start) < PURGE_PAUSE for start in starts)
    return (*begun, *_unwanted(verdict)[: max(PURGES_AT_ONCE - lately, 0)])


def retire(run: Run, snapshot: str, *, now: dt.datetime, terms: Terms = NO_TERMS) -> SnapshotRetired | None:
    """Return the entry that retires a live snapshot, or None if the policy in the log keeps it."""
    found, policy = run.snapshots.get(snapshot), run.policy.retention
    if found is None or not found.live or policy is None or policy.dry_run:
        return None
    reasons = judge(run, now=now, terms=terms).retire.get(snapshot)
    return SnapshotRetired(snapshot, reasons[:_MAX_REASONS]) if reasons else None


def reinstate(run: Run, snapshot: str, *, now: dt.datetime, terms: Terms = NO_TERMS) -> SnapshotReinstated | None:
    """Return the entry that makes a retired snapshot a candidate again, or None if the policy does not want it."""
    found = run.snapshots.get(snapshot)
    if found is None or found.state is not SnapshotState.RETIRED:
        return None
    return SnapshotReinstated(snapshot) if snapshot in judge(run, now=now, terms=terms).keep else None


def start_purge(run: Run, snapshot: str, *, now: dt.datetime, terms: Terms = NO_TERMS) -> PurgeStarted | None:
    """Return the entry after which there is no way back, or None if the policy in the log no longer wants the purge."""
    found = run.snapshots.get(snapshot)
    if found is None or found.state is not SnapshotState.RETIRED:
        return release(run, snapshot)
    due = snapshot in purge_due(judge(run, now=now, terms=terms))
    return PurgeStarted(snapshot, to_keep(run, snapshot)) if due else None


def release(run: Run, snapshot: str) -> PurgeStarted | None:
    """Return the entry that frees files which a purge has left and nothing needs any more, or None without such."""
    return PurgeStarted(snapshot, to_keep(run, snapshot)) if snapshot in releasable(run) else None


def finish_purge(run: Run, snapshot: str) -> SnapshotPurged | None:
    """Return the entry that ends a purge whose data is gone."""
    found = run.snapshots.get(snapshot)
    purging = found is not None and found.state is SnapshotState.PURGING
    if found is None or not purging:
        return None
    return SnapshotPurged(snapshot, freed_bytes(run, found))


@dataclass(frozen=True, slots=True)
class PurgeEffect:
    """What goes when snapshots are purged one after the other, and then all files that nothing needs any more.

    Attributes:
        released: Other snapshots, which were purged before: files go that they have left.
        bytes: Size of all files that go.
    """

    released: tuple[str, ...]
    bytes: int


def effect_of(run: Run, purged: Iterable[str]) -> PurgeEffect:
    """Return what purges delete that begin now, in this order.

    Args:
        purged: Live or retired snapshots, or ones whose purge has begun.
    """
    snapshots = dict(run.snapshots)
    after = replace(run, snapshots=snapshots)

    def purge(identifier: str) -> int:
        begun = replace(snapshots[identifier], state=SnapshotState.PURGING, kept=to_keep(after, identifier))
        size = freed_bytes(after, begun)
        snapshots[identifier] = replace(begun, state=SnapshotState.PURGED, purged_bytes=begun.purged_bytes + size)
        return size

    chosen = tuple(purged)
    freed = sum(map(purge, chosen))
    released = releasable(after)
    return PurgeEffect(tuple(each for each in released if each not in chosen), freed + sum(map(purge, released)))


def waits_for_comparison(verdict: RetentionVerdict) -> tuple[str, ...]:
    """Return the snapshots that would be deleted now if the checksums of one that stays had been compared."""
    if not verdict.terms.reads_back or newest_compared(verdict.run) is not None:
        return ()
    return _unwanted(verdict)


def left_whole(verdict: RetentionVerdict) -> tuple[str, ...]:
    """Return the snapshots that would be deleted now if others did not share so many of their files."""
    return tuple(identifier for identifier in _overdue(verdict) if why_not_purged(verdict.run, identifier))


def purge_at(run: Run, snapshot: Snapshot) -> dt.datetime | None:
    """Return the end of a retired snapshot's grace period, or None without one.

    It lasts until all readers that were announced have ended, or the time they announced has passed.
    """
    policy, retired_at = run.policy.retention, snapshot.retired_at
    if snapshot.state is not SnapshotState.RETIRED or retired_at is None or policy is None:
        return None
    read = max((each.until for each in snapshot.readings), default=retired_at)
    end = max(retired_at + dt.timedelta(seconds=policy.grace_seconds), read)
    if run.longer_grace_until is None:
        return end
    # Snapshots that were retired before the edit wait as long as they would have without it, and no longer.
    before = retired_at + dt.timedelta(seconds=run.longer_grace_seconds)
    return max(end, min(before, run.longer_grace_until))


def next_purge_at(run: Run, *, now: dt.datetime) -> dt.datetime | None:
    """Return when the passing of time alone lets the next purge begin, or None."""
    ends = [end for s in run.snapshots.values() if (end := purge_at(run, s)) is not None]
    paused = [s.purge_started_at + PURGE_PAUSE for s in run.snapshots.values() if s.purge_started_at]
    # Once for all purges that began in this pause, and only if another one waits for its end.
    pauses = [max(paused)] if paused and any(end <= now for end in ends) else []
    return min((moment for moment in (*ends, *pauses) if moment > now), default=None)


def with_grace_of(run: Run, retention: RetentionPolicy | None, now: dt.datetime) -> Run:
    """Return the run after an edit of its policy at ``now``: a grace period that the edit shortens still applies."""
    if retention is None:
        return run  # nothing is deleted; the next policy is compared with the one before this
    longest, until = run.last_grace_seconds, run.longer_grace_until
    run = replace(run, last_grace_seconds=retention.grace_seconds)
    if retention.grace_seconds >= longest:
        return run
    end = now + dt.timedelta(seconds=longest)
    if until is not None and until > now:
        longest, end = max(longest, run.longer_grace_seconds), max(end, until)
    return replace(run, longer_grace_until=end, longer_grace_seconds=longest)


def _unwanted(verdict: RetentionVerdict) -> tuple[str, ...]:
    """Return the retired snapshots that may be deleted as far as the policy and other snapshots are concerned."""
    return tuple(identifier for identifier in _overdue(verdict) if not why_not_purged(verdict.run, identifier))


def _overdue(verdict: RetentionVerdict) -> tuple[str, ...]:
    """Return the retired snapshots whose grace period is over and that the policy still does not want."""
    policy = verdict.run.policy.retention
    if policy is None or policy.dry_run:
        return ()
    ends = ((s.id, purge_at(verdict.run, s)) for s in verdict.run.snapshots.values() if s.id in verdict.retire)
    return tuple(identifier for identifier, end in ends if end is not None and end <= verdict.now)
