"""The run log: one winner per number, every entry once, and nothing reported as failed that may yet be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    FencedError,
    LogError,
    LogReplacedError,
    ObjectNotFoundError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.log import AttemptStarted, Body, RunClaimed, SaveRequested
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.log import AppendCounts, RunLog
from checkpoint_sidecar.store.base import ObjectInfo, StoredObject
from doubles.counting import CountingStore
from doubles.faulty import Fault, FaultyStore, LandsLate, fails_with, loses_the_reply, loses_the_request, passes
from doubles.memory import MemoryStore
from support.runlogs import bodies, claim, claimed, log_of_four, request, start

DENIED = AccessDeniedError("create", "an entry", "the store answered ExpiredToken")
DOWN = StoreError("read", "an entry", "no connection to the store")


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def _whatever_is_there(body: Body, _: Run) -> Body:
    return body


def test_concurrent_appenders_give_a_gapless_chain_with_each_entry_once() -> None:
    store = claimed(MemoryStore())
    barrier = threading.Barrier(8)

    def append_ten(writer: int) -> None:
        log = RunLog(store, writer=f"writer {writer}")
        barrier.wait()
        for i in range(10):
            log.append(partial(_whatever_is_there, request(f"{writer}-{i}")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append_ten, range(8)))

    written = [body.request for body in bodies(store) if isinstance(body, SaveRequested)]
    assert sorted(written) == sorted(f"{writer}-{i}" for writer in range(8) for i in range(10))


def test_threads_that_share_one_log_append_each_entry_once() -> None:
    log = RunLog(claimed(MemoryStore()), writer="test")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: log.append(lambda _: request(str(i))), range(32)))

    written = [body.request for body in bodies(log.store) if isinstance(body, SaveRequested)]
    assert sorted(written, key=int) == [str(i) for i in range(32)]


def test_after_a_lost_race_the_entry_is_computed_again_from_the_winners_state() -> None:
    store = claimed(MemoryStore())
    first, second = RunLog(store, writer="first"), RunLog(store, writer="second")
    first.refresh(), second.refresh()

    def start_after_the_other(run: Run) -> Body:
        if run.highest_attempt == 0:
            second.append(start)
        return start(run)

    entry = first.append(start_after_the_other)

    assert entry is not None
    assert entry.body == AttemptStarted(attempt=2, world_size=1)
    assert first.run.highest_attempt == 2


def test_compute_may_give_up_when_the_winner_fences_it() -> None:
    store = claimed(MemoryStore())
    old, new = RunLog(store, writer="old"), RunLog(store, writer="new")

    def commit_unless_fenced(run: Run) -> Body:
        if run.highest_attempt:
            raise FencedError("save step 1", "run", "a newer attempt has started")
        new.append(start)
        return request("stale")

    with pytest.raises(FencedError):
        old.append(commit_unless_fenced)
    assert request("stale") not in bodies(store)


def test_nothing_is_written_when_compute_has_nothing_to_write() -> None:
    log = RunLog(claimed(MemoryStore()), writer="test")

    assert log.append(lambda _: None) is None
    assert len(bodies(log.store)) == 1


@pytest.mark.parametrize(
    "puts",
    [
        pytest.param([loses_the_reply], id="the reply is lost"),
        pytest.param([loses_the_request], id="the request is lost"),
        pytest.param([loses_the_request, loses_the_request, loses_the_reply], id="requests and a reply are lost"),
        pytest.param([loses_the_reply, fails_with(DENIED)], id="access is denied once the outcome is unknown"),
        pytest.param([loses_the_request, fails_with(DOWN)], id="the store goes down once the outcome is unknown"),
    ],
)
def test_an_append_of_unknown_outcome_is_settled_and_written_once(puts: list[Fault]) -> None:
    log = RunLog(FaultyStore(claimed(MemoryStore()), puts=puts), writer="test")

    entry = log.append(start)

    assert entry is not None
    assert entry.number == 2
    assert [type(body) for body in bodies(log.store)] == [RunClaimed, AttemptStarted]


def test_a_late_landing_of_an_earlier_try_is_recognised_as_ones_own() -> None:
    late = LandsLate()

    def landing_first(put: Callable[[], Any]) -> None:
        late.land()
        put()

    log = RunLog(FaultyStore(claimed(MemoryStore()), puts=[late, landing_first]), writer="test")

    entry = log.append(start)

    assert entry is not None
    assert entry.number == 2
    assert len(bodies(log.store)) == 2


def test_a_late_landing_after_giving_up_takes_the_number_and_breaks_nothing() -> None:
    store = claimed(MemoryStore())
    late = LandsLate()
    log = RunLog(FaultyStore(store, puts=[late]), writer="operator", timeout_seconds=0)
    with pytest.raises(UnknownOutcomeError):
        log.append(lambda _: request("first"))
    late.land()

    log.append(lambda _: request("second"))

    assert bodies(store)[1:] == [request("first"), request("second")]


def test_another_writer_may_take_the_number_while_the_outcome_is_unknown() -> None:
    store = claimed(MemoryStore())
    other = RunLog(store, writer="other")

    def loses_the_request_to_a_faster_writer(put: Callable[[], Any]) -> None:
        other.append(start)
        loses_the_request(put)

    log = RunLog(FaultyStore(store, puts=[loses_the_request_to_a_faster_writer]), writer="test")

    entry = log.append(start)

    assert entry is not None
    assert isinstance(entry.body, AttemptStarted)
    assert (entry.number, entry.body.attempt) == (3, 2)


@pytest.mark.parametrize("error", [DENIED, DOWN], ids=["access is denied", "the store is down"])
def test_a_failure_before_anything_was_sent_is_raised_as_it_is(error: StoreError) -> None:
    log = RunLog(FaultyStore(claimed(MemoryStore()), puts=[fails_with(error)]), writer="test")

    with pytest.raises(type(error)) as raised:
        log.append(start)
    assert raised.value is error
    assert len(bodies(log.store)) == 1


@pytest.mark.parametrize("error", [DENIED, DOWN], ids=["access is denied", "the store is down"])
def test_a_failure_while_reading_back_is_waited_out(error: StoreError) -> None:
    # The first request looks for entry 2, the second one whether entry 1 is still there; the others read 2 back.
    store = FaultyStore(claimed(MemoryStore()))
    log = RunLog(store, writer="test")
    log.refresh()
    store.gets.extend([passes, passes, fails_with(error), fails_with(error)])

    entry = log.append(start)

    assert entry is not None
    assert entry.number == 2
    assert len(bodies(store)) == 2


def test_new_entries_are_read_once_and_kept_for_a_reader_that_asked_for_that() -> None:
    store = claimed(MemoryStore())
    counting = CountingStore(store)
    log = RunLog(counting, writer="operator", keep=3)
    log.refresh()
    writer = RunLog(store, writer="training")
    for _ in range(3):
        writer.append(start)
    counting.requests.clear()
    log.refresh()
    assert [entry.number for entry in log.entries([2, 3, 4])] == [2, 3, 4]
    assert counting.requests == {"get": 3 + 1}, "each entry, and the number after them"
    assert [entry.number for entry in log.entries([1, 4, 9])] == [1, 4], "one that is not kept is read again"
    log.forget_entries()
    counting.requests.clear()
    assert [entry.number for entry in log.entries([2, 3])] == [2, 3]
    assert counting.requests == {"get": 2}


def test_an_entry_that_the_log_has_appended_is_kept_too() -> None:
    counting = CountingStore(MemoryStore())
    log = RunLog(counting, writer="operator", keep=3)
    log.append(claim)
    counting.requests.clear()
    assert [entry.body for entry in log.entries([1])] == [claim(log.run)]
    assert not counting.requests


def test_lost_races_and_unknown_outcomes_are_counted() -> None:
    store = claimed(MemoryStore())
    late, other = RunLog(store, writer="late"), RunLog(store, writer="other")
    late.refresh()

    def overtaken(run: Run) -> Body:
        if run.head == 1:
            other.append(start)
        return start(run)

    late.append(overtaken)
    assert (late.counts, other.counts) == (AppendCounts(lost_races=1), AppendCounts())
    assert late.counts.take() == AppendCounts(lost_races=1)
    assert late.counts.take() == AppendCounts()
    lossy = RunLog(FaultyStore(store, puts=[loses_the_reply]), writer="lossy")
    lossy.append(start)
    assert lossy.counts == AppendCounts(unknown_outcomes=1)


def test_when_the_timeout_passes_the_outcome_is_reported_as_unknown_whatever_failed_last() -> None:
    store = FaultyStore(claimed(MemoryStore()), puts=[loses_the_reply, fails_with(DENIED)])
    log = RunLog(store, writer="test", timeout_seconds=0)

    with pytest.raises(UnknownOutcomeError):
        log.append(start)
    assert len(bodies(store)) == 2


def test_a_key_that_is_taken_but_cannot_be_read_is_an_unknown_outcome() -> None:
    store = FaultyStore(claimed(MemoryStore()))
    log = RunLog(store, writer="test", timeout_seconds=0)
    log.refresh()
    store.gets.extend([passes, passes, fails_with(ObjectNotFoundError("read", "entry 2", "no such object"))])

    with pytest.raises(UnknownOutcomeError, match="taken"):
        log.append(start)


def test_a_failing_refresh_leaves_the_state_and_can_be_repeated() -> None:
    store = FaultyStore(claimed(MemoryStore()))
    log = RunLog(store, writer="test")
    log.refresh()
    RunLog(store, writer="other").append(start)
    store.gets.append(fails_with(DOWN))

    with pytest.raises(StoreError):
        log.refresh()
    assert log.run.highest_attempt == 0
    assert log.refresh().highest_attempt == 1


def test_a_critical_entry_of_unknown_kind_is_read_past_but_refuses_appends() -> None:
    store = claimed(MemoryStore())
    head = RunLog(store, writer="test").refresh()
    entry = {
        "format": "1.7",
        "number": 2,
        "id": "x",
        "previous": head.head_digest,
        "time": "",
        "writer": "a later version",
        "kind": "SnapshotsRelocated",
        "critical": True,
        "body": {},
    }
    store.put(layout.log_key(2), msgspec.json.encode(entry))
    log = RunLog(store, writer="test")

    assert log.refresh().head == 2
    with pytest.raises(LogError, match="SnapshotsRelocated"):
        log.append(start)
    assert len(list(store.list(layout.LOG_FOLDER))) == 2


@pytest.mark.parametrize("number", [10**15, 10**20 - 1])
def test_an_object_far_beyond_the_end_of_the_log_is_named_and_nothing_is_looked_for_in_between(number: int) -> None:
    store = log_of_four()
    store.put(layout.log_key(number), b"of another program")

    with pytest.raises(LogError, match=str(number)):
        RunLog(store, writer="test").refresh()


def test_a_gap_refuses_reading_and_appending() -> None:
    store = log_of_four()
    store.delete([layout.log_key(3)])

    for use in (RunLog(store, writer="test").refresh, lambda: RunLog(store, writer="test").append(start)):
        with pytest.raises(LogError, match="entry 3 is missing"):
            use()
    assert store.stat(layout.log_key(3)) is None


def test_an_altered_entry_refuses_the_log() -> None:
    store = log_of_four()
    data = store.get(layout.log_key(2), max_bytes=10**6).data
    store.corrupt(layout.log_key(2), data.replace(b'"attempt":1', b'"attempt":7'))

    with pytest.raises(LogError, match="digests differ"):
        RunLog(store, writer="test").refresh()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"not json", b"x" * (300 * 1024)], ids=["empty", "no envelope", "no json", "too large"]
)
def test_an_unreadable_entry_refuses_the_log(data: bytes) -> None:
    store = log_of_four()
    store.corrupt(layout.log_key(4), data)

    with pytest.raises(LogError):
        RunLog(store, writer="test").refresh()


def test_other_objects_in_the_logs_folder_are_not_entries() -> None:
    store = log_of_four()
    store.put("_log/00000000000000000002.json.bak", b"{}")
    store.put("_log/README", b"hello")

    assert RunLog(store, writer="test").refresh().head == 4


def test_an_open_log_sees_what_others_append() -> None:
    store = claimed(MemoryStore())
    log = RunLog(store, writer="test")
    log.refresh()
    RunLog(store, writer="other").append(start)

    assert log.refresh().highest_attempt == 1


# A store that contradicts itself


def test_a_log_is_current_until_another_writer_appends() -> None:
    store = claimed(MemoryStore())
    log = RunLog(store, writer="test")
    log.refresh()
    assert log.is_current()
    RunLog(store, writer="another").append(start)
    assert not log.is_current()
    log.refresh()
    assert log.is_current()


def test_a_log_that_is_gone_is_not_current_but_an_error() -> None:
    store = claimed(MemoryStore())
    log = RunLog(store, writer="test")
    log.refresh()
    store.delete([layout.log_key(1)])
    with pytest.raises(LogReplacedError, match="entry 1 is gone"):
        log.is_current()


def test_an_entry_that_is_missing_before_listed_ones_is_an_error() -> None:
    store = claimed(MemoryStore())
    log = RunLog(store, writer="test")
    log.refresh()
    another = RunLog(store, writer="another")
    another.append(start)
    another.append(partial(_whatever_is_there, request("1")))
    store.delete([layout.log_key(2)])
    with pytest.raises(LogError):
        log.is_current()


def test_a_stale_listing_does_not_make_a_log_an_old_one() -> None:
    class Stale(FaultyStore):
        def list(self, *_: str, **__: str) -> Iterator[ObjectInfo]:
            return iter(())

    store = claimed(MemoryStore())
    log = RunLog(store, writer="test")
    log.refresh()
    log.store = Stale(store)
    assert log.is_current()


def test_a_number_that_is_taken_by_nothing_is_an_error_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint_sidecar.runs.log.UNREADABLE_SECONDS", 0.05)

    class Contradicting(MemoryStore):
        def get(self, key: str, *, max_bytes: int) -> StoredObject:
            if layout.log_number(key):
                raise ObjectNotFoundError("read", key, "the store answered 404")
            return super().get(key, max_bytes=max_bytes)

    log = RunLog(Contradicting(), writer="training waits for outcomes without a limit")
    with pytest.raises(LogError, match="has answered both that the key is taken and that no object is under it"):
        log.append(claim)
