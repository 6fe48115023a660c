"""When retired data may be deleted: grace periods through edits, snapshots that must be read back first, the pace."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.log import SnapshotRead
from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.purging import PURGES_AT_ONCE, next_purge_at, purge_at, purge_due, waits_for_comparison
from checkpoint_sidecar.core.reading import LONGEST_SECONDS
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.selection import Quota, Terms
from core.strategies import NOW, stories
from support.builders import History

HOUR = 3600.0
READING = Terms(reads_back=True)
QUOTAS = st.none() | st.builds(Quota, st.just(0), st.just(0), st.none() | st.integers(0, 9000))


def keep(last: int, grace_seconds: float, *, dry_run: bool = False) -> RetentionPolicy:
    return RetentionPolicy(keep_last=last, grace_seconds=grace_seconds, dry_run=dry_run)


def thirty(retention: RetentionPolicy | None) -> History:
    """Thirty verified snapshots under this policy; each entry of the log takes a minute."""
    history = History().configured(retention=retention).started().committed(*range(100, 3100, 100))
    return history.verified(*range(100, 3100, 100))


def first_due(history: History, *, terms: Terms = READING) -> float | None:
    """Retire what goes now, and return the seconds after the last edit when the first deletion is allowed."""
    configured = history.now
    for identifier in judge(history.run, now=history.now, terms=terms).retire:
        history.wait(minutes=-1).retired(identifier)
    for seconds in range(0, 4 * int(HOUR), 60):
        if purge_due(judge(history.run, now=configured + dt.timedelta(seconds=seconds))):
            return seconds
    return None


def test_a_purge_waits_for_announced_readers_and_for_none_of_them_longer_than_it_said() -> None:
    history = thirty(keep(1, 0))
    history.append(SnapshotRead(history.id(100), "one", HOUR)).append(SnapshotRead(history.id(100), "two", 2 * HOUR))
    announced = history.now
    history.retired(100, 200)

    def due(seconds: float) -> bool:
        return history.id(100) in purge_due(judge(history.run, now=announced + dt.timedelta(seconds=seconds)))

    assert history.id(200) in purge_due(judge(history.run, now=history.now))
    assert (due(2 * HOUR - 60), due(2 * HOUR)) == (False, True)
    history.append(SnapshotRead(history.id(100), "two", 0.0))
    assert (due(HOUR - 120), due(HOUR)) == (False, True)
    history.append(SnapshotRead(history.id(100), "three", 10.0 * LONGEST_SECONDS))
    assert due(LONGEST_SECONDS + HOUR)


EDITS: dict[str, tuple[list[RetentionPolicy | None], float | None]] = {
    "tightened, with the same grace": ([keep(30, HOUR), keep(1, HOUR)], HOUR),
    "tightened, with a grace of nothing in the same edit": ([keep(30, HOUR), keep(1, 0)], HOUR),
    "tightened in a second edit after the grace": ([keep(30, HOUR), keep(30, 0), keep(1, 0)], HOUR - 60),
    "tightened while the grace grows": ([keep(30, 600), keep(1, HOUR)], HOUR),
    "the retention was left out in between": ([keep(30, HOUR), None, keep(1, 0)], HOUR),
    "a dry run ends without a grace": ([keep(1, HOUR, dry_run=True), keep(1, 0)], HOUR),
    "the first policy": ([keep(1, 0)], 0),
    "the first policy after none": ([None, keep(1, 0)], 0),
    "loosened again": ([keep(30, HOUR), keep(1, 0), keep(30, HOUR)], None),
    "down and up and down": ([keep(30, HOUR), keep(30, 0), keep(30, 600), keep(1, 0)], HOUR - 120),
}


@pytest.mark.parametrize(("policies", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit_that_shortens_the_grace_waits_out_the_longer_one(
    policies: list[RetentionPolicy | None], expected: float | None
) -> None:
    history = thirty(policies[0])
    for policy in policies[1:]:
        history.configured(retention=policy)
    assert first_due(history, terms=Terms()) == expected


def test_what_was_retired_before_the_edit_waits_no_longer_than_it_would_have() -> None:
    history = thirty(keep(1, HOUR)).retired(100).wait(minutes=30).configured(retention=keep(1, 0))
    retired_at = history.snapshot(100).retired_at
    assert retired_at is not None
    assert purge_at(history.run, history.snapshot(100)) == retired_at + dt.timedelta(hours=1)


def test_an_edit_of_long_ago_changes_nothing() -> None:
    history = thirty(keep(30, HOUR)).configured(retention=keep(1, 0)).wait(hours=2).retired(100)
    assert purge_at(history.run, history.snapshot(100)) == history.now
    assert purge_due(judge(history.run, now=history.now)) == history.ids(100)


@given(graces=st.lists(st.sampled_from([0.0, 60.0, 600.0, HOUR]), min_size=2, max_size=5), retired=st.integers(0, 4))
def test_no_edit_lets_data_go_sooner_than_the_grace_that_was_in_force(graces: list[float], retired: int) -> None:
    history = thirty(keep(30, graces[0]))
    for number, grace in enumerate(graces[1:]):
        if number == retired:
            history.retired(100)
        history.configured(retention=keep(1, grace))
    if history.snapshot(100).retired_at is None:
        history.retired(100)
    snapshot = history.snapshot(100)
    end = purge_at(history.run, snapshot)
    assert snapshot.retired_at is not None
    assert end is not None
    waited = (end - snapshot.retired_at).total_seconds()
    assert waited >= graces[-1], "the grace in force counts at least"
    assert waited <= max(graces), "and no more than the longest there was"


# Reading back


def committed(*steps: int, grace_seconds: float = 0.0) -> History:
    """Snapshots whose sizes are right, under ``keepLast: 1``."""
    history = History().configured(retention=keep(1, grace_seconds)).started().committed(*steps)
    return history.verified(*steps)


def kept(history: History, terms: Terms = READING) -> dict[int, str]:
    keep = judge(history.run, now=history.now, terms=terms).keep
    return {history.snapshot(each).step: " ".join(reasons) for each, reasons in keep.items()}


def test_the_newest_that_was_read_back_stays_beside_a_newer_one_of_which_only_the_sizes_are_known() -> None:
    history = committed(100).verified(100, level="Checksums").committed(200).verified(200)
    assert kept(history) == {200: "Newest NewestVerified KeepLast", 100: "NewestCompared"}
    history.verified(200, level="Checksums")
    assert kept(history) == {200: "Newest NewestVerified KeepLast NewestCompared"}


def test_without_reading_back_sizes_are_the_best_there_is() -> None:
    history = committed(100).verified(100, level="Checksums").committed(200).verified(200)
    assert kept(history, Terms()) == {200: "Newest NewestVerified KeepLast"}
    history.retired(100)
    assert purge_due(judge(history.run, now=history.now)) == history.ids(100)


def test_nothing_is_deleted_before_one_that_stays_was_read_back() -> None:
    history = committed(100, 200, 300).retired(100, 200).wait(days=30)
    assert purge_due(judge(history.run, now=history.now, terms=READING)) == ()
    assert waits_for_comparison(judge(history.run, now=history.now, terms=READING)) == history.ids(100, 200)
    history.verified(300, level="Checksums")
    assert purge_due(judge(history.run, now=history.now, terms=READING)) == history.ids(100, 200)
    assert waits_for_comparison(judge(history.run, now=history.now, terms=READING)) == ()


def test_a_retired_one_comes_back_when_the_newest_proves_damaged() -> None:
    history = committed(100, 200).retired(100).wait(days=30).found_damaged(200)
    assert 100 in kept(history)
    assert purge_due(judge(history.run, now=history.now, terms=READING)) == ()


def test_what_is_being_read_stays_so_that_reading_can_finish() -> None:
    history = committed(100, 200, 300)
    reading = Terms(reads_back=True, reading=history.id(100))
    assert kept(history, reading) == {300: "Newest NewestVerified KeepLast", 100: "BeingRead"}
    history.retired(100)
    assert kept(history, reading) == {300: "Newest NewestVerified KeepLast"}, (
        "once retired it does not come back for it"
    )


# In any story


def begun(history: History) -> set[str]:
    return {s.id for s in history.run.snapshots.values() if s.state.value == "Purging"}


@given(history=stories(), seconds=NOW, terms=st.builds(Terms, QUOTAS, st.booleans()))
def test_what_waits_for_a_comparison_is_not_deleted_and_few_deletions_begin_at_once(
    history: History, seconds: float, terms: Terms
) -> None:
    now = history.now + dt.timedelta(seconds=seconds)
    due = set(purge_due(judge(history.run, now=now, terms=terms)))
    assert begun(history) <= due, "a purge that has begun continues"
    assert len(due - begun(history)) <= PURGES_AT_ONCE
    waiting = waits_for_comparison(judge(history.run, now=now, terms=terms))
    assert not due & set(waiting)
    assert not (waiting and due - begun(history)), "nothing begins while something waits"
    verdict = judge(history.run, now=now, terms=terms)
    assert not (due - begun(history)) & verdict.keep.keys()
    if terms.reads_back and due - begun(history):
        sure = [s for s in history.run.snapshots.values() if s.live and not s.failures and s.verified == "Checksums"]
        assert verdict.keep.keys() & {s.id for s in sure}, "a snapshot that was read back stays"


@given(history=stories(), seconds=NOW)
def test_time_alone_never_makes_a_deletion_due_before_the_announced_moment(history: History, seconds: float) -> None:
    now = history.now + dt.timedelta(seconds=seconds)
    told = next_purge_at(history.run, now=now)
    assert told is None or told > now
