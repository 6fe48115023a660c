"""The run log: one winner per number, every entry once, and nothing reported as failed that may yet be written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import due
from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    FencedError,
    LogError,
    LogReplacedError,
    ObjectNotFoundError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.log import AttemptStarted, Body, Owner, RunAdopted, RunClaimed, SaveRequested, decode
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.log import POLLS_PER_PROOF, RunLog
from checkpoint_sidecar.store.base import Buffer, Store, StoredObject
from doubles.counting import CountingStore
from doubles.faulty import Fault, FaultyStore, LandsLate, fails_with, loses_the_reply, loses_the_request, passes
from doubles.memory import MemoryStore

OWNER = Owner("cluster", "team", "llama")
DENIED = AccessDeniedError("create", "an entry", "the store answered ExpiredToken")
DOWN = StoreError("read", "an entry", "no connection to the store")


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
    assert (late.lost_races, late.unknown_outcomes, other.lost_races) == (1, 0, 0)
    lossy = RunLog(FaultyStore(store, puts=[loses_the_reply]), writer="lossy")
    lossy.append(start)
    assert (lossy.lost_races, lossy.unknown_outcomes) == (0, 1)


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


def log_of_four() -> MemoryStore:
    store = MemoryStore()
    claimed(store)
    log = RunLog(store, writer="test")
    for _ in range(3):
        log.append(start)
    return store


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


# A log that is emptied, or deleted and begun anew, under a process that goes on


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


def test_an_entry_that_lands_while_the_log_is_emptied_is_not_told_to_count() -> None:
    store = log_of_four()

    def emptied_meanwhile(put: Callable[[], None]) -> None:
        emptied(store)
        put()

    log = RunLog(FaultyStore(store, puts=[emptied_meanwhile]), writer="test")
    with pytest.raises(LogError, match="does not count"):
        log.append(start)


def test_a_deletion_leaves_a_number_behind_and_the_next_run_goes_on_counting() -> None:
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
    with pytest.raises(LogError, match="What was written does not count"):
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
    assert [(span.first, span.last) for span in spans] == [(201, 400)]
    log.compact(spans[0])

    counting = CountingStore(store)
    assert RunLog(counting, writer="test").refresh() == run
    assert counting.requests["get"] < 250, "those before the first compaction and after the last"


# A store that contradicts itself


def test_a_number_that_is_taken_by_nothing_is_an_error_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint_sidecar.runs.log.UNREADABLE_SECONDS", 0.05)

    class Contradicting(MemoryStore):
        def get(self, key: str, *, max_bytes: int) -> StoredObject:
            if layout.log_number(key):
                raise ObjectNotFoundError("read", key, "the store answered 404")
            return super().get(key, max_bytes=max_bytes)

    log = RunLog(Contradicting(), writer="training waits for outcomes for ever")
    with pytest.raises(LogError, match="says that the key is taken and answers that there is nothing under it"):
        log.append(claim)
