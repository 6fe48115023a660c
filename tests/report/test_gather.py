"""A report reads everything that the log holds, with or without compactions, and after a deletion the new run only."""

from __future__ import annotations

import datetime as dt

import pytest

from checkpoint_cli.report.gather import gather
from checkpoint_sidecar.core import heartbeat, layout
from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.heartbeat import Heartbeat
from checkpoint_sidecar.core.replay import replay
from doubles.memory import MemoryStore
from support.longlogs import compact, write_log

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("compacted", [False, True])
def test_all_entries_are_read_with_and_without_compactions(compacted: bool) -> None:
    store = MemoryStore()
    write_log(store, 2500)
    if compacted:
        assert compact(store) > 0
    facts = gather(store, now=NOW)
    assert [entry.number for entry in facts.entries] == [*range(1, 2501)]
    assert replay(facts.entries) == facts.run
    assert (facts.url, facts.now, facts.heartbeat) == (store.url, NOW, None)


def test_a_damaged_compaction_is_read_around() -> None:
    store = MemoryStore()
    write_log(store, 500)
    compact(store)
    (damaged, *_) = [info.key for info in store.list(layout.COMPACTION_FOLDER)]
    store.put(damaged, b"nothing of the kind")
    assert len(gather(store).entries) == 500


def test_the_heartbeat_is_read_with_its_time_by_the_store() -> None:
    store = MemoryStore()
    write_log(store, 10)
    store.put(layout.PROGRESS_KEY, heartbeat.encode(Heartbeat(1, 7, "")))
    facts = gather(store)
    assert facts.heartbeat == Heartbeat(1, 7, "")
    assert facts.heartbeat_at is not None


def test_a_log_with_a_gap_has_no_report() -> None:
    store = MemoryStore()
    write_log(store, 10)
    store.delete([layout.log_key(5)])
    with pytest.raises(LogError):
        gather(store)
