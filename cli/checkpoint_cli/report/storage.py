"""Bytes that a run holds in its store over time, and a forecast of them under the policy. Pure."""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

import msgspec

from checkpoint_cli.report.history import AttemptEnd, RunHistory
from checkpoint_sidecar.core.log import (
    PurgeStarted,
    RollbackRequested,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
)
from checkpoint_sidecar.core.purging import purge_at
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.sharing import left_bytes

FORECAST_COMMITS = 96
"""Number of commits that a forecast assumes."""

_RECENT = 20
"""Number of commits whose median interval and size a forecast continues."""

_JUDGMENTS = 48
_MANY = 2000
"""Number of snapshots with data above which the forecast asks the policy less often."""


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes in the store at one moment.

    Attributes:
        live: Of snapshots that may be restored.
        retired: Of those whose deletion waits for the end of the grace period or has begun.
    """

    at: dt.datetime
    live: int
    retired: int

    @property
    def total(self) -> int:
        return self.live + self.retired


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next commits under the policy, if they come as the latest ones did.

    Attributes:
        points: From the time of the report on.
        interval: Seconds between two commits.
        bytes: Size of each.
        peak: The largest total.
    """

    points: tuple[StoredBytes, ...]
    interval: float
    bytes: int

    @property
    def peak(self) -> int:
        return max(point.total for point in self.points)


@dataclass(frozen=True, slots=True)
class Storage:
    """Storage over time; ``forecast`` is None for a run that has too few commits, or whose training has ended."""

    points: tuple[StoredBytes, ...]
    forecast: Forecast | None


def storage_of(history: RunHistory) -> Storage:
    """Compute the bytes over time, and the forecast."""
    return Storage(_points(history), _forecast(history))


def _points(history: RunHistory) -> tuple[StoredBytes, ...]:
    snapshots = history.facts.run.snapshots
    states: dict[str, SnapshotState] = {}
    sums = dict.fromkeys(SnapshotState, 0)
    left: dict[str, int] = {}
    kept: set[str] = set()
    points: list[StoredBytes] = []

    def move(
        identifier: str, expected: Sequence[SnapshotState | None], state: SnapshotState, *, freed: int = 0
    ) -> bool:
        before = states.get(identifier)
        if before not in expected:
            return False
        size = left.setdefault(identifier, snapshots[identifier].own_bytes)
        if before is not None:
            sums[before] -= size
        if state is SnapshotState.PURGED:
            # What a purge frees is in its entry; without shared files, it is everything.
            size = left[identifier] = max(size - freed, 0) if identifier in kept else 0
        sums[state] += size
        states[identifier] = state
        return True

    for entry in history.facts.entries:
        match entry.body:
            case SnapshotCommitted(snapshot=identifier):
                found = snapshots.get(identifier)
                accepted = (
                    found is not None and found.number == entry.number and found.state is not SnapshotState.REJECTED
                )
                changed = accepted and move(identifier, (None,), SnapshotState.LIVE)
            case SnapshotRetired(snapshot=identifier):
                changed = move(identifier, (SnapshotState.LIVE,), SnapshotState.RETIRED)
            case SnapshotReinstated(snapshot=identifier) | RollbackRequested(snapshot=identifier):
                changed = move(identifier, (SnapshotState.RETIRED,), SnapshotState.LIVE)
            case PurgeStarted(snapshot=identifier, keep=keep):
                changed = move(identifier, (SnapshotState.RETIRED, SnapshotState.PURGED), SnapshotState.PURGING)
                kept.discard(identifier) if not keep else kept.add(identifier)
            case SnapshotPurged(snapshot=identifier, bytes=freed):
                changed = move(identifier, (SnapshotState.PURGING,), SnapshotState.PURGED, freed=freed)
            case _:
                continue
        if changed:
            retired = sum(size for state, size in sums.items() if state is not SnapshotState.LIVE)
            points.append(StoredBytes(entry.stored_at, sums[SnapshotState.LIVE], retired))
    return tuple(points)


