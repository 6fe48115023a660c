"""The Events of a run: one for each log entry that is of interest to users. Pure.

They follow from the entries after ``status.logSequence``, so that each is reported once, regardless of the process that
wrote the entry and of whether the operator ran at that time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from checkpoint_operator.model.event_draft import EventDraft
from checkpoint_operator.report.resources import conditions_of
from checkpoint_sidecar.core.api import ConditionType, EventReason, Reason
from checkpoint_sidecar.core.lineage import quarantined
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    AttemptStarted,
    EvictionNoticed,
    QuarantineReleased,
    RestoreFinished,
    RunAdopted,
    RunClaimed,
    SaveFailed,
    SaveRequested,
    SnapshotCommitted,
    SnapshotCommittedSharing,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    WarmStartChosen,
    WarmStartFinished,
)
from checkpoint_sidecar.core.run import Run, SnapshotState
from checkpoint_sidecar.core.units import size
from checkpoint_sidecar.core.warm_start import address_of

OPERATOR = "operator"
"""Prefix of operators' signatures in ``StoredEntry.writer``; those of libraries differ."""

MAX_REPORTED = 50
FIRST_REPORTED = 16
"""Number of entries to report of a log that the status never reflected: all of a new run, the end of an old one."""


def since_last_report(status: Mapping[str, Any], head: int) -> range:
    """Return the numbers of the log entries to report: those after the last report, but not too many."""
    reported = status.get("logSequence")
    if reported is None:
        return range(max(0, head - FIRST_REPORTED) + 1, head + 1)
    # A smaller head is another log: the bucket was emptied, and a new run has begun.
    if reported > head:
        return range(1, min(head, FIRST_REPORTED) + 1)
    return range(max(reported, head - MAX_REPORTED) + 1, head + 1)


def for_entries(entries: Iterable[StoredEntry], run: Run) -> tuple[EventDraft, ...]:
    """Draft the Events of some entries.

    Args:
        run: The state after all of them.
    """
    drafts = []
    for entry in entries:
        describe = _LINES.get(type(entry.body))
        line = describe(entry.body, run) if describe else None
        if line is not None:
            reason, message, warning = line
            drafts.append(EventDraft(reason, message, str(entry.number), warning))
    return tuple(drafts)


_CONDITIONS: tuple[tuple[ConditionType, Reason, EventReason, str], ...] = (
    (ConditionType.READY, Reason.PREFIX_CLAIMED, EventReason.PREFIX_CLAIMED, "claimed"),
    (ConditionType.READY, Reason.LOG_MISSING, EventReason.LOG_MISSING, "missing"),
    (ConditionType.FOREIGN_DATA, Reason.LEFT_ALONE, EventReason.FOREIGN_DATA, "foreign"),
    (ConditionType.RESTORE_ENFORCED, Reason.ROLLBACK_NOT_FOUND, EventReason.ROLLBACK_NOT_FOUND, "rollback"),
    (ConditionType.RESTORE_ENFORCED, Reason.WARM_START_NOT_GRANTED, EventReason.WARM_START_REFUSED, "warm-start"),
    (ConditionType.RESTORE_ENFORCED, Reason.WARM_START_NOT_FOUND, EventReason.WARM_START_REFUSED, "warm-start"),
    (ConditionType.RESTORE_ENFORCED, Reason.WARM_START_NEEDS_SECRET, EventReason.WARM_START_REFUSED, "warm-start"),
    (ConditionType.RETENTION_ENFORCED, Reason.DELETION_REFUSED, EventReason.DELETION_REFUSED, "refused"),
)


