"""Retention without an operator: plan what the policy retires and deletes, then do it in the operator's order."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from checkpoint_sidecar.core import layout, purging, sharing
from checkpoint_sidecar.core.errors import ForeignObjectError
from checkpoint_sidecar.core.log import PurgeStarted, SnapshotPurged
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.selection import Terms
from checkpoint_sidecar.core.shared_files import names_in
from checkpoint_sidecar.engine.pointer import repair
from checkpoint_sidecar.engine.removal import delete_data
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
        purge: Snapshots whose data may be deleted now, oldest first: retired ones, and purged ones that left files
            which no other snapshot shares any more.
        waits: Other retired snapshots that the policy does not want, with the end of their grace period.
        blocked: Why snapshots are not deleted although their grace period is over, or empty.
        bytes: Size of ``purge``.
    """

    retire: Mapping[str, tuple[str, ...]]
    purge: tuple[str, ...]
    waits: Mapping[str, dt.datetime]
    reinstate: tuple[str, ...] = ()
    blocked: str = ""
    bytes: int = 0


def plan_pruning(run: Run, *, now: dt.datetime, only: Collection[str] | None = None) -> PrunePlan:
    """Return what the policy in the log retires and deletes at a moment. Pure.

    Args:
        now: The store's clock, or an estimate of it for a forecast.
        only: Ids of the snapshots to consider; None for all.
    """
    verdict = judge(run, now=now, terms=TERMS)
    policy = run.policy.retention
    if policy is None:
        return PrunePlan({}, (), {}, blocked="the run has no retention policy, without which nothing is ever retired")

    def chosen(identifier: str) -> bool:
        return only is None or identifier in only

    unwanted = [s for s in run.snapshots.values() if s.id in verdict.retire and chosen(s.id)]
    kept = [s for s in run.snapshots.values() if s.id in verdict.keep]
    purge = tuple(each for each in purging.purge_due(verdict) if chosen(each))
    ends = ((s.id, purging.purge_at(run, s)) for s in unwanted if s.id not in purge)
    blocked = ""
    if policy.dry_run:
        blocked = "the policy is a dry run"
    elif purging.waits_for_comparison(verdict):
        blocked = "no snapshot that stays was compared with its checksums yet"
    elif whole := [each for each in purging.left_whole(verdict) if chosen(each)]:
        blocked = f"{whole[0]} stays whole: {sharing.why_not_purged(run, whole[0])}. Retire some of those snapshots"
    return PrunePlan(
        retire={s.id: verdict.retire[s.id] for s in unwanted if s.live and not policy.dry_run},
        purge=purge,
        waits={identifier: end for identifier, end in ends if end is not None},
        reinstate=tuple(s.id for s in kept if s.state is SnapshotState.RETIRED and chosen(s.id)),
        blocked=blocked,
        bytes=sum(sharing.freed_bytes(run, run.snapshots[each]) for each in purge),
    )


def carry_out(
    plan: PrunePlan, log: RunLog, store: Store, *, check: Callable[[Run], None], now: Callable[[], dt.datetime]
) -> PrunePlan:
    """Delete what is planned. Returns the plan with what was deleted; see ``purge``."""
    gone, size = [], 0
    for each in plan.purge:
        frees = sharing.freed_bytes(log.run, log.run.snapshots[each])
        if purge(log, store, each, check=check, now=now()):
            gone.append(each)
            size += frees
    size += release(log, store, check=check)
    return replace(plan, purge=tuple(gone), bytes=size)


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


def release(log: RunLog, store: Store, *, check: Callable[[Run], None]) -> int:
    """Delete files that purges have left and that nothing needs any more. Returns their bytes. Raises as ``purge``."""
    total = 0
    for snapshot in sharing.releasable(log.run):

        def start(run: Run, snapshot: str = snapshot) -> PurgeStarted | None:
            check(run)
            return purging.release(run, snapshot)

        total += sharing.freed_bytes(log.run, log.run.snapshots[snapshot])
        log.append(start)
        finish_purge(log, store, snapshot, check=check)
    return total


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
    delete_data(store, found.commit, keep=names_in(found.kept))
    log.append(finish)
    return True
