"""Promises of retention, for every drawn history, policy and clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.lineage import in_use, lineage, rollback_target, superseded
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from core.strategies import NOW, stories
from support.builders import History


def good(run: Run) -> list[Snapshot]:
    """Live snapshots of the lineage nothing speaks against, newest first."""
    replaced = {s.commit.replaces for s in lineage(run) if s.failures == 0}
    return [s for s in lineage(run) if s.live and s.failures == 0 and s.id not in replaced]


def with_policy(run: Run, **changes: Any) -> Run:
    assert run.policy.retention is not None
    retention = msgspec.structs.replace(run.policy.retention, **changes)
    return replace(run, policy=msgspec.structs.replace(run.policy, retention=retention))


def with_retention(run: Run, retention: RetentionPolicy) -> Run:
    return replace(run, policy=msgspec.structs.replace(run.policy, retention=retention))


def at(history: History, seconds: float) -> dt.datetime:
    return history.now + dt.timedelta(seconds=seconds)


@given(stories(), NOW)
def test_every_held_snapshot_is_either_kept_or_retired_and_has_a_reason(history: History, seconds: float) -> None:
    found = judge(history.run, now=at(history, seconds))
    held = {s.id for s in history.run.snapshots.values() if s.state in (SnapshotState.LIVE, SnapshotState.RETIRED)}
    assert {*found.keep, *found.retire} == held
    assert not {*found.keep} & {*found.retire}
    assert all([*found.keep.values(), *found.retire.values()])


@given(stories(), NOW)
def test_retention_never_empties_a_run(history: History, seconds: float) -> None:
    found = judge(history.run, now=at(history, seconds))
    assert not found.retire or any(
        history.run.snapshots[i].live and history.run.snapshots[i].proven for i in found.keep
    )


@given(stories(), NOW)
def test_the_floors_hold_under_every_policy_and_clock(history: History, seconds: float) -> None:
    run = history.run
    assert run.policy.retention is not None
    found = judge(run, now=at(history, seconds))
    newest_verified = [s.id for s in lineage(run) if s.live and s.proven][:1]
    held = [s.id for s in run.snapshots.values() if s.disposition == "Hold"]
    last = [s.id for s in good(run)[: run.policy.retention.keep_last or 1]]
    floors = {*newest_verified, *held, *last, in_use(run), rollback_target(run)}
    assert not floors & set(found.retire)
    assert not floors & set(purge_due(judge(run, now=at(history, seconds)))) - {
        s.id for s in run.snapshots.values() if s.state is SnapshotState.PURGING
    }


@given(stories(), NOW)
def test_the_verdict_depends_on_the_log_and_not_on_the_order_of_tables(history: History, seconds: float) -> None:
    run = history.run
    shuffled = replace(run, snapshots=MappingProxyType(dict(reversed([*run.snapshots.items()]))))
    one, other = judge(run, now=at(history, seconds)), judge(shuffled, now=at(history, seconds))
    assert {i: sorted(reasons) for i, reasons in one.keep.items()} == {i: sorted(r) for i, r in other.keep.items()}
    assert {i: sorted(reasons) for i, reasons in one.retire.items()} == {i: sorted(r) for i, r in other.retire.items()}


LOOSER: dict[str, Callable[[RetentionPolicy, int], tuple[RetentionPolicy, RetentionPolicy]]] = {
    "keepLast counts more": lambda policy, n: (changed(policy, keep_last=n), changed(policy, keep_last=n + 1)),
    "keepEverySteps has finer intervals": lambda policy, n: (
        changed(policy, keep_every_steps=10 * n),
        changed(policy, keep_every_steps=10),
    ),
    "keepEvery has finer intervals": lambda policy, n: (
        changed(policy, keep_every_seconds=60.0 * n),
        changed(policy, keep_every_seconds=60.0),
    ),
    "keepBest counts more": lambda policy, n: (
        changed(policy, keep_best=(KeepBest("loss", "Min", n),)),
        changed(policy, keep_best=(KeepBest("loss", "Min", n + 1),)),
    ),
    "another keepBest": lambda policy, n: (
        changed(policy, keep_best=(KeepBest("loss", "Min", n),)),
        changed(policy, keep_best=(KeepBest("loss", "Min", n), KeepBest("loss", "Max", 1))),
    ),
    "another rule": lambda policy, n: (
        changed(policy, keep_last=n, keep_every_steps=None),
        changed(policy, keep_last=n, keep_every_steps=20),
    ),
    "maxAge is greater": lambda policy, n: (
        changed(policy, keep_every_steps=100, max_age_seconds=600.0 * n),
        changed(policy, keep_every_steps=100, max_age_seconds=600.0 * (n + 1)),
    ),
    "there is no maxAge": lambda policy, n: (
        changed(policy, keep_every_steps=100, max_age_seconds=600.0 * n),
        changed(policy, keep_every_steps=100, max_age_seconds=None),
    ),
    "maxTotalSize is greater": lambda policy, n: (
        changed(policy, max_total_bytes=1000 * n),
        changed(policy, max_total_bytes=1000 * n + 500),
    ),
}


def changed(policy: RetentionPolicy, **fields: Any) -> RetentionPolicy:
    # More under one rule leaves less room for the others in a limited size: only size itself is compared under a limit.
    return msgspec.structs.replace(policy, **{"max_total_bytes": None, **fields})


@pytest.mark.parametrize("looser", LOOSER.values(), ids=LOOSER)
@given(stories(), st.floats(0, 7200), st.integers(1, 6))
def test_a_looser_policy_never_retires_more(
    looser: Callable[[RetentionPolicy, int], tuple[RetentionPolicy, RetentionPolicy]],
    history: History,
    seconds: float,
    number: int,
) -> None:
    policy = history.run.policy.retention
    assert policy is not None
    now = at(history, seconds)
    strict, loose = (judge(with_retention(history.run, each), now=now) for each in looser(policy, number))
    assert set(loose.retire) <= set(strict.retire)


@given(stories(), NOW, NOW)
def test_as_time_passes_nothing_that_was_to_go_is_wanted_again(history: History, one: float, other: float) -> None:
    """Without a limit of size, which has room for an older one when a newer one is too old to stay."""
    run = with_policy(history.run, max_total_bytes=None)
    early, late = (judge(run, now=at(history, seconds)) for seconds in sorted([one, other]))
    assert set(early.retire) <= set(late.retire)


@given(stories(), NOW)
def test_a_clock_that_jumps_and_comes_back_leaves_nothing_retired_that_was_not_to_go(
    history: History, seconds: float
) -> None:
    """Whatever was retired meanwhile comes back, as long as its grace lasts."""
    for snapshot in list(history.run.snapshots.values()):
        if snapshot.state is SnapshotState.RETIRED:
            history.reinstated(snapshot.id)
    before = judge(history.run, now=history.now)
    jumped = judge(history.run, now=at(history, seconds))
    now = history.now
    history.retired(*(i for i in jumped.retire if i not in before.retire))
    wanted_back = [i for i in judge(history.run, now=now).keep if not history.snapshot(i).live]
    for identifier in wanted_back:
        history.reinstated(identifier)
    assert judge(history.run, now=now) == before


@given(stories(), NOW, st.integers(0, 10))
def test_a_longer_grace_purges_nothing_sooner(history: History, seconds: float, hours: int) -> None:
    now = at(history, seconds)
    short, long = (with_policy(history.run, grace_seconds=3600.0 * each) for each in (hours, hours + 1))
    assert set(purge_due(judge(long, now=now))) <= set(purge_due(judge(short, now=now)))


@given(stories(), NOW, NOW)
def test_the_clock_matters_to_max_age_alone(history: History, one: float, other: float) -> None:
    run = with_policy(history.run, max_age_seconds=None)
    assert judge(run, now=at(history, one)) == judge(run, now=at(history, other))


@given(stories(), NOW)
def test_a_superseded_branch_goes_only_when_the_new_lineage_is_safe(history: History, seconds: float) -> None:
    run = history.run
    assert run.policy.retention is not None
    found = judge(run, now=at(history, seconds))
    if any("Superseded" in found.retire.get(s.id, ()) for s in superseded(run)):
        assert len(good(run)) >= (run.policy.retention.keep_last or 1)
        assert any(s.live and s.proven for s in lineage(run))


@given(stories(), NOW)
def test_a_snapshot_is_due_only_after_its_grace_period_and_while_it_is_unwanted(
    history: History, seconds: float
) -> None:
    run, now = history.run, at(history, seconds)
    assert run.policy.retention is not None
    unwanted = judge(run, now=now).retire
    for identifier in purge_due(judge(run, now=now)):
        snapshot = run.snapshots[identifier]
        if snapshot.state is not SnapshotState.PURGING:
            assert snapshot.state is SnapshotState.RETIRED
            assert snapshot.retired_at is not None
            assert now - snapshot.retired_at >= dt.timedelta(seconds=run.policy.retention.grace_seconds)
            assert identifier in unwanted


@given(stories())
def test_carrying_out_the_verdict_settles(history: History) -> None:
    """Retiring and reinstating does not go round in circles; one step may make way for the next."""
    now = history.now
    for _ in range(3):
        found = judge(history.run, now=now)
        leave = [i for i in found.retire if history.snapshot(i).live]
        return_ = [i for i in found.keep if not history.snapshot(i).live]
        history.retired(*leave)
        for identifier in return_:
            history.reinstated(identifier)
    assert not leave
    assert not return_
