"""Small run logs in a store, and entries to append to them."""

from __future__ import annotations

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import AttemptStarted, Body, Owner, RunClaimed, SaveRequested, decode
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore

OWNER = Owner("cluster", "team", "llama")


def claim(_: Run) -> Body:
    return RunClaimed(OWNER)


def start(run: Run) -> Body:
    return AttemptStarted(attempt=run.highest_attempt + 1, world_size=1)


def request(identifier: str) -> SaveRequested:
    return SaveRequested(request=identifier, attempt=1)


def claimed(store: Store) -> Store:
    RunLog(store, writer="test").append(claim)
    return store


def bodies(store: Store) -> list[object]:
    infos = list(store.list(layout.LOG_FOLDER))
    entries = [
        decode(store.get(info.key, max_bytes=10**6).data, number=number, stored_at=info.modified)
        for number, info in enumerate(infos, start=1)
    ]
    replay(entries)
    return [entry.body for entry in entries]


def log_of_four() -> MemoryStore:
    store = MemoryStore()
    claimed(store)
    log = RunLog(store, writer="test")
    for _ in range(3):
        log.append(start)
    return store
