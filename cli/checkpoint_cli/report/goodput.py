"""Divides the time of a run into training, saving, restoring, waiting and lost work, as far as the log proves it.

The accounts begin with the first start and end with the last sign of life. The rules, for each attempt:

1. From its start to the end of its restore: *restoring*. This includes the start of the processes up to the restore.
2. A commit proves training: the time from the end of the previous save's pause to the moment at which this commit's
   state was copied (the time of the commit minus the duration of the save). It is *training* if the newest snapshot
   descends from the commit, else *lost*: a rollback or a fallback has abandoned it.
3. The time that training waited for a copy is *saving*. The upload in the background is not: training continues.
4. After the last commit nothing proves training, because the next start repeats it. Up to a recorded eviction it is
   *lost*; from a recorded end to the next start the run was *waiting*. Without a recorded end, training that continued
   would have committed again within its usual interval: up to that much is *unclear* (lost or waiting), and the rest
   is waiting.
5. For the newest attempt, the time since its last commit is *unsaved* while it may run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from checkpoint_cli.report.history import LAST_TRIGGERS, AttemptEnd, AttemptHistory, RunHistory


class Activity(StrEnum):
    """What a moment of the run's time was spent on, in the order of the picture."""

    TRAINING = "training"
    UNSAVED = "unsaved"
    SAVING = "saving"
    RESTORING = "restoring"
    WAITING = "waiting"
    UNCLEAR = "unclear"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class TimeSegment:
    """A stretch of the run's time with one activity."""

    activity: Activity
    start: dt.datetime
    end: dt.datetime
    attempt: int

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


@dataclass(frozen=True, slots=True)
class Goodput:
    """The accounts of a run's time.

    Attributes:
        segments: In order, without gaps or overlaps.
        seconds: By activity; activities that did not occur have 0.
        lost_steps: Steps that a rollback or a fallback has abandoned; they were trained and committed.
        unclear_steps: At most about so many steps were trained after the last commits of ended attempts, at each
            attempt's own speed.
    """

    segments: tuple[TimeSegment, ...]
    seconds: Mapping[Activity, float]
    lost_steps: int
    unclear_steps: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """The part of the time that became training which the newest snapshot holds; 0 for a run without time."""
        return self.seconds[Activity.TRAINING] / self.total if self.total else 0.0


def goodput_of(history: RunHistory) -> Goodput:
    """Divide the time of a run."""
    chain = history.lineage
    segments: list[TimeSegment] = []
    for attempt, after in zip(history.attempts, (*history.attempts[1:], None), strict=False):
        segments += _segments(history, attempt, after, chain)
    seconds = dict.fromkeys(Activity, 0.0)
    for segment in segments:
        seconds[segment.activity] += segment.seconds
    return Goodput(
        segments=tuple(_merged(segments)),
        seconds=seconds,
        lost_steps=sum(_lost_steps(attempt, chain) for attempt in history.attempts),
        unclear_steps=sum(_unclear_steps(attempt, segments) for attempt in history.attempts if not attempt.last),
    )


def _segments(
    history: RunHistory, attempt: AttemptHistory, after: AttemptHistory | None, chain: frozenset[str]
) -> Iterator[TimeSegment]:
    until, number = attempt.until, attempt.number
    cursor = min(attempt.ready_at, until)
    yield TimeSegment(Activity.RESTORING, attempt.started_at, cursor, number)
    for snapshot in attempt.commits:
        commit, finished = snapshot.commit, min(snapshot.committed_at, until)
        finished = max(cursor, finished)
        copied = finished - _at_most(commit.seconds, finished - cursor)
        blocked = commit.seconds if commit.trigger in LAST_TRIGGERS else commit.blocked_seconds
        resumed = copied + _at_most(blocked, finished - copied)
        yield TimeSegment(Activity.TRAINING if snapshot.id in chain else Activity.LOST, cursor, copied, number)
        yield TimeSegment(Activity.SAVING, copied, resumed, number)
        cursor = resumed
    yield from _tail(history, attempt, after, cursor, chain)


def _tail(
    history: RunHistory,
    attempt: AttemptHistory,
    after: AttemptHistory | None,
    cursor: dt.datetime,
    chain: frozenset[str],
) -> Iterator[TimeSegment]:
    """The time after the last commit: the log proves little about it."""
    until, number = max(attempt.until, cursor), attempt.number
    if after is not None and after.attempt.started.continues:
        # A drop-in directory: each save is an attempt, and training continues between them.
        kept = not after.commits or after.commits[0].id in chain
        yield TimeSegment(Activity.TRAINING if kept else Activity.LOST, cursor, until, number)
        return
    ended = max(cursor, min(attempt.ended_at or until, until))
    match attempt.end:
        case AttemptEnd.RUNNING:
            yield TimeSegment(Activity.UNSAVED, cursor, until, number)
            return
        case AttemptEnd.EVICTION | AttemptEnd.HEARTBEAT:
            before = Activity.LOST
        case AttemptEnd.LAST_SAVE | AttemptEnd.COMPLETE:
            before = Activity.WAITING
        case _:
            before = Activity.UNCLEAR
    if before is Activity.UNCLEAR and (bound := _usual_interval(history, attempt)) is not None:
        ended = cursor + _at_most(bound, ended - cursor)
    yield TimeSegment(before, cursor, ended, number)
    yield TimeSegment(Activity.WAITING, ended, until, number)


def _at_most(seconds: float, limit: dt.timedelta) -> dt.timedelta:
    """Return a recorded duration, which may be any number, limited to the time that there was."""
    return dt.timedelta(seconds=min(seconds, limit.total_seconds()))


def _usual_interval(history: RunHistory, attempt: AttemptHistory) -> float | None:
    """Seconds after which training that continued would have committed again; None if that cannot be said."""
    if attempt.attempt.save_failure is not None:
        return None
    times = [attempt.ready_at, *(snapshot.committed_at for snapshot in attempt.commits)]
    if len(times) > 1:
        return max((later - earlier).total_seconds() for earlier, later in pairwise(times))
    return history.facts.run.policy.save.every_seconds


def _merged(segments: list[TimeSegment]) -> Iterator[TimeSegment]:
    """Join neighbors of one activity and drop empty ones."""
    current: TimeSegment | None = None
    for segment in segments:
        if segment.end <= segment.start:
            continue
        if current is not None and current.activity is segment.activity and current.attempt == segment.attempt:
            current = TimeSegment(current.activity, current.start, segment.end, current.attempt)
            continue
        if current is not None:
            yield current
        current = segment
    if current is not None:
        yield current


def _lost_steps(attempt: AttemptHistory, chain: frozenset[str]) -> int:
    """Steps between the attempt's last commit in the lineage, or its base, and its last commit."""
    if not attempt.commits:
        return 0
    kept = [snapshot.step for snapshot in attempt.commits if snapshot.id in chain]
    base = kept[-1] if kept else attempt.base_step
    return max(attempt.commits[-1].step - base, 0)


def _unclear_steps(attempt: AttemptHistory, segments: list[TimeSegment]) -> int:
    """Steps that the attempt may have trained after its last commit, at its own speed."""
    if not attempt.commits:
        return 0
    last = attempt.commits[-1]
    trained = (last.committed_at - attempt.ready_at).total_seconds()
    uncertain = (Activity.UNCLEAR, Activity.LOST)
    tail = sum(
        segment.seconds
        for segment in segments
        if segment.attempt == attempt.number and segment.activity in uncertain and segment.end > last.committed_at
    )
    return round(tail * (last.step - attempt.base_step) / trained) if trained > 0 else 0
