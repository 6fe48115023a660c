"""Records from Checkpoints, CheckpointSnapshots and Events. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from checkpoint_cli.forecast import next_save, steps_per_second
from checkpoint_cli.records import (
    AttemptRecord,
    ConditionRecord,
    EntryRecord,
    NextPurgeRecord,
    RunRecord,
    SnapshotRecord,
)
from checkpoint_cli.words import parse_duration, parse_time
from checkpoint_sidecar.core.policy import NO_RESTORE, NOT_CHECKED

Body = Mapping[str, Any]

_GOOD_WHEN_FALSE = {"SavesFailing", "ForeignData", "Stalled"}
_BREAKING = {"Ready", "StorageAvailable", "Stalled"}
_STATES = {
    "Restorable": "Live",
    "RetireRefused": "Live",
    "Quarantined": "Live",
    "Superseded": "Live",
    "Retired": "Retired",
    "Purging": "Purging",
    "Purged": "Purged",
    "Rejected": "Rejected",
}
_LEVELS = {"SizesMatch": "Sizes", "ChecksumsMatch": "Checksums"}


def snapshot_records(checkpoint: Body, mirrors: Sequence[Body]) -> tuple[SnapshotRecord, ...]:
    """Return the snapshots of a Checkpoint, newest commit first."""
    records = [snapshot_record(checkpoint, mirror) for mirror in mirrors]
    return tuple(sorted(records, key=lambda each: (each.committed_at or "", each.attempt, each.step), reverse=True))


def snapshot_record(checkpoint: Body, mirror: Body) -> SnapshotRecord:
    """Return one snapshot as its mirror shows it."""
    spec, status = mirror["spec"], mirror.get("status") or {}
    name = checkpoint["metadata"]["name"]
    identifier = mirror["metadata"]["name"].removeprefix(f"{name}-")
    ready, verified = _condition(status, "Ready"), _condition(status, "Verified")
    damaged = verified.get("status") == "False"
    retention = status.get("retention") or {}
    return SnapshotRecord(
        id=identifier,
        step=spec["step"],
        attempt=spec["attempt"],
        state=_STATES.get(ready.get("reason", ""), "Unknown"),
        committed_at=status.get("committedAt"),
        bytes=status.get("bytes"),
        files=status.get("files"),
        world_size=status.get("worldSize"),
        trigger=status.get("trigger"),
        metrics=status.get("metrics") or {},
        verified=_LEVELS.get(verified.get("reason", ""), NOT_CHECKED) if verified else None,
        failures=int(damaged),
        evidence=verified.get("message", "") if damaged else "",
        disposition=spec.get("disposition", "Auto"),
        marks=tuple(_marks(checkpoint.get("status") or {}, identifier, ready.get("reason", ""))),
        kept=retention.get("kept"),
        reasons=tuple(retention.get("reasons") or ()),
        path=spec["path"],
        manifest_digest=spec["manifestDigest"],
        saved_in=_seconds(status.get("savedIn")),
        purge_after=status.get("purgeAfter"),
    )


def _marks(status: Body, identifier: str, reason: str) -> list[str]:
    marks = [mark for mark in ("latest", "best") if (status.get(mark) or {}).get("snapshot") == identifier]
    return marks + ([reason.lower()] if reason in ("Quarantined", "Superseded") else [])


def run_record(
    checkpoint: Body, *, now: dt.datetime, snapshots: Sequence[SnapshotRecord] = (), running: int | None = None
) -> RunRecord:
    """Return a Checkpoint as a run.

    Args:
        snapshots: Its snapshots, for details of the latest and the best; may be left out.
        running: Number of its pods that run, or None if they were not listed.
    """
    metadata, spec, status = checkpoint["metadata"], checkpoint["spec"], checkpoint.get("status") or {}
    conditions = tuple(_condition_record(each) for each in status.get("conditions") or ())
    problems = tuple(each for each in conditions if _bad(each))
    by_id = {each.id: each for each in snapshots}
    latest = _summary(status.get("latest"), by_id)
    attempt = _attempt(status, latest, running)
    restore = status.get("lastRestore") or {}
    save = spec.get("save") or {}
    saved_at = parse_time(latest.committed_at) if latest else parse_time(attempt.started_at) if attempt else None
    return RunRecord(
        name=f"{metadata['namespace']}/{metadata['name']}",
        url=spec["storage"]["url"],
        owner=status.get("claimedBy") or "",
        managed=True,
        suspended=bool(spec.get("suspend")),
        health=_health(problems, conditions),
        problems=tuple(f"{each.type} is {each.status}, {each.reason}: {each.message}" for each in problems)
        or (() if conditions else ("no operator has reported on it yet",)),
        log_entries=status.get("logSequence"),
        attempt=attempt,
        latest=latest,
        best=_summary(status.get("best"), by_id),
        snapshots=status.get("snapshots"),
        retained_bytes=status.get("retainedBytes"),
        lost_steps=restore.get("lostSteps"),
        lost_seconds=restore.get("lostSeconds"),
        next_save=next_save(
            every_steps=save.get("everySteps"),
            every_seconds=_seconds(save.get("every", "15m")),
            step=latest.step if latest else None,
            saved_at=saved_at,
            running=running is None or running > 0,
            now=now,
        ),
        pending=_pending(spec, status),
        next_purges=tuple(_purge(each) for each in status.get("pendingPurge") or ()),
        conditions=conditions,
    )


def event_record(event: Body) -> EntryRecord:
    """Return one Event as an entry of the run's story."""
    source = (event.get("source") or {}).get("component") or event.get("reportingComponent") or ""
    return EntryRecord(
        time=event_time(event),
        event=event.get("reason") or "",
        text=f"{event.get('reason') or 'Event'}: {event.get('message') or ''}",
        writer=source,
        details={"type": event.get("type") or "Normal", "count": event.get("count") or 1},
    )