def _forecast(history: RunHistory) -> Forecast | None:
    run, now = history.facts.run, history.facts.now
    attempt = history.attempts[-1] if history.attempts else None
    newest = run.snapshots.get(run.newest or "")
    if attempt is None or newest is None or newest.commit.trigger == "Final" or run.erased:
        return None
    if attempt.end is AttemptEnd.COMPLETE:
        return None
    # Intervals within attempts only: the time between two attempts is not a cadence.
    recent = [s for a in history.attempts[-8:] for s in a.commits][-_RECENT:]
    steps = [
        (later.committed_at - earlier.committed_at).total_seconds()
        for earlier, later in pairwise(recent)
        if earlier.commit.attempt == later.commit.attempt
    ]
    if len(steps) < 2 or (interval := statistics.median(steps)) <= 0:
        return None
    size = round(statistics.median(snapshot.commit.bytes for snapshot in recent))
    held = sum(s.state in (SnapshotState.LIVE, SnapshotState.RETIRED) for s in run.snapshots.values())
    each = -(-FORECAST_COMMITS // (_JUDGMENTS if held <= _MANY else 12))
    points = [_bytes_of(run, now)]
    snapshots = {name: _settled(snapshot) for name, snapshot in run.snapshots.items()}
    before = run.snapshots.get(newest.commit.parent)
    pace = max(newest.step - before.step, 1) if before else max(newest.step, 1)
    parent = newest
    for first in range(1, FORECAST_COMMITS + 1, each):
        for index in range(first, first + each):
            at = now + dt.timedelta(seconds=index * interval)
            parent = _next(parent, newest, run.head + index, at, size, pace)
            snapshots[parent.id] = parent
        now_then = parent.committed_at
        _apply_policy(replace(run, snapshots=MappingProxyType(snapshots), newest=parent.id), snapshots, now_then)
        points.append(_bytes_of(replace(run, snapshots=snapshots), now_then))
    return Forecast(tuple(points), interval, size)


def _settled(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot as it will soon be: a purge that has begun ends."""
    return replace(snapshot, state=SnapshotState.PURGED) if snapshot.state is SnapshotState.PURGING else snapshot


def _next(parent: Snapshot, newest: Snapshot, number: int, at: dt.datetime, size: int, steps: int) -> Snapshot:
    """Return a commit like the newest, that the operator has verified; it has no metrics, so none of them is best."""
    commit = msgspec.structs.replace(
        newest.commit,
        snapshot=f"forecast-{number}",
        step=parent.step + steps,
        parent=parent.id,
        bytes=size,
        metrics={},
        replaces="",
        restore_request="",
    )
    return Snapshot(commit=commit, number=number, committed_at=at, verified="Checksums")


def _apply_policy(run: Run, snapshots: dict[str, Snapshot], now: dt.datetime) -> None:
    """Retire, reinstate and purge as the operator would by now; its limits on simultaneous purges are left out."""
    if run.policy.retention is None or run.policy.retention.dry_run:
        return
    verdict = judge(run, now=now)
    for name in verdict.keep:
        if snapshots[name].state is SnapshotState.RETIRED:
            snapshots[name] = replace(snapshots[name], state=SnapshotState.LIVE, retired_at=None)
    for name in verdict.retire:
        snapshot = snapshots[name]
        if snapshot.live:
            snapshots[name] = replace(snapshot, state=SnapshotState.RETIRED, retired_at=now)
        elif (end := purge_at(run, snapshot)) is not None and end <= now:
            snapshots[name] = replace(snapshot, state=SnapshotState.PURGED)


def _bytes_of(run: Run, at: dt.datetime) -> StoredBytes:
    live = sum(s.own_bytes for s in run.snapshots.values() if s.live)
    rest = (s for s in run.snapshots.values() if not s.live and s.state is not SnapshotState.REJECTED)
    return StoredBytes(at, live, sum(left_bytes(run, s) for s in rest))
