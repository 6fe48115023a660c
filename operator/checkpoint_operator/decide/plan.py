"""From what is observed to what to do. Pure: no clock, no I/O.

A pass takes several rounds: ``store_actions`` plans from the log as it stands, ``execute`` carries it out, and the next
round plans again from the log as it then stands, until nothing is left. The objects in Kubernetes follow at the end,
see ``mirrors``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping

from checkpoint_operator.decide import appends, finalizer
from checkpoint_operator.decide.early_saves import requested_saves
from checkpoint_operator.decide.gang import lost
from checkpoint_operator.decide.warm_starts import judge_warm_start
from checkpoint_operator.model.actions import (
    Adopt,
    ChooseWarmStart,
    Claim,
    CollectLast,
    CollectOrphans,
    Compact,
    Configure,
    LogAction,
    NoticeEviction,
    PublishPointer,
    Purge,
    RecordCheck,
    Reinstate,
    ReleaseQuarantine,
    RequestRollback,
    RequestSave,
    Retire,
    SetDisposition,
    StoreAction,
    SurveyPrefix,
    Verify,
)
from checkpoint_operator.model.observed import Observed
from checkpoint_sidecar.core import orphans
from checkpoint_sidecar.core.api import CheckpointSpec
from checkpoint_sidecar.core.belongings import Survey
from checkpoint_sidecar.core.best import best_snapshot
from checkpoint_sidecar.core.compaction import due
from checkpoint_sidecar.core.lineage import quarantined
from checkpoint_sidecar.core.pointers import published_steps
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.core.purging import next_purge_at, purge_due
from checkpoint_sidecar.core.requests import readable, unverified
from checkpoint_sidecar.core.retention import RetentionVerdict
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

# Per round, so that one Checkpoint cannot keep the others waiting.
MAX_VERIFICATIONS = 4
MAX_RETIREMENTS = 16
MAX_COMPACTIONS = 4
MAX_POINTERS = 16

UNKNOWN = "?"  # what a stock pointer shows that another process wrote


def store_actions(observed: Observed) -> tuple[StoreAction, ...]:
    """Plan what to do to the run's log and data next; empty when nothing is left or the run must not be touched."""
    run, now, spec, policy = observed.run, observed.now, observed.checkpoint.spec, observed.policy
    if finalizer.ending(observed):
        return finalizer.actions(observed)
    if observed.fault or observed.cluster.rival or run is None or now is None or spec is None or policy is None:
        return ()
    if run.unknown_critical:
        return ()
    if observed.checkpoint.deleted_at is not None and not observed.ours:
        return ()  # a Checkpoint that is being deleted claims nothing
    for step in (_ownership, _configuration):
        planned = _due(step(observed, spec, policy), run, observed, now)
        if planned:
            return planned
    if not observed.ours:
        return ()
    if observed.memory.survey_due:
        return (SurveyPrefix(),)
    findings = observed.read_back.findings if observed.read_back else ()
    wanted = (*_evictions(observed, run), *_requests(spec, run, observed), *map(RecordCheck, findings))
    requests = _due(wanted, run, observed, now)
    retention = () if spec.suspend else (*_retention(run, observed), *_deletions(run, observed, now))
    return (
        *requests,
        *_verifications(run, observed),
        *_pointers(run, observed),
        *retention,
        *_compactions(run, observed),
    )


def next_pass(observed: Observed) -> float | None:
    """Seconds until the passing of time alone makes something due, or None."""
    run, now = observed.run, observed.now
    if finalizer.ending(observed):
        return finalizer.next_pass(observed)
    if run is None or now is None or not observed.ours:
        return None
    moments = [
        _collection_due_at(run, observed),
        _last_collection_due_at(run, observed),
        next_purge_at(run, now=now),
    ]
    waits = [(moment - now).total_seconds() for moment in moments if moment is not None]
    return min((wait for wait in waits if wait > 0), default=None)


def silence(observed: Observed) -> float:
    """Return the seconds since training last wrote a commit or a start to the log; 0 if it never did: it may soon."""
    run, now = observed.run, observed.now
    if run is None or now is None or run.attempt is None:
        return 0.0
    heard = max([run.attempt.started_at, *(snapshot.committed_at for snapshot in run.snapshots.values())])
    return max(0.0, (now - heard).total_seconds())


def to_read_back(observed: Observed) -> tuple[Snapshot, ...]:
    """Return the snapshots that stay and whose checksums were not compared yet, newest first.

    Suspects come before them, whatever was compared before: a second reading clears or quarantines them.
    """
    run, verdict = observed.run, observed.verdict
    if run is None or verdict is None or not observed.ours:
        return ()
    kept = (s for s in run.snapshots.values() if s.live and s.id in verdict.keep and not quarantined(run, s))
    unread = [s for s in kept if s.failures or not s.verified_at_least("Checksums")]
    newest_first = [s for s in reversed(unread) if s.id not in observed.memory.unverifiable]
    return tuple(sorted(newest_first, key=lambda s: s.failures == 0))


def rollback_target(spec: CheckpointSpec, run: Run) -> str | None:
    """Return the snapshot that ``spec.restore.rollback`` means, or None if there is none."""
    rollback = spec.restore.rollback
    if rollback is None:
        return None
    if rollback.to == "Snapshot":
        target = rollback.snapshot
    else:
        best = best_snapshot(run)
        target = best.id if best else None
    return target if target and readable(run, target) else None


def _due(planned: Iterable[LogAction], run: Run, observed: Observed, now: dt.datetime) -> tuple[LogAction, ...]:
    return tuple(action for action in planned if appends.entry_for(action, run, owner=observed.owner, now=now))


