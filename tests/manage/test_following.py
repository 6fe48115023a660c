"""An evaluator waits for snapshots: it gets each usable one once, and outlives lost connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from checkpoint_sidecar import RunNotFoundError, StoreError
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import AccessDeniedError, LogReplacedError
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore
from support.builders import OWNER, History
from support.stored import stored
from support.trainers import Trainer


class Script:
    """In place of an event: instead of waiting, the next thing happens; after the last one, it is set."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts: Iterator[Callable[[], object]] = iter(acts)
        self.ended = False
        self.waits: list[float | None] = []

    def is_set(self) -> bool:
        return self.ended

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        act = next(self.acts, None)
        if act is None:
            self.ended = True
        else:
            act()
        return self.ended


def steps(snapshots: Iterator[Snapshot]) -> list[int]:
    return [snapshot.step for snapshot in snapshots]


def test_snapshots_are_seen_once_as_they_are_committed(bucket: Store) -> None:
    trainer = Trainer(bucket).start()
    trainer.commit(100)
    script = Script(lambda: trainer.commit(200), lambda: (trainer.commit(300), trainer.commit(400)))
    assert steps(StoredRun(bucket).follow(stop=script)) == [200, 300, 400]


def test_what_was_committed_after_the_call_and_before_the_first_wait_counts() -> None:
    store = MemoryStore()
    trainer = Trainer(store).start()
    found = StoredRun(store).follow(stop=Script())
    trainer.commit(100)
    assert steps(found) == [100]


def test_an_evaluator_begins_where_it_stopped() -> None:
    store = MemoryStore()
    trainer = Trainer(store).start()
    first = trainer.commit(100)
    trainer.commit(200)
    assert steps(StoredRun(store).follow(after=first, stop=Script())) == [200]


def test_retired_and_rejected_snapshots_are_left_out() -> None:
    history = History().started()
    begun = stored(history)
    history.committed(100, 200, 300).retired(200).started().restored().committed(400, attempt=1).committed(500)
    run = StoredRun(begun)
    script = Script(lambda: stored(history, begun))
    assert steps(run.follow(stop=script)) == [100, 300, 500]


def test_a_slow_evaluator_may_skip_to_the_newest() -> None:
    store = MemoryStore()
    trainer = Trainer(store).start()
    run = StoredRun(store)
    found = run.follow(stop=Script(lambda: [trainer.commit(step) for step in (100, 200, 300)]), newest_only=True)
    assert steps(found) == [300]


def test_a_run_that_does_not_exist_yet_is_waited_for() -> None:
    store = MemoryStore()
    script = Script(lambda: None, lambda: Trainer(store).start().commit(100))
    assert steps(StoredRun(store).follow(stop=script)) == [100]


def test_waiting_ends_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("checkpoint_sidecar.manage.following.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "checkpoint_sidecar.manage.following.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    store = MemoryStore()
    Trainer(store).start()
    assert steps(StoredRun(store).follow(idle_seconds=100)) == []
    assert now[0] == pytest.approx(100)


def test_pauses_grow_to_a_limit_and_shrink_again_with_a_commit() -> None:
    store = MemoryStore()
    trainer = Trainer(store).start()
    script = Script(*[lambda: None] * 12, lambda: trainer.commit(100))
    assert steps(StoredRun(store).follow(stop=script, longest_wait=20)) == [100]
    assert script.waits[:3] == [1.0, 1.5, 2.25]
    assert (script.waits[12], script.waits[13]) == (20, 1.0)


class Failing(MemoryStore):
    """Raises an error while there is one."""

    error: StoreError | None = None

    def get(self, key: str, *, max_bytes: int) -> Any:
        if self.error:
            raise self.error
        return super().get(key, max_bytes=max_bytes)


def test_a_lost_connection_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    store = Failing()
    trainer = Trainer(store).start()

    def lose() -> None:
        trainer.commit(100)
        store.error = StoreError("read", "s3://memory/run", "the connection was lost")

    script = Script(lose, lambda: None, lambda: setattr(store, "error", None))
    assert steps(StoredRun(store).follow(stop=script)) == [100]
    assert "the connection was lost" in caplog.text


def test_a_refusal_is_raised() -> None:
    store = Failing()
    Trainer(store).start()
    refused = AccessDeniedError("read", "s3://memory/run", "the key is wrong")
    with pytest.raises(AccessDeniedError):
        list(StoredRun(store).follow(stop=Script(lambda: setattr(store, "error", refused))))


def test_a_log_that_is_replaced_is_noticed() -> None:
    store = MemoryStore()
    Trainer(store).start().commit(100)

    def replace() -> None:
        store.delete([info.key for info in store.list()])
        Trainer(store).start()

    with pytest.raises(LogReplacedError):
        list(StoredRun(store).follow(stop=Script(replace, *[lambda: None] * 5)))


def test_a_run_that_is_deleted_ends_the_wait() -> None:
    history = History().started().committed(100)
    store = stored(history)
    script = Script(lambda: stored(history.adopted(OWNER.deleted), store), lambda: None)
    with pytest.raises(RunNotFoundError, match="deleted"):
        list(StoredRun(store).follow(stop=script))
    assert store.stat(layout.log_key(1)) is not None


def test_a_thread_stops_the_wait() -> None:
    store = MemoryStore()
    Trainer(store).start()
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert steps(StoredRun(store).follow(stop=stop)) == []
