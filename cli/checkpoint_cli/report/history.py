"""The life of a run: its attempts, the lives of its snapshots, and its notable events. A pure function of the log.

``core.replay`` says how the run *is*. A report also needs how it came to be: when each snapshot was retired and purged,
and when each attempt was ready and ended. Entries that replay ignores are ignored here too.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from checkpoint_cli.report.facts import RunFacts
from checkpoint_sidecar.core.lineage import lineage, quarantined
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    AttemptStarted,
    PurgeStarted,
    RestoreFinished,
    RestoreStarted,
    RollbackRequested,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
    WarmStartFinished,
)
from checkpoint_sidecar.core.retention import RetentionVerdict, judge
from checkpoint_sidecar.core.run import Attempt, Snapshot, SnapshotState

LAST_TRIGGERS = ("Termination", "Final")
"""Triggers of a save after which its attempt ends."""


class ShownState(StrEnum):
    """A snapshot's state as the report shows it. Each is drawn with its own shape, not only its own color."""

    KEPT = "kept"
    HELD = "held"
    DAMAGED = "damaged"
    RETIRED = "retired"
    PURGED = "purged"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class SnapshotLife:
    """One snapshot, and when its state changed.

    Attributes:
        in_lineage: Whether the newest snapshot descends from it.
        reasons: Why it is kept, was retired or was rejected: reasons of the retention policy.
        retire_due: Reasons for which the policy is about to retire it, while it is live.
        purged_at: The store's clock, or None while its data exists.
    """

    snapshot: Snapshot
    state: ShownState
    in_lineage: bool
    reasons: tuple[str, ...]
    retire_due: tuple[str, ...] = ()
    retired_at: dt.datetime | None = None
    purged_at: dt.datetime | None = None


class AttemptEnd(Enum):
    """The evidence for the end of an attempt."""

    RUNNING = "it may still run"
    LAST_SAVE = "its last save was made on the way out"
    EVICTION = "a pod was evicted"
    FENCED = "the operator found it ended"
    COMPLETE = "its last heartbeat says that it ended with its last commit"
    HEARTBEAT = "its last heartbeat says that it ended"
    NEXT_START = "only the next start shows that it ended"


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """One attempt, from its start to the next one's.

    Attributes:
        ready_at: When the last restore before the first commit finished; the start if it restored nothing.
        until: The start of the next attempt, or the last sign of life of the run.
        ended_at: When the log shows that it had ended; None while it may run.
        last: Whether it is the run's newest attempt.
        base_step: The step of the snapshot that it continues from; 0 for a fresh start.
        rollback: Whether it served a request to roll back.
        commits: Its accepted commits, in order.
    """

    attempt: Attempt
    ready_at: dt.datetime
    until: dt.datetime
    end: AttemptEnd
    ended_at: dt.datetime | None
    last: bool
    base_step: int
    rollback: bool
    commits: tuple[Snapshot, ...]

    @property
    def number(self) -> int:
        return self.attempt.number

    @property
    def started_at(self) -> dt.datetime:
        return self.attempt.started_at


@dataclass(frozen=True, slots=True)
class RunHistory:
    """Everything that the pictures and tables of a report show.

    Attributes:
        lives: All snapshots in order of commit.
        verdict: The policy's decision at the time of the report.
        alive_at: The last sign of life of training, an entry or a heartbeat; None before the first start.
    """

    facts: RunFacts
    lives: tuple[SnapshotLife, ...]
    attempts: tuple[AttemptHistory, ...]
    verdict: RetentionVerdict
    alive_at: dt.datetime | None

    @property
    def lineage(self) -> frozenset[str]:
        return frozenset(life.snapshot.id for life in self.lives if life.in_lineage)


@dataclass(slots=True)
class _Walk:
    """Times collected from the entries, in one pass."""

    states: dict[str, SnapshotState] = field(default_factory=dict)
    purged_at: dict[str, dt.datetime] = field(default_factory=dict)
    retired_at: dict[str, dt.datetime] = field(default_factory=dict)
    ready_at: dict[int, dt.datetime] = field(default_factory=dict)
    fenced_at: dict[int, dt.datetime] = field(default_factory=dict)
    seen_at: dict[int, dt.datetime] = field(default_factory=dict)
    committed: set[int] = field(default_factory=set)
    highest: int = 0


def history_of(facts: RunFacts) -> RunHistory:
    """Describe the life of a run."""
    walk = _walk(facts)
    verdict = judge(facts.run, now=facts.now)
    attempts = _attempts(facts, walk)
    return RunHistory(
        facts=facts,
        lives=_lives(facts, walk, verdict),
        attempts=attempts,
        verdict=verdict,
        alive_at=attempts[-1].until if attempts else None,
    )


