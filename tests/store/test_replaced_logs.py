"""A log that is emptied, or deleted and begun anew, while a process uses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import due
from checkpoint_sidecar.core.errors import (
    LogError,
    LogReplacedError,
)
from checkpoint_sidecar.core.log import RunAdopted
from checkpoint_sidecar.runs.log import POLLS_PER_PROOF, RunLog
from checkpoint_sidecar.store.base import Buffer
from doubles.counting import CountingStore
from doubles.faulty import FaultyStore
from doubles.memory import MemoryStore
from support.runlogs import OWNER, claim, claimed, log_of_four, start


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def emptied(store: MemoryStore) -> None:
    store.delete([info.key for info in store.list()])


def deleted(store: MemoryStore) -> None:
    """As an operator leaves it: the tombstone alone."""
    log = RunLog(store, writer="operator")
    log.append(lambda _: RunAdopted(OWNER.deleted, OWNER))
    store.delete([layout.log_key(number) for number in range(1, log.run.head)])


def emptied_and_begun_anew(store: MemoryStore, entries: int) -> None:
    emptied(store)
    begun_anew(store, entries)


def deleted_and_begun_anew(store: MemoryStore) -> None:
    deleted(store)
    begun_anew(store)


def begun_anew(store: MemoryStore, entries: int = 4) -> None:
    log = RunLog(store, writer="another run")
    log.append(claim)
    for _ in range(entries - 1):
        log.append(start)


WAYS_TO_GO = [
    pytest.param(emptied, id="emptied"),
    pytest.param(partial(emptied_and_begun_anew, entries=1), id="emptied, and begun anew, shorter"),
    pytest.param(partial(emptied_and_begun_anew, entries=4), id="emptied, and begun anew, as long"),
    pytest.param(partial(emptied_and_begun_anew, entries=5), id="emptied, and begun anew, longer"),
    pytest.param(deleted_and_begun_anew, id="deleted, and the next run has begun"),
]


@pytest.mark.parametrize("goes", WAYS_TO_GO)
def test_nothing_is_appended_to_a_log_that_is_no_more(goes: Callable[[MemoryStore], object]) -> None:
    store = log_of_four()
    stale = RunLog(store, writer="stale")
    stale.refresh()
    goes(store)
    there = {info.key for info in store.list()}

    for _ in range(2):
        with pytest.raises(LogReplacedError):
            stale.append(start)
    assert {info.key for info in store.list()} == there
    assert stale.replaced is not None
    RunLog(store, writer="new").refresh()


@pytest.mark.parametrize("goes", WAYS_TO_GO)
def test_a_poll_notices_soon_that_the_log_is_no_more(goes: Callable[[MemoryStore], object]) -> None:
    store = log_of_four()
    stale = RunLog(store, writer="stale")
    stale.poll()
    goes(store)

    with pytest.raises(LogReplacedError):
        [stale.poll() for _ in range(POLLS_PER_PROOF)]


def test_looking_for_something_new_costs_little_more_than_one_request() -> None:
    store = CountingStore(log_of_four())
    log = RunLog(store, writer="test")
    log.refresh()
    store.requests.clear()

    for _ in range(2 * POLLS_PER_PROOF):
        log.poll()
    assert store.requests == {"get": 2 * POLLS_PER_PROOF + 2}


def test_an_entry_that_lands_while_the_log_is_emptied_is_refused() -> None:
    store = log_of_four()

    def emptied_meanwhile(put: Callable[[], None]) -> None:
        emptied(store)
        put()

    log = RunLog(FaultyStore(store, puts=[emptied_meanwhile]), writer="test")
    with pytest.raises(LogError, match="has no effect"):
        log.append(start)


def test_a_deletion_leaves_a_number_behind_and_the_next_run_continues_from_it() -> None:
    store = log_of_four()
    first = RunLog(store, writer="test").refresh().identity
    deleted(store)
    left = RunLog(store, writer="test").refresh()
    assert (left.head, left.erased, left.free, left.owner) == (5, True, True, OWNER.deleted)

    begun_anew(store)
    run = RunLog(store, writer="test").refresh()
    assert (run.first, run.head, run.highest_attempt, run.owner) == (6, 9, 3, OWNER)
    assert run.identity not in ("", first)
    assert not run.free


@pytest.mark.parametrize("number", [1, 3, 4], ids=["first", "in the middle", "right below the tombstone"])
def test_what_a_stale_writer_of_version_0_1_0_adds_below_a_tombstone_means_nothing(number: int) -> None:
    store = log_of_four()
    stray = store.get(layout.log_key(number), max_bytes=10**6).data
    deleted(store)
    store.put(layout.log_key(number), stray)
    run = RunLog(store, writer="test").refresh()
    assert (run.erased, run.remnants) == (True, True)
    begun_anew(store)
    run = RunLog(store, writer="test").refresh()
    assert (run.first, run.remnants) == (6, True)


def test_a_writer_that_waited_with_its_first_entry_until_another_run_came_and_went_has_not_claimed_anything() -> None:
    store = MemoryStore()

    class Slow(MemoryStore):
        """Its first conditional write takes as long as the life of a run."""

        def put_if_absent(self, key: str, data: Buffer) -> None:
            if key == layout.log_key(1) and not list(store.list()):
                claimed(store)
                for _ in range(3):
                    RunLog(store, writer="test").append(start)
                deleted(store)
            store.put_if_absent(key, data)

        def __getattribute__(self, verb: str) -> Any:
            return getattr(store, verb) if verb in ("get", "stat", "list") else super().__getattribute__(verb)

    log = RunLog(Slow(), writer="library")
    with pytest.raises(LogError, match="The new entry has no effect"):
        log.append(claim)
    assert log.replaced is not None
    run = RunLog(store, writer="test").refresh()
    assert (run.head, run.erased, run.remnants) == (5, True, True)


def test_a_log_that_lost_its_beginning_and_has_no_tombstone_is_refused() -> None:
    store = log_of_four()
    store.delete([layout.log_key(1)])
    with pytest.raises(LogError, match="entry 1 is missing"):
        RunLog(store, writer="test").refresh()


def test_the_next_run_at_a_prefix_is_compacted_and_read_like_any_other() -> None:
    store = log_of_four()
    deleted(store)
    begun_anew(store, 430)
    log = RunLog(store, writer="operator")
    run = log.refresh()
    spans = due(run.head, log.compactions, first=run.first)
    assert [(span.first, span.last) for span in spans] == [(201, 400), (401, 432)]
    log.compact(spans[0])

    counting = CountingStore(store)
    assert RunLog(counting, writer="test").refresh() == run
    assert counting.requests["get"] < 250, "those before the first compaction and after the last"