def _ownership(observed: Observed, spec: CheckpointSpec, __: Policy) -> tuple[LogAction, ...]:
    previous, asked = spec.storage.take_over_from, observed.memory.take_over
    request = f"{observed.checkpoint.uid}/{asked.generation or observed.checkpoint.generation}"
    return (Claim(), *((Adopt(previous, request, asked.unset_at),) if previous else ()))


def _configuration(observed: Observed, _: CheckpointSpec, policy: Policy) -> tuple[LogAction, ...]:
    return (Configure(observed.checkpoint.uid, observed.checkpoint.generation, policy),)


def _evictions(observed: Observed, run: Run) -> tuple[LogAction, ...]:
    attempt = run.attempt
    if attempt is None:
        return ()
    found = lost(attempt, observed.cluster.pods)
    return (NoticeEviction(attempt.number, *found),) if found else ()


def _requests(spec: CheckpointSpec, run: Run, observed: Observed) -> Iterator[LogAction]:
    target = rollback_target(spec, run)
    if spec.restore.rollback is not None and target is not None:
        yield RequestRollback(spec.restore.rollback.request, target)
    start = judge_warm_start(observed)
    if start is not None and start.chosen is not None:
        yield ChooseWarmStart(start.chosen)
    if spec.save.request:
        yield RequestSave(spec.save.request)
    yield from requested_saves(run, observed.cluster.pods, observed.cluster.nodes)
    for mirror in observed.cluster.mirrors:
        if not mirror.deleting and mirror.belongs_to(observed.checkpoint, run):
            yield SetDisposition(mirror.snapshot, mirror.disposition)
            if mirror.release_request:
                yield ReleaseQuarantine(mirror.snapshot, mirror.release_request)


def _verifications(run: Run, observed: Observed) -> tuple[Verify, ...]:
    newest_first = reversed(tuple(run.snapshots.values()))
    waiting = [s for s in newest_first if unverified(s) and s.id not in observed.memory.unverifiable]
    return tuple(Verify(snapshot.id) for snapshot in waiting[:MAX_VERIFICATIONS])


def shown_after(shown: Mapping[int, str], done: Iterable[PublishPointer]) -> dict[int, str]:
    """Return what the stock pointers show once these are published."""
    return {step: shows for step, shows in {**shown, **{a.step: a.snapshot for a in done}}.items() if shows}


def seeded(shown: Mapping[int, str], survey: Survey) -> dict[int, str]:
    """Return what the existing stock pointers show; those that this process did not publish may be wrong."""
    return {step: shown.get(step, UNKNOWN) for step in sorted(survey.pointers)}


def _pointers(run: Run, observed: Observed) -> tuple[PublishPointer, ...]:
    """Plan for all steps: a trainer may die between a commit and its pointer, and a rollback changes many at once."""
    wanted, shown = published_steps(run), observed.memory.pointers
    wrong = [step for step in dict.fromkeys((*wanted, *shown)) if wanted.get(step) != shown.get(step)]
    return tuple(PublishPointer(step, wanted.get(step, "")) for step in wrong[:MAX_POINTERS])


def _retention(run: Run, observed: Observed) -> tuple[StoreAction, ...]:
    verdict, terms = observed.verdict, observed.terms
    if verdict is None:
        return ()
    wanted_back = _in_state(run, verdict, SnapshotState.RETIRED, keep=True)
    unwanted = _in_state(run, verdict, SnapshotState.LIVE, keep=False)
    if run.policy.retention is None or run.policy.retention.dry_run:
        unwanted = []
    return (
        *(Reinstate(identifier, terms) for identifier in wanted_back),
        *(Retire(identifier, terms) for identifier in unwanted[:MAX_RETIREMENTS]),
    )


def _deletions(run: Run, observed: Observed, now: dt.datetime) -> tuple[StoreAction, ...]:
    if observed.memory.refusal or observed.verdict is None:
        return ()
    purges = [Purge(identifier, observed.terms) for identifier in purge_due(observed.verdict)]
    due = _collection_due_at(run, observed)
    orphaned = [CollectOrphans(run.highest_attempt)] if due is not None and due <= now else []
    return (*purges, *orphaned, *_last_leftovers(run, observed, now))


def _last_leftovers(run: Run, observed: Observed, now: dt.datetime) -> tuple[CollectLast, ...]:
    attempt = run.attempt
    due = _last_collection_due_at(run, observed)
    return (CollectLast(attempt.number, attempt.last_commit or ""),) if attempt and due and due <= now else ()


def _last_collection_due_at(run: Run, observed: Observed) -> dt.datetime | None:
    """Never while a pod may still train, whatever it reports."""
    attempt = run.attempt
    if attempt is None or observed.cluster.trains:
        return None
    if observed.memory.last_collected == (attempt.number, attempt.last_commit or ""):
        return None
    heard = observed.memory.progress.get(attempt.number)
    return orphans.last_collection_due_at(run, heard=heard.at if heard else None, ended=bool(heard and heard.ended))


def _collection_due_at(run: Run, observed: Observed) -> dt.datetime | None:
    if run.highest_attempt > observed.memory.orphans_collected:
        return orphans.collection_due_at(run)
    last = observed.memory.orphans_collected_at
    return orphans.collection_due_at(run, last=last) if last else None


def _compactions(run: Run, observed: Observed) -> tuple[Compact, ...]:
    wanted = due(run.head, observed.memory.compactions, first=run.first)
    return tuple(Compact(span) for span in wanted[:MAX_COMPACTIONS])


def _in_state(run: Run, verdict: RetentionVerdict, state: SnapshotState, *, keep: bool) -> list[str]:
    """Oldest first."""
    wanted = verdict.keep if keep else verdict.retire
    return [s.id for s in run.snapshots.values() if s.id in wanted and s.state is state]
