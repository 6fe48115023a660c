"""The chain of entries: gaps and alterations are refused, and every valid log has a meaning."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.lineage import restore_plan
from checkpoint_sidecar.core.log import (
    Body,
    PurgeStarted,
    RunClaimed,
    StoredEntry,
    decode,
    encode,
)
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.replay import advance, replay
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, SnapshotState
from core.strategies import ANY_BODY, NOW, OWNERS
from support.builders import BEGINNING, History, nonce_of


def chained(bodies: list[Body]) -> list[StoredEntry]:
    entries: list[StoredEntry] = []
    for number, body in enumerate(bodies, 1):
        data = encode(
            number=number,
            entry_id=f"entry-{number}",
            previous=entries[-1].digest if entries else "",
            time=BEGINNING,
            writer="test",
            body=body,
        )
        entries.append(decode(data, number=number, stored_at=BEGINNING + dt.timedelta(minutes=number)))
    return entries


def test_a_gap_is_refused() -> None:
    entries = History().started().committed(100).entries
    with pytest.raises(LogError, match="entry 2 is missing although a later one exists"):
        replay([entries[0], entries[2]])


def test_an_altered_entry_is_refused_by_its_successor() -> None:
    entries = History().started().committed(100).entries
    others = History().configured().entries
    with pytest.raises(LogError, match="entry 3 of the run log: it does not continue entry 2"):
        replay([*others, entries[2]])


def test_an_entry_read_twice_is_refused() -> None:
    entries = History().started().entries
    with pytest.raises(LogError, match="entry 3 is missing"):
        replay([*entries, entries[1]])


def test_a_log_that_does_not_begin_with_a_claim_is_refused() -> None:
    with pytest.raises(LogError, match="it does not claim the run"):
        History(owner=None).append(PurgeStarted("x"))


def test_a_refused_entry_leaves_the_state_as_it_was() -> None:
    history = History().started().committed(100)
    before = history.run
    foreign = History().configured().configured().configured().entries[-1]
    with pytest.raises(LogError):
        advance(history.run, [foreign])
    assert history.run == before == replay(history.entries)


# Properties

LOGS = st.builds(lambda owner, bodies: chained([RunClaimed(owner), *bodies]), OWNERS, st.lists(ANY_BODY, max_size=25))


@given(LOGS, NOW)
def test_any_valid_entries_in_any_order_have_a_meaning_and_every_decision_can_be_made(
    entries: list[StoredEntry], seconds: float
) -> None:
    run = replay(entries)
    now = BEGINNING + dt.timedelta(seconds=seconds)
    assert run.head == len(entries)
    assert list(run.attempts) == list(range(1, len(run.attempts) + 1))
    verdict = judge(run, now=now)
    held = {s.id for s in run.snapshots.values() if s.state in (SnapshotState.LIVE, SnapshotState.RETIRED)}
    assert set(verdict.keep) | set(verdict.retire) == held
    assert not set(verdict.keep) & set(verdict.retire)
    assert set(purge_due(judge(run, now=now))) <= {
        s.id for s in run.snapshots.values() if s.state in (SnapshotState.RETIRED, SnapshotState.PURGING)
    }
    plan = restore_plan(run, run.pending)
    assert all(run.snapshots[candidate].live for candidate in plan.candidates)
    assert not (plan.fresh_start and run.pending is None and run.ever_committed) or (
        run.policy.restore.on_missing == "StartFresh"
    )


@given(LOGS, st.lists(st.integers(0, 26), max_size=3).map(sorted))
def test_reading_in_pieces_gives_the_same_state_as_reading_at_once(entries: list[StoredEntry], cuts: list[int]) -> None:
    run, begin = Run(), 0
    for end in [*cuts, len(entries)]:
        run, begin = advance(run, entries[begin:end]), max(begin, end)
    assert run == replay(entries)
    assert list(run.snapshots) == list(replay(entries).snapshots)


@given(LOGS)
def test_reading_on_never_changes_a_state_already_handed_out(entries: list[StoredEntry]) -> None:
    middle = len(entries) // 2
    before = replay(entries[:middle])
    snapshots, attempts = dict(before.snapshots), dict(before.attempts)
    advance(before, entries[middle:])
    assert dict(before.snapshots) == snapshots
    assert dict(before.attempts) == attempts


def test_the_tables_of_a_state_cannot_be_changed() -> None:
    history = History().started().committed(100)
    with pytest.raises(TypeError):
        history.run.snapshots["x"] = history.snapshot(100)  # type: ignore[index]


def test_the_nonces_of_the_builder_are_real_ones() -> None:
    folder = layout.SaveFolder(1, 1, nonce_of(123456))
    assert layout.parse_save_folder(folder.path) == folder
