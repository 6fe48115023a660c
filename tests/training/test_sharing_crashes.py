"""A process that dies at any request of a save that shares files: no snapshot loses a byte, and the next one shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from checkpoint_sidecar.attempt import session
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.core.orphans import orphaned
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer
from training.adapted import saving
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHARE = SavePolicy(every_steps=None, every_seconds=None, unchanged="Share", keyframe_every=64)


class GoneStore:
    """The store as a process sees it that dies at one of its requests: none after it has an effect.

    Requests of threads that only watch the run do not count.

    Attributes:
        at: Number of the request; 0 for none.
        after: Whether that request still takes effect.
        calls: How many there were.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.at = self.calls = 0
        self.after = False
        self._gone = False

    @property
    def url(self) -> str:
        return self._inner.url

    def die(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.calls = at, after, 0

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        method = getattr(self._inner, verb)

        def call(*arguments: Any, **options: Any) -> Any:
            reached = self._reached()
            if self._gone and not (reached and self.after):
                raise StoreError(verb, self.url, "this process is dead")
            result = method(*arguments, **options)
            result = list(result) if isinstance(result, Iterator) else result
            if reached:
                raise StoreError(verb, self.url, "this process is dead")
            return result

        return call

    def _reached(self) -> bool:
        watching = threading.current_thread().name in ("watch the run log", "report progress")
        with self._lock:
            self.calls += not watching
            reached = not watching and self.calls == self.at
            self._gone = self._gone or reached
            return reached


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GoneStore]]:
    made: list[GoneStore] = []

    def opened(settings: Any) -> Any:
        made.append(GoneStore(open_store(settings)))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer, "open_store", opened)
        # A dead process does not wait for an answer.
        patch.setattr(session, "RunLog", partial(RunLog, timeout_seconds=0.1))
        yield made


def attempt(storage: RunStorage) -> Any:
    # Dead processes do not say that they have ended.
    return saving(storage.url, save=SHARE, takeover_seconds=0.0)


def check(storage: RunStorage, count: int) -> None:
    """The newest snapshots are whole."""
    for snapshot in [*storage.run.snapshots.values()][-count:]:
        assert verify_snapshot(storage.store, snapshot.commit, level="Checksums") == snapshot.commit.bytes


@pytest.mark.parametrize("after", [False, True], ids=["before the request", "after the request"])
def test_a_process_that_dies_at_any_request_of_a_save_loses_at_most_that_save(
    after: bool, storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(storage) as (_, step):
        step(1)
    number, at, committed, reached = 1, 0, 0, True
    while reached:
        number, at = number + 1, at + 1
        with dying(monkeypatch) as stores, suppress(Exception), attempt(storage) as (_, step):
            (store,) = stores
            store.die(at, after=after)
            step(number)
        reached = store.calls >= at
        check(storage, 2)
        committed += any(snapshot.step == number for snapshot in storage.run.snapshots.values())
        number += 1
        # What the next process saves is shared again, whatever the dead one has left.
        with attempt(storage) as (_, step):
            step(number)
        assert storage.snapshot(number).commit.shared_bytes > 0
    assert at > 8, "every request of a save was tried"
    assert 0 < committed < at
    listed = {info.key: info.modified for info in storage.store.list("step-")}
    storage.store.delete(orphaned(storage.run, listed, now=max(listed.values()).replace(year=2099)))
    check(storage, len(storage.run.snapshots))