def for_conditions(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[EventDraft, ...]:
    """Draft Events that do not follow from log entries: a condition has changed to a state of interest to users.

    Args:
        before, after: Statuses of the Checkpoint.
    """
    old, new = (conditions_of(status) for status in (before, after))
    drafts = []
    for kind, reason, event, word in _CONDITIONS:
        was, now = (condition.get(kind, {}) for condition in (old, new))
        known = (was.get("reason"), was.get("message")) == (reason, now.get("message"))
        if now.get("reason") == reason and not known:
            drafts.append(EventDraft(event, now["message"], f"{word}-{after['observedGeneration']}", warning=True))
    return tuple(drafts)


def for_other_operators(entries: Iterable[StoredEntry], writer: str) -> tuple[EventDraft, ...]:
    """Draft Events about other operators that write to the same log.

    Args:
        entries: Those that were appended while this operator, whose signature is ``writer``, worked on the log.
    """
    others = {entry.writer for entry in entries if entry.writer.startswith(OPERATOR) and entry.writer != writer}
    return tuple(
        EventDraft(
            EventReason.SECOND_OPERATOR,
            f"{other} works on this run, too, as {writer} does. Nothing is lost, but two of different configuration "
            "undo each other's work: run one replica, or give each operator namespaces of its own.",
            f"operator-{hashlib.sha256(other.encode()).hexdigest()[:10]}",
            warning=True,
        )
        for other in sorted(others)
    )


_Line = tuple[EventReason, str, bool] | None


def _claimed(body: RunClaimed, _: Run) -> _Line:
    return EventReason.RUN_CLAIMED, f"The prefix is claimed for {body.owner}.", False


def _adopted(body: RunAdopted, _: Run) -> _Line:
    message = f"Taken over from {body.previous_owner}; attempts that started before are fenced."
    return EventReason.RUN_ADOPTED, message, True


def _warm_start_chosen(body: WarmStartChosen, _: Run) -> _Line:
    what = f"{body.part} of step" if body.part else "step"
    message = f"The run begins at {what} {body.step} of another run, as {body.asked} was asked for: {address_of(body)}"
    return EventReason.WARM_START_CHOSEN, message, False


def _begun(body: WarmStartFinished, _: Run) -> _Line:
    where = address_of(body)
    if not body.restored:
        return EventReason.RESTORE_FAILED, f"Attempt {body.attempt} could not begin at {where}: {body.message}", True
    loaded = f"with {body.part} of {where}, at step 0" if body.part else f"at step {body.step} of {where}"
    return EventReason.RESTORED, f"Attempt {body.attempt} began {loaded}, loaded in {body.seconds:.1f} s.", False


def _started(body: AttemptStarted, run: Run) -> _Line:
    plan = f"restores {body.candidate}" if body.candidate else "starts from scratch"
    attempt = run.attempts.get(body.attempt)
    if attempt is not None and attempt.warm_start is not None:
        plan = "begins at a snapshot of another run"
    message = f"Attempt {body.attempt} started with {body.world_size} ranks; it {plan}."
    return EventReason.ATTEMPT_STARTED, message, False


def _restored(body: RestoreFinished, run: Run) -> _Line:
    snapshot = run.snapshots.get(body.snapshot)
    if body.restored:
        step = f" (step {snapshot.step})" if snapshot else ""
        message = f"Attempt {body.attempt} restored {body.snapshot}{step} in {body.seconds:.1f} s."
        return EventReason.RESTORED, message, False
    why = body.message or "it was interrupted"
    return EventReason.RESTORE_FAILED, f"Attempt {body.attempt} could not restore {body.snapshot}: {why}", True


def _committed(body: SnapshotCommitted, run: Run) -> _Line:
    snapshot = run.snapshots.get(body.snapshot)
    if snapshot is not None and snapshot.state is SnapshotState.REJECTED:
        message = f"The commit of {body.snapshot} broke the rules in force: {', '.join(snapshot.reasons)}."
        return EventReason.SNAPSHOT_REJECTED, message, True
    copied = f", {size(body.copied_bytes)} of it copied by the store" if body.copied_bytes else ""
    shared = f", {size(body.shared_bytes)} of it shared with earlier snapshots" if body.shared_bytes else ""
    message = (
        f"Step {body.step} is committed as {body.snapshot}: {size(body.bytes)} from {body.world_size} ranks"
        f"{copied}{shared} in {body.seconds:.1f} s ({body.trigger})."
    )
    return EventReason.SNAPSHOT_COMMITTED, message, False


def _verified(body: SnapshotVerified, run: Run) -> _Line:
    snapshot = run.snapshots.get(body.snapshot)
    if body.passed or snapshot is None:
        return None
    consequence = "no restore tries it again" if quarantined(run, snapshot) else "it is not trusted"
    return EventReason.SNAPSHOT_QUARANTINED, f"{body.snapshot}: {body.message or body.evidence}; {consequence}.", True


def _released(body: QuarantineReleased, _: Run) -> _Line:
    message = f"{body.snapshot} is released from quarantine ({body.request}); it is verified anew."
    return EventReason.QUARANTINE_RELEASED, message, False


def _save_requested(body: SaveRequested, _: Run) -> _Line:
    # Users know their own requests.
    message = f"Attempt {body.attempt} is asked to save: {body.reason}"
    return (EventReason.SAVE_REQUESTED, message, False) if body.reason else None


def _save_failed(body: SaveFailed, _: Run) -> _Line:
    count = "A save" if body.failures == 1 else f"{body.failures} saves in a row"
    message = f"{count} of attempt {body.attempt} failed, at step {body.step}; it trains on: {body.message}"
    return EventReason.SAVE_FAILED, message, True


def _evicted(body: EvictionNoticed, _: Run) -> _Line:
    return EventReason.POD_EVICTED, f"Pod {body.pod.name} of attempt {body.attempt} is leaving: {body.reason}.", True


def _fenced(body: AttemptFenced, _: Run) -> _Line:
    message = f"Attempt {body.attempt} has ended without a later one; its unfinished saves are deleted."
    return EventReason.ATTEMPT_FENCED, message, False


def _retired(body: SnapshotRetired, _: Run) -> _Line:
    message = f"{body.snapshot} is retired ({', '.join(body.reasons)}); its data stays for the grace period."
    return EventReason.SNAPSHOT_RETIRED, message, False


def _reinstated(body: SnapshotReinstated, _: Run) -> _Line:
    by = f"by attempt {body.attempt}" if body.attempt else "by policy"
    return EventReason.SNAPSHOT_REINSTATED, f"{body.snapshot} may be restored again ({by}).", False


def _purged(body: SnapshotPurged, _: Run) -> _Line:
    return EventReason.SNAPSHOT_PURGED, f"The data of {body.snapshot} is deleted: {size(body.bytes)}.", False


_LINES: dict[type, Callable[[Any, Run], _Line]] = {
    RunClaimed: _claimed,
    RunAdopted: _adopted,
    WarmStartChosen: _warm_start_chosen,
    AttemptStarted: _started,
    RestoreFinished: _restored,
    WarmStartFinished: _begun,
    SnapshotCommitted: _committed,
    SnapshotCommittedSharing: _committed,
    SnapshotVerified: _verified,
    QuarantineReleased: _released,
    SaveRequested: _save_requested,
    SaveFailed: _save_failed,
    EvictionNoticed: _evicted,
    AttemptFenced: _fenced,
    SnapshotRetired: _retired,
    SnapshotReinstated: _reinstated,
    SnapshotPurged: _purged,
}
