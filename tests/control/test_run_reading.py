"""The operator reads each entry of a log once: the fold, the status and the Events share one read."""

from __future__ import annotations

from collections import Counter

import pytest

from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.report.events import since_last_report
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import StoredEntry, Unknown
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import StoredObject
from doubles.memory import MemoryStore
from support.builders import History


class ReadCounts(MemoryStore):
    """Counts the reads of each entry that exists."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        stored = super().get(key, max_bytes=max_bytes)
        number = layout.log_number(key)
        if number is not None:
            self.reads[number] += 1
        return stored


def test_a_pass_with_new_entries_reads_each_of_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReadCounts()
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)
    training = RunLog(store, writer="library test")
    history = History().configured().started().committed(100).committed(200)
    first, *others = history.entries
    _append(training, first)
    session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
    session.probe()
    session.read_log()
    for entry in others:
        _append(training, entry)
    store.reads.clear()

    run = session.read_log()
    reported = session.log.entries(since_last_report({"logSequence": 1}, run.head))

    assert [entry.body for entry in reported] == [entry.body for entry in others]
    assert store.reads == dict.fromkeys(range(2, run.head + 1), 1)


def _append(log: RunLog, entry: StoredEntry) -> None:
    body = entry.body
    assert not isinstance(body, Unknown)
    log.append(lambda _: body)
