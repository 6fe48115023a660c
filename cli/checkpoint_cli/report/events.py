"""The notable events of a run, each as one sentence. Pure."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass

from checkpoint_cli.report.history import RunHistory
from checkpoint_cli.sentences import sentence
from checkpoint_sidecar.core.log import (
    Body,
    EvictionNoticed,
    PurgeStarted,
    RestoreFinished,
    RestoreStarted,
    SaveFailed,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    Unknown,
    WarmStartFinished,
)

_ORDINARY = (
    PurgeStarted,
    RestoreStarted,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
)
"""Kinds that the pictures and tables of a report show."""

MAX_EVENTS = 400
"""Number of events that a report lists; the oldest ones beyond it are counted."""


@dataclass(frozen=True, slots=True)
class NotableEvent:
    """One line of the story of a run.

    Attributes:
        kind: The kind of its entry.
        text: A sentence; it may quote the log.
        trouble: Whether something went wrong.
    """

    at: dt.datetime
    number: int
    kind: str
    text: str
    trouble: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """The newest notable events, newest first, the number left out, and what the log holds by kind of entry."""

    events: tuple[NotableEvent, ...]
    left_out: int
    kinds: tuple[tuple[str, int], ...]


def story_of(history: RunHistory) -> Story:
    """List the notable events: all but ordinary commits, checks and deletions, which the pictures show."""
    entries = history.facts.entries
    events = [event for entry in entries if (event := _event(history, entry))]
    kinds = Counter(_kind(entry) for entry in entries)
    newest = tuple(reversed(events[-MAX_EVENTS:]))
    return Story(newest, len(events) - len(newest), tuple(kinds.most_common()))


def _kind(entry: StoredEntry) -> str:
    return entry.body.kind if isinstance(entry.body, Unknown) else type(entry.body).__name__


def _event(history: RunHistory, entry: StoredEntry) -> NotableEvent | None:
    if not _is_notable(entry.body):
        return None
    text = sentence(entry.body, history.facts.run.snapshots)
    return NotableEvent(entry.stored_at, entry.number, _kind(entry), text, _is_trouble(entry.body))


def _is_notable(body: Body | Unknown) -> bool:
    return not (isinstance(body, _ORDINARY) or (isinstance(body, SnapshotVerified) and body.passed))


def _is_trouble(body: Body | Unknown) -> bool:
    match body:
        case SaveFailed() | EvictionNoticed() | RestoreFinished(restored=False) | SnapshotVerified(passed=False):
            return True
        case WarmStartFinished(restored=False):
            return True
    return False
