"""Which snapshots a quota retires although the policy keeps them: the oldest that no floor keeps, never more."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.core.selection import Quota, Terms
from core.strategies import NOW, stories
from support.builders import History

KEEP_ALL = RetentionPolicy(keep_last=1, keep_every_steps=1, grace_seconds=60)
BYTES = st.integers(0, 10_000)


def leaving(spare_bytes: int) -> Terms:
    return Terms(Quota(limit=0, required=0, spare_bytes=spare_bytes))


def run_of(*steps: int, retention: RetentionPolicy | None = KEEP_ALL) -> History:
    return History().configured(retention=retention).started().committed(*steps).verified(steps[-1])


def test_the_oldest_that_no_floor_keeps_go_first() -> None:
    history = run_of(100, 200, 300, 400)
    found = judge(history.run, now=history.now, terms=leaving(1999))
    assert found.spare == history.ids(300, 200, 100)
    assert found.retire == dict.fromkeys(history.ids(100, 200), ("Quota",))
    assert set(found.keep) == set(history.ids(300, 400))


def test_no_quota_takes_what_a_floor_keeps() -> None:
    history = run_of(100, 200, 300, 400).disposed(100, "Hold")
    found = judge(history.run, now=history.now, terms=leaving(0))
    assert set(found.keep) == set(history.ids(100, 400))


def test_without_a_policy_or_a_verified_snapshot_a_quota_takes_nothing() -> None:
    unverified = History().configured(retention=KEEP_ALL).started().committed(100, 200)
    for history in (run_of(100, 200, retention=None), unverified):
        found = judge(history.run, now=history.now, terms=leaving(0))
        assert (found.retire, found.spare) == ({}, ())


def test_a_limit_of_the_policy_comes_before_the_quota() -> None:
    limited = RetentionPolicy(keep_last=1, keep_every_steps=1, max_total_bytes=3000)
    history = run_of(100, 200, 300, 400, retention=limited)
    found = judge(history.run, now=history.now, terms=leaving(1000))
    assert found.spare == history.ids(300, 200)
    assert found.retire == {history.id(100): ("MaxTotalSize",), history.id(200): ("Quota",)}


def test_what_a_quota_took_is_purged_while_it_is_short_and_comes_back_when_it_is_not() -> None:
    history = run_of(100, 200).retired(100, reasons=("Quota",)).wait(minutes=2)
    assert purge_due(judge(history.run, now=history.now, terms=leaving(0))) == history.ids(100)
    assert purge_due(judge(history.run, now=history.now, terms=leaving(1000))) == ()
    assert history.id(100) in judge(history.run, now=history.now, terms=leaving(1000)).keep


@given(stories(), NOW, BYTES)
def test_a_quota_only_takes_from_what_is_spare_and_from_its_end(history: History, seconds: float, room: int) -> None:
    now = history.now + dt.timedelta(seconds=seconds)
    free, short = judge(history.run, now=now), judge(history.run, now=now, terms=leaving(room))
    assert short.spare == free.spare
    kept = [i for i in free.spare if i in short.keep]
    assert sum(history.run.snapshots[i].commit.bytes for i in kept if short.keep[i] != ("ReplacementUnverified",)) <= (
        room
    )
    lost = set(free.keep) - set(short.keep)
    # What stays only until its replacement is verified has no reason to stay once that is gone.
    replaced = {history.run.snapshots[i].commit.replaces for i in lost}
    assert lost - replaced <= set(free.spare)
    assert all(short.retire[i] == ("Quota",) for i in lost & set(free.spare))
    assert kept == list(free.spare[: len(kept)])


@given(stories(), NOW, BYTES, BYTES)
def test_more_room_keeps_no_less(history: History, seconds: float, one: int, other: int) -> None:
    now = history.now + dt.timedelta(seconds=seconds)
    short, long = (judge(history.run, now=now, terms=leaving(room)) for room in sorted([one, other]))
    assert set(short.keep) <= set(long.keep)


@given(stories(), NOW)
def test_nothing_that_a_quota_may_not_take_is_purged_for_it(history: History, seconds: float) -> None:
    now = history.now + dt.timedelta(seconds=seconds)
    spare = set(judge(history.run, now=now).spare)
    gone = set(purge_due(judge(history.run, now=now, terms=leaving(0)))) - set(purge_due(judge(history.run, now=now)))
    assert gone <= spare
    assert all(history.run.snapshots[i].state is SnapshotState.RETIRED for i in gone)