def _walk(facts: RunFacts) -> _Walk:
    walk, run = _Walk(), facts.run
    for entry in facts.entries:
        at = entry.stored_at
        match entry.body:
            case SnapshotCommitted(snapshot=identifier, attempt=number):
                found = run.snapshots.get(identifier)
                if found is None or found.number != entry.number or found.state is SnapshotState.REJECTED:
                    continue
                walk.states[identifier] = SnapshotState.LIVE
                walk.committed.add(number)
                walk.seen_at[number] = at
            case AttemptStarted(attempt=number) if number == walk.highest + 1:
                walk.highest = number
                walk.seen_at[number] = at
            case (
                RestoreStarted(attempt=number) | RestoreFinished(attempt=number) | WarmStartFinished(attempt=number)
            ) if number == walk.highest:
                walk.seen_at[number] = at
                if number not in walk.committed:
                    walk.ready_at[number] = at
            case AttemptFenced(attempt=number) if number == walk.highest:
                walk.fenced_at.setdefault(number, at)
            case SnapshotRetired(snapshot=identifier) if walk.states.get(identifier) is SnapshotState.LIVE:
                walk.states[identifier] = SnapshotState.RETIRED
                walk.retired_at[identifier] = at
            case SnapshotReinstated(snapshot=identifier) | RollbackRequested(snapshot=identifier) if (
                walk.states.get(identifier) is SnapshotState.RETIRED
            ):
                walk.states[identifier] = SnapshotState.LIVE
                del walk.retired_at[identifier]
            case PurgeStarted(snapshot=identifier) if walk.states.get(identifier) is SnapshotState.RETIRED:
                walk.states[identifier] = SnapshotState.PURGING
            case SnapshotPurged(snapshot=identifier) if walk.states.get(identifier) is SnapshotState.PURGING:
                walk.states[identifier] = SnapshotState.PURGED
                walk.purged_at[identifier] = at
    return walk


def _lives(facts: RunFacts, walk: _Walk, verdict: RetentionVerdict) -> tuple[SnapshotLife, ...]:
    chain = {snapshot.id for snapshot in lineage(facts.run)}
    return tuple(
        SnapshotLife(
            snapshot=snapshot,
            state=_shown_state(facts, snapshot),
            in_lineage=snapshot.id in chain,
            reasons=verdict.keep.get(snapshot.id, ()) if snapshot.live else snapshot.reasons,
            retire_due=verdict.retire.get(snapshot.id, ()) if snapshot.live else (),
            retired_at=walk.retired_at.get(snapshot.id),
            purged_at=walk.purged_at.get(snapshot.id),
        )
        for snapshot in facts.run.snapshots.values()
    )


def _shown_state(facts: RunFacts, snapshot: Snapshot) -> ShownState:
    match snapshot.state:
        case SnapshotState.REJECTED:
            return ShownState.REJECTED
        case SnapshotState.PURGED | SnapshotState.PURGING:
            return ShownState.PURGED
        case SnapshotState.RETIRED:
            return ShownState.RETIRED
    if quarantined(facts.run, snapshot) or snapshot.failures:
        return ShownState.DAMAGED
    return ShownState.HELD if snapshot.disposition == "Hold" else ShownState.KEPT


def _attempts(facts: RunFacts, walk: _Walk) -> tuple[AttemptHistory, ...]:
    run = facts.run
    commits: dict[int, list[Snapshot]] = {}
    for snapshot in run.snapshots.values():
        if snapshot.state is not SnapshotState.REJECTED:
            commits.setdefault(snapshot.commit.attempt, []).append(snapshot)
    return tuple(
        _attempt(facts, walk, attempt, run.attempts.get(number + 1), tuple(commits.get(number, ())))
        for number, attempt in run.attempts.items()
    )


def _attempt(
    facts: RunFacts, walk: _Walk, attempt: Attempt, following: Attempt | None, commits: tuple[Snapshot, ...]
) -> AttemptHistory:
    number = attempt.number
    until = following.started_at if following else _last_sign(facts, walk, attempt)
    end, ended_at = _end(facts, walk, attempt, following, commits)
    base = facts.run.snapshots.get(attempt.restored or attempt.started.continues)
    return AttemptHistory(
        attempt=attempt,
        ready_at=min(walk.ready_at.get(number, attempt.started_at), until),
        until=until,
        end=end,
        ended_at=ended_at,
        last=following is None,
        base_step=base.step if base else 0,
        rollback=attempt.started.restore_request in facts.run.rollbacks,
        commits=commits,
    )


def _end(
    facts: RunFacts, walk: _Walk, attempt: Attempt, following: Attempt | None, commits: tuple[Snapshot, ...]
) -> tuple[AttemptEnd, dt.datetime | None]:
    """The best evidence for the end of an attempt that lies after its last commit."""
    last = commits[-1] if commits else None
    after = last.committed_at if last else attempt.started_at
    if last is not None and last.commit.trigger in LAST_TRIGGERS:
        return AttemptEnd.LAST_SAVE, last.committed_at
    if attempt.eviction_at is not None and attempt.eviction_at >= after:
        return AttemptEnd.EVICTION, attempt.eviction_at
    fenced_at = walk.fenced_at.get(attempt.number)
    if fenced_at is not None and fenced_at >= after:
        return AttemptEnd.FENCED, fenced_at
    if following is not None:
        return AttemptEnd.NEXT_START, following.started_at
    beat = facts.heartbeat
    if beat is not None and beat.attempt == attempt.number and beat.ended:
        complete = last is not None and beat.step <= last.step
        return (AttemptEnd.COMPLETE, after) if complete else (AttemptEnd.HEARTBEAT, facts.heartbeat_at)
    return AttemptEnd.RUNNING, None


def _last_sign(facts: RunFacts, walk: _Walk, attempt: Attempt) -> dt.datetime:
    """When training was last known to live: everything after that is not part of the report's accounts."""
    signs = [attempt.started_at, walk.seen_at.get(attempt.number, attempt.started_at)]
    if facts.heartbeat is not None and facts.heartbeat.attempt == attempt.number and facts.heartbeat_at is not None:
        signs.append(facts.heartbeat_at)
    if attempt.eviction_at is not None:
        signs.append(attempt.eviction_at)
    return max(signs)
