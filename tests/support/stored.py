"""A told history as a log in a store."""

from __future__ import annotations

import datetime as dt

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import StoredEntry, Unknown, encode
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore
from support.builders import History


def stored(history: History, store: Store | None = None) -> Store:
    """Write every entry of a history into a store, and return it; by default in memory, with the history's times."""
    times = iter([entry.stored_at for entry in history.entries])
    store = store or MemoryStore(clock=lambda: next(times, history.now))
    for entry in history.entries:
        put_entry(entry, store)
    return store


def put_entry(entry: StoredEntry, store: Store) -> None:
    """Write one entry as its writer did."""
    assert not isinstance(entry.body, Unknown)
    data = encode(
        number=entry.number,
        entry_id=entry.id,
        previous=entry.previous,
        time=dt.datetime.fromisoformat(entry.time),
        writer=entry.writer,
        body=entry.body,
    )
    store.put(layout.log_key(entry.number), data)
