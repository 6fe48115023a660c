"""Retention without an operator: plan what the policy retires and deletes, then do it in the operator's order."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from checkpoint_sidecar.core import layout, purging, sharing
from checkpoint_sidecar.core.errors import ForeignObjectError
from checkpoint_sidecar.core.log import Body, PurgeStarted, SnapshotPurged
from checkpoint_sidecar.core.retention import RetentionVerdict, judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.selection import Terms
from checkpoint_sidecar.core.shared_files import names_in
from checkpoint_sidecar.engine.pointer import repair
from checkpoint_sidecar.engine.removal import delete_data
from checkpoint_sidecar.runs.clock import read_store_clock
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store

TERMS = Terms(reads_back=True)
"""The terms of an operator that reads snapshots back: it deletes only after one that stays was compared."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What retention does to a run.

    Attributes:
        retire: Snapshots to retire, with the reasons. Their data stays for the grace period.
        reinstate: Retired snapshots that the policy wants back.
        purge: Snapshots whose data may be deleted now, oldest first. Files that other snapshots share stay.
        release: Snapshots purged before, of which files go that no other snapshot shares any more.
        waits: Other retired snapshots that the policy does not want, with the end of their grace period.
        blocked: Why snapshots are not deleted although their grace period is over, or empty.
        bytes: Size of the files of ``purge`` and ``release`` that go.
    """

    retire: Mapping[str, tuple[str, ...]]
    purge: tuple[str, ...]
    waits: Mapping[str, dt.datetime]
    reinstate: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    blocked: str = ""
    bytes: int = 0


def plan_pruning(run: Run, *, now: dt.datetime, only: Collection[str] | None = None) -> PrunePlan:
    """Return what the policy in the log retires and deletes at a moment. Pure.

    Args:
        now: The store's clock, or an estimate of it for a forecast.
        only: Ids of the snapshots to retire, reinstate or purge; None for all. Files that nothing needs any more go in
            any case.
    """

    def chosen(identifiers: Iterable[str]) -> tuple[str, ...]:
        return tuple(each for each in identifiers if only is None or each in only)

    verdict = judge(run, now=now, terms=TERMS)
    found, policy = run.snapshots, run.policy.retention
    dry = policy is None or policy.dry_run
    retire = {each: verdict.retire[each] for each in chosen(found) if each in verdict.retire and found[each].live}
    retire = {} if dry else retire
    back = (each for each in verdict.keep if found[each].state is SnapshotState.RETIRED)
    reinstate = chosen(back) if policy is not None else ()
    if retire or reinstate:
        run = _after(run, retire, reinstate, now)
        verdict = judge(run, now=now, terms=TERMS)
    due = chosen(purging.purge_due(verdict))
    purge = tuple(each for each in due if run.snapshots[each].state is not SnapshotState.PURGED)
    ends = ((each, purging.purge_at(run, run.snapshots[each])) for each in chosen(verdict.retire) if each not in purge)
    effect = purging.effect_of(run, purge)
    return PrunePlan(
        retire=retire,
        purge=purge,
        waits={identifier: end for identifier, end in ends if end is not None},
        reinstate=reinstate,
        release=effect.released,
        blocked=_why_blocked(verdict, chosen),
        bytes=effect.bytes,
    )


def _after(run: Run, retire: Mapping[str, tuple[str, ...]], reinstate: Iterable[str], now: dt.datetime) -> Run:
    """Return the run after the first part of a plan: without a grace period, the second part purges what it retires."""
    snapshots = dict(run.snapshots)
    for identifier, reasons in retire.items():
        found = snapshots[identifier]
        snapshots[identifier] = replace(found, state=SnapshotState.RETIRED, retired_at=now, reasons=reasons)
    for identifier in reinstate:
        snapshots[identifier] = replace(snapshots[identifier], state=SnapshotState.LIVE, retired_at=None, reasons=())
    return replace(run, snapshots=snapshots)


def _why_blocked(verdict: RetentionVerdict, chosen: Callable[[Iterable[str]], tuple[str, ...]]) -> str:
    policy = verdict.run.policy.retention
    if policy is None:
        return "the run has no retention policy, without which nothing is ever retired"
    if policy.dry_run:
        return "the policy is a dry run"
    if purging.waits_for_comparison(verdict):
        return "no snapshot that stays was compared with its checksums yet"
    if whole := chosen(purging.left_whole(verdict)):
        cause = sharing.why_not_purged(verdict.run, whole[0])
        return f"{whole[0]} stays whole: {cause}. Retire some of those snapshots"
    return ""


def prune(log: RunLog, store: Store, *, only: Collection[str] | None, check: Callable[[Run], None]) -> PrunePlan:
    """Plan, then do it; see ``StoredRun.prune``.

    Args:
        check: Raises if the run must not be changed; asked inside every append.
    """
    clock = read_store_clock(store)
    plan = plan_pruning(log.refresh(), now=clock.now(), only=only)
    steps = [*((purging.reinstate, each) for each in plan.reinstate), *((purging.retire, each) for each in plan.retire)]
    for step, snapshot in steps:

        def entry(run: Run, step: Callable[..., Body | None] = step, snapshot: str = snapshot) -> Body | None:
            check(run)
            return step(run, snapshot, now=clock.now(), terms=TERMS)

        log.append(entry)
    if steps:
        # What has no grace period may go at once: by a clock that is not behind the entries just written.
        clock = read_store_clock(store)
        again = plan_pruning(log.run, now=clock.now(), only=only)
        plan = replace(again, retire=plan.retire, reinstate=plan.reinstate)
    return carry_out(plan, log, store, check=check, now=clock.now)


def carry_out(
    plan: PrunePlan, log: RunLog, store: Store, *, check: Callable[[Run], None], now: Callable[[], dt.datetime]
) -> PrunePlan:
    """Delete what is planned, and what nothing needs any more. Returns the plan with what went; see ``purge``."""
    before = sum(each.purged_bytes for each in log.run.snapshots.values())
    gone = tuple(each for each in plan.purge if purge(log, store, each, check=check, now=now()))
    released = release(log, store, check=check)
    size = sum(each.purged_bytes for each in log.run.snapshots.values()) - before
    return replace(plan, purge=gone, release=tuple(each for each in released if each not in gone), bytes=size)


def purge(log: RunLog, store: Store, snapshot: str, *, check: Callable[[Run], None], now: dt.datetime) -> bool:
    """Delete a snapshot's data: announce it, repair the pointer, delete, and record it. Returns whether it is gone.

    Idempotent: after a kill anywhere, the next call continues.

    Args:
        check: Raises if the run must not be changed; asked inside every append.
        now: The store's clock, just read.

    Raises:
        LogError, StoreError: Something was not deleted; call again.
    """

    def start(run: Run) -> PurgeStarted | None:
        check(run)
        return purging.start_purge(run, snapshot, now=now, terms=TERMS)

    log.append(start)
    return finish_purge(log, store, snapshot, check=check)


def release(log: RunLog, store: Store, *, check: Callable[[Run], None]) -> tuple[str, ...]:
    """Delete files that purges have left and that nothing needs any more. Returns whose; raises as ``purge``."""
    found = sharing.releasable(log.run)
    for snapshot in found:

        def start(run: Run, snapshot: str = snapshot) -> PurgeStarted | None:
            check(run)
            return purging.release(run, snapshot)

        log.append(start)
        finish_purge(log, store, snapshot, check=check)
    return found


def finish_purge(log: RunLog, store: Store, snapshot: str, *, check: Callable[[Run], None]) -> bool:
    """Delete the data of a snapshot whose PurgeStarted is in the log; see ``purge``."""

    def finish(run: Run) -> SnapshotPurged | None:
        check(run)
        return purging.finish_purge(run, snapshot)

    found: Snapshot | None = log.run.snapshots.get(snapshot)
    if found is None or found.state is not SnapshotState.PURGING:
        return False
    with contextlib.suppress(ForeignObjectError):
        repair(store, log, layout.parse_save_folder(found.commit.path).step)
    # The repair read the log again: the run may have changed hands.
    check(log.run)
    delete_data(store, found.commit, keep=names_in(found.kept))
    log.append(finish)
    return True
