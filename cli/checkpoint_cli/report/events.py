"""The notable events of a run, each as one sentence. Pure."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from checkpoint_cli.report import formats
from checkpoint_cli.report.history import RunHistory
from checkpoint_sidecar.core.errors import NO_EVIDENCE
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    AttemptStarted,
    DispositionSet,
    EvictionNoticed,
    QuarantineReleased,
    RestoreFinished,
    RollbackRequested,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SaveFailed,
    SaveRequested,
    SnapshotVerified,
    StoredEntry,
    Unknown,
)

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
    for text, trouble in _sentence(history, entry):
        return NotableEvent(entry.stored_at, entry.number, _kind(entry), text, trouble)
    return None


def _sentence(history: RunHistory, entry: StoredEntry) -> Iterator[tuple[str, bool]]:
    snapshots = history.facts.run.snapshots

    def named(identifier: str) -> str:
        found = snapshots.get(identifier)
        return f"step {formats.count(found.step)} ({identifier})" if found else identifier

    match entry.body:
        case RunClaimed(owner=owner):
            yield f"{owner} claimed the prefix", False
        case RunAdopted(owner=owner, previous_owner=before):
            yield f"{owner} took the run over from {before}", False
        case RunConfigured(generation=generation):
            yield f"Policy of generation {generation} applies", False
        case AttemptStarted(attempt=number, world_size=ranks):
            yield f"Attempt {number} started with {formats.counted(ranks, 'rank')}", False
        case RestoreFinished(attempt=number, snapshot=identifier, restored=True, seconds=seconds):
            yield f"Attempt {number} restored {named(identifier)} in {formats.duration(seconds)}", False
        case RestoreFinished(attempt=number, snapshot=identifier, evidence=evidence, message=message):
            cause = ": ".join(part for part in ("" if evidence == NO_EVIDENCE else evidence, message) if part)
            yield f"Attempt {number} could not restore {named(identifier)}: {cause or 'interrupted'}", True
        case SnapshotVerified(snapshot=identifier, passed=False, evidence=evidence, message=message):
            yield f"The check of {named(identifier)} failed: {evidence}{': ' if message else ''}{message}", True
        case RollbackRequested(snapshot=identifier, request=request):
            yield f"Rollback to {named(identifier)} requested ({request})", False
        case SaveRequested(attempt=number, reason=reason):
            yield f"Attempt {number} was asked to save{': ' if reason else ''}{reason}", False
        case SaveFailed(attempt=number, step=step, failures=failures, message=message):
            times = formats.counted(failures, "failure")
            yield f"Saving step {formats.count(step)} failed in attempt {number} ({times} in a row): {message}", True
        case EvictionNoticed(attempt=number, pod=pod, reason=reason):
            yield f"Pod {pod.name} of attempt {number} is evicted: {reason}", True
        case AttemptFenced(attempt=number):
            yield f"Attempt {number} has ended and may no longer commit", False
        case DispositionSet(snapshot=identifier, disposition=disposition):
            yield f"Disposition of {named(identifier)} set to {disposition}", False
        case QuarantineReleased(snapshot=identifier):
            yield f"The evidence against {named(identifier)} was discarded on request", False
        case Unknown(kind=kind):
            yield f"Entry of the kind {kind}, which this version does not know", False
