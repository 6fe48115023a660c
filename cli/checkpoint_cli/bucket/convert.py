"""Records from the state of a run. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from checkpoint_cli.forecast import next_save, steps_per_second
from checkpoint_cli.records import AttemptRecord, NextPurgeRecord, RunRecord, SnapshotRecord
from checkpoint_cli.sentences import start_in_words
from checkpoint_cli.words import rfc3339
from checkpoint_sidecar.core.best import best_snapshot
from checkpoint_sidecar.core.heartbeat import INTERVAL_SECONDS, Heartbeat
from checkpoint_sidecar.core.lineage import in_use, lineage, quarantined, rollback_target
from checkpoint_sidecar.core.purging import purge_at
from checkpoint_sidecar.core.retention import RetentionVerdict
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.sharing import distinct_bytes, freed_bytes

_SILENT_SECONDS = 6 * INTERVAL_SECONDS
"""Age of a heartbeat after which training does not seem to run."""
_MOST_PURGES = 16


@dataclass(frozen=True, slots=True)
class RunFindings:
    """A run as it was read.

    Attributes:
        verdict: Retention's judgment of ``run``.
        now: When it was read.
        heartbeat, heartbeat_at: The latest heartbeat and when it was written; None without one.
    """

    url: str
    run: Run
    verdict: RetentionVerdict
    now: dt.datetime
    heartbeat: Heartbeat | None = None
    heartbeat_at: dt.datetime | None = None


def snapshot_records(found: RunFindings, snapshots: Iterable[Snapshot]) -> tuple[SnapshotRecord, ...]:
    """Return records of some snapshots, newest commit first."""
    chain = frozenset(each.id for each in lineage(found.run))
    marked = _marked(found.run)
    ordered = sorted(snapshots, key=lambda each: each.number, reverse=True)
    return tuple(_snapshot_record(found, each, chain, marked) for each in ordered)


def _marked(run: Run) -> tuple[tuple[str, str | None], ...]:
    newest = next((each.id for each in lineage(run) if each.live), None)
    best = best_snapshot(run)
    return (
        ("latest", newest),
        ("best", best.id if best else None),
        ("in-use", in_use(run)),
        ("rollback-target", rollback_target(run)),
    )


def _snapshot_record(
    found: RunFindings, snapshot: Snapshot, chain: frozenset[str], marked: tuple[tuple[str, str | None], ...]
) -> SnapshotRecord:
    commit, run = snapshot.commit, found.run
    marks = [mark for mark, identifier in marked if identifier == snapshot.id]
    marks += ["quarantined"] if quarantined(run, snapshot) else []
    holds_data = snapshot.state in (SnapshotState.LIVE, SnapshotState.RETIRED)
    marks += ["superseded"] if holds_data and snapshot.id not in chain else []
    kept, reasons = _retention(found.verdict, snapshot)
    return SnapshotRecord(
        id=snapshot.id,
        step=snapshot.step,
        attempt=commit.attempt,
        state=snapshot.state.value,
        committed_at=rfc3339(snapshot.committed_at),
        bytes=commit.bytes,
        shared_bytes=commit.shared_bytes,
        files=commit.files,
        world_size=commit.world_size,
        trigger=commit.trigger,
        metrics=dict(commit.metrics),
        verified=snapshot.verified,
        failures=snapshot.failures,
        evidence=snapshot.evidence,
        disposition=snapshot.disposition,
        marks=tuple(marks),
        kept=kept,
        reasons=reasons,
        parent=commit.parent,
        path=commit.path,
        manifest_digest=commit.manifest_digest,
        saved_in=commit.seconds,
        purge_after=rfc3339(purge_at(run, snapshot)),
    )


def _retention(verdict: RetentionVerdict, snapshot: Snapshot) -> tuple[bool | None, tuple[str, ...]]:
    if snapshot.id in verdict.keep:
        return True, verdict.keep[snapshot.id]
    if snapshot.id in verdict.retire:
        return False, verdict.retire[snapshot.id]
    return None, snapshot.reasons


def run_record(found: RunFindings) -> RunRecord:
    """Return the run on one screen."""
    run = found.run
    live = [each for each in run.snapshots.values() if each.live]
    records = {each.id: each for each in snapshot_records(found, live)}
    marks = dict(_marked(run))
    latest = records.get(marks["latest"] or "")
    problems = tuple(_problems(found, live))
    lost = _lost(found)
    return RunRecord(
        name=found.url,
        url=found.url,
        owner=str(run.owner) if run.owner else "",
        managed=run.managed,
        suspended=None,
        health="Broken" if any(broken for _, broken in problems) else "Degraded" if problems else "Healthy",
        problems=tuple(text for text, _ in problems),
        log_entries=run.head,
        attempt=_attempt_record(found),
        latest=latest,
        best=records.get(marks["best"] or ""),
        snapshots=len(live),
        retained_bytes=distinct_bytes(live),
        lost_steps=lost[0],
        lost_seconds=lost[1],
        next_save=_next_save(found),
        pending=_pending(run),
        next_purges=tuple(_next_purges(found))[:_MOST_PURGES],
    )


def _problems(found: RunFindings, live: list[Snapshot]) -> Iterator[tuple[str, bool]]:
    run = found.run
    bad = [each for each in live if quarantined(run, each)]
    if run.unknown_critical:
        kind = run.unknown_critical
        yield f"the log has an entry of the kind {kind}, which this version does not know; upgrade it", True
    if live and len(bad) == len(live):
        yield "no snapshot can be restored: all are quarantined", True
    elif bad:
        yield f"{len(bad)} of {len(live)} snapshots are quarantined", False
    if run.ever_committed and not live:
        yield "no snapshot can be restored: all were given up", True
    failure = run.attempt.save_failure if run.attempt else None
    if failure is not None:
        times = f", {failure.failures} times in a row" if failure.failures > 1 else ""
        yield f"saving step {failure.step} failed{times}: {failure.message}", False
    if run.attempt is not None and run.attempt.eviction is not None:
        yield f"pod {run.attempt.eviction.pod.name} was evicted: {run.attempt.eviction.reason}", False


def _is_own(found: RunFindings, attempt: Attempt) -> bool:
    return found.heartbeat is not None and found.heartbeat.attempt == attempt.number


def _running(found: RunFindings) -> bool:
    attempt = found.run.attempt
    if attempt is None or found.heartbeat is None or found.heartbeat_at is None or not _is_own(found, attempt):
        return False
    return not found.heartbeat.ended and (found.now - found.heartbeat_at).total_seconds() < _SILENT_SECONDS


def _attempt_record(found: RunFindings) -> AttemptRecord | None:
    run, attempt = found.run, found.run.attempt
    if attempt is None:
        return None
    restored = run.snapshots.get(attempt.restored or "")
    step, step_at = _progress(found, attempt)
    first = restored.step if restored else 0
    own = _is_own(found, attempt)
    ended = True if own and found.heartbeat and found.heartbeat.ended else None
    return AttemptRecord(
        number=attempt.number,
        started_at=rfc3339(attempt.started_at) or "",
        world_size=attempt.started.world_size,
        restored=attempt.restored or "",
        step=step,
        step_at=rfc3339(step_at),
        steps_per_second=steps_per_second(first_step=first, started_at=attempt.started_at, step=step, step_at=step_at),
        ended=ended if run.may_commit(attempt.number) else True,
        notice="" if _running(found) or ended else "no heartbeat for a minute: it may have ended",
    )


def _progress(found: RunFindings, attempt: Attempt) -> tuple[int | None, dt.datetime | None]:
    last = found.run.snapshots.get(attempt.last_commit or attempt.restored or "")
    reported = found.heartbeat if _is_own(found, attempt) else None
    if reported is not None and (last is None or reported.step >= last.step):
        return reported.step, found.heartbeat_at
    if last is None:
        return None, None
    return last.step, last.committed_at if attempt.last_commit else attempt.started_at


def _lost(found: RunFindings) -> tuple[int | None, float | None]:
    """Return a lower bound of what the newest start lost, or None if neither log nor heartbeat shows it."""
    run, attempt = found.run, found.run.attempt
    restored = run.snapshots.get(attempt.restored or "") if attempt else None
    if attempt is not None and attempt.number == 1:
        return 0, 0.0
    if attempt is None or restored is None:
        return None, None
    before = [each.step for each in run.snapshots.values() if each.commit.attempt < attempt.number]
    lost = max([*before, restored.step]) - restored.step
    heartbeat = found.heartbeat
    if heartbeat is not None and heartbeat.attempt == attempt.number - 1 and found.heartbeat_at is not None:
        lost = max(lost, heartbeat.step - restored.step)
        seconds = max((found.heartbeat_at - restored.committed_at).total_seconds(), 0.0)
        return lost, seconds if lost else 0.0
    return (lost, None) if lost else (None, None)


def _next_save(found: RunFindings) -> str:
    run, policy = found.run, found.run.policy.save
    attempt = run.attempt
    step = _progress(found, attempt)[0] if attempt else None
    last = run.snapshots.get(attempt.last_commit or "") if attempt else None
    return next_save(
        every_steps=policy.every_steps,
        every_seconds=policy.every_seconds,
        step=step,
        saved_at=last.committed_at if last else attempt.started_at if attempt else None,
        running=_running(found),
        now=found.now,
    )


def _pending(run: Run) -> str:
    if run.pending is None and run.warm_start is not None and not run.ever_committed:
        return f"begins at {start_in_words(run.warm_start)}"
    if run.pending is None:
        return ""
    if run.pending.snapshot is None:
        return f"starts from scratch (request {run.pending.id})"
    return f"restores {run.pending.snapshot} (request {run.pending.id})"


def _next_purges(found: RunFindings) -> Iterator[NextPurgeRecord]:
    yield from sorted(_purges(found), key=lambda each: each.at or "")
    run = found.run
    for identifier, reasons in found.verdict.retire.items():
        snapshot = run.snapshots[identifier]
        if snapshot.live:
            size = freed_bytes(run, snapshot)
            yield NextPurgeRecord(snapshot=identifier, action="Retire", bytes=size, reasons=tuple(reasons))


def _purges(found: RunFindings) -> Iterator[NextPurgeRecord]:
    for each in found.run.snapshots.values():
        if each.state is SnapshotState.PURGING or (
            each.state is SnapshotState.RETIRED and each.id in found.verdict.retire
        ):
            at = rfc3339(purge_at(found.run, each))
            size = freed_bytes(found.run, each)
            yield NextPurgeRecord(snapshot=each.id, action="Purge", bytes=size, at=at, reasons=each.reasons)