def event_time(event: Body) -> str:
    """Return the last time of an Event; an empty text sorts first."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _attempt(status: Body, latest: SnapshotRecord | None, running: int | None) -> AttemptRecord | None:
    attempt = status.get("attempt")
    if not attempt:
        return None
    own = latest is not None and latest.attempt == attempt["number"]
    step = latest.step if latest and own else attempt.get("restoredStep")
    step_at = latest.committed_at if latest and own else attempt["startedAt"]
    return AttemptRecord(
        number=attempt["number"],
        started_at=attempt["startedAt"],
        world_size=latest.world_size if latest and own else None,
        restored=(status.get("lastRestore") or {}).get("snapshot") or "",
        step=step,
        step_at=step_at if step is not None else None,
        steps_per_second=steps_per_second(
            first_step=attempt.get("restoredStep") or 0,
            started_at=parse_time(attempt["startedAt"]),
            step=step,
            step_at=parse_time(step_at),
        ),
        ended=None if running is None else running == 0,
        notice=attempt.get("notice") or "",
    )


def _summary(found: Body | None, by_id: Mapping[str, SnapshotRecord]) -> SnapshotRecord | None:
    if not found:
        return None
    known = by_id.get(found["snapshot"])
    if known is not None:
        return known
    metrics = {found["metric"]: found["value"]} if "metric" in found else {}
    # An id is <step>-<attempt>-<nonce>.
    attempt = found["snapshot"].split("-")[1:2]
    return SnapshotRecord(
        id=found["snapshot"],
        step=found["step"],
        attempt=int(attempt[0]) if attempt and attempt[0].isdecimal() else 0,
        state="Live",
        committed_at=found.get("time"),
        bytes=found.get("bytes"),
        world_size=found.get("worldSize"),
        metrics=metrics,
    )


def _pending(spec: Body, status: Body) -> str:
    restore = spec.get("restore") or {}
    rollback = restore.get("rollback") or {}
    if rollback.get("request") and status.get("lastRollback") != rollback["request"]:
        target = rollback.get("snapshot") or "the best snapshot"
        return f"restores {target} (request {rollback['request']}, not in the log yet)"
    if restore.get("mode") == NO_RESTORE:
        return "starts from scratch, if no start did so since restore.mode was set to None"
    start = status.get("warmStart") or {}
    if start.get("state") == "Pending" and start.get("snapshot"):
        whose = f"{start['part']} of " if start.get("part") else ""
        return f"begins at {whose}step {start.get('step', '?')} of another run ({start['url']}@{start['snapshot']})"
    return ""


def _purge(pending: Body) -> NextPurgeRecord:
    return NextPurgeRecord(
        snapshot=pending["snapshot"],
        action="Purge",
        bytes=pending.get("bytes"),
        at=pending.get("purgeAfter"),
        reasons=tuple(pending.get("reasons") or ()),
    )


def _condition(status: Body, kind: str) -> Body:
    return next((each for each in status.get("conditions") or () if each["type"] == kind), {})


def _condition_record(condition: Body) -> ConditionRecord:
    return ConditionRecord(
        type=condition["type"],
        status=condition["status"],
        reason=condition.get("reason") or "",
        message=condition.get("message") or "",
    )


def _bad(condition: ConditionRecord) -> bool:
    return condition.status == ("True" if condition.type in _GOOD_WHEN_FALSE else "False")


def _health(problems: Sequence[ConditionRecord], conditions: Sequence[ConditionRecord]) -> str:
    if any(each.type in _BREAKING for each in problems):
        return "Broken"
    return "Degraded" if problems or not conditions else "Healthy"


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        if text.endswith("ms"):
            head, _, milliseconds = text.removesuffix("ms").rpartition("s")
            return (parse_duration(f"{head}s") if head else 0.0) + float(milliseconds) / 1000
        return parse_duration(text)
    except ValueError:
        return None
