"""Compactions in a store: long logs open with few requests, and a compaction that is wrong changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from checkpoint_sidecar.attempt import session
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core import compaction, layout
from checkpoint_sidecar.core.compaction import EntryRange, RawEntry, unpack
from checkpoint_sidecar.core.errors import LogError, LogMissingError, ObjectExistsError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.core.log import AttemptStarted, RunAdopted, RunClaimed
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.compactions import list_compactions
from checkpoint_sidecar.runs.entries import get_entries
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.opening import Driver, open_store
from doubles.counting import CountingStore
from doubles.faulty import FaultyStore, LandsLate, fails_with, loses_the_reply
from doubles.faulty_server import Fault
from doubles.memory import MemoryStore
from support.builders import OWNER, History
from support.longlogs import compact, long_log, write_log
from support.s3servers import Route, Server
from support.stored import stored

LENGTH = 115
"""With the spans below: compacted up to 112, by one object of 110 entries and one of 2. Shorter ones hold the same."""


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SPANS", (10, 100, 1000))


@pytest.fixture
def store() -> MemoryStore:
    """A log of 115 entries, with all compactions that are due."""
    store = MemoryStore()
    write_log(store, LENGTH)
    assert compact(store) == 11 + 1 + 2
    return store


@pytest.fixture
def staying(store: MemoryStore) -> MemoryStore:
    """The same with only the compactions that stay, as earlier versions wrote them: 100 entries, and 10."""
    store.delete([EntryRange(1, 110).key, EntryRange(111, 112).key])
    return store


def opened(store: MemoryStore) -> tuple[Run, CountingStore]:
    counting = CountingStore(store)
    return RunLog(counting, writer="test").refresh(), counting


def plain(store: MemoryStore) -> Run:
    """What the log says without any compaction."""
    return replay(entry.decode() for entry in get_entries(store, range(1, LENGTH + 1)))


def contents(store: MemoryStore, span: EntryRange) -> list[RawEntry]:
    return list(unpack(store.get(span.key, max_bytes=10**8).data, span))


def forge(store: MemoryStore, span: EntryRange, change: Callable[[list[RawEntry]], list[RawEntry]]) -> None:
    data = compaction.encode(change(contents(store, span)))
    assert data is not None
    store.corrupt(span.key, data)


def rechained(entries: list[RawEntry], number: int) -> list[RawEntry]:
    """The same entries with one of them altered, and all digests after it made to fit."""
    forged, previous = [], ""
    for entry in entries:
        fields = msgspec.json.decode(entry.data)
        if entry.number >= number:
            fields["writer"], fields["previous"] = "another writer", previous
        data = msgspec.json.encode(fields)
        previous = hashlib.sha256(data).hexdigest()
        forged.append(dataclasses.replace(entry, data=data))
    return forged


def test_a_compacted_log_says_what_its_entries_say_with_the_stores_times(store: MemoryStore) -> None:
    run, _ = opened(store)

    assert run == plain(store)
    assert run.head == LENGTH


def test_opening_costs_two_listings_and_a_handful_of_reads(store: MemoryStore) -> None:
    _, counting = opened(store)

    # Two compactions, the entry they end in, the three after it, and the look for a next one.
    assert counting.requests == {"list": 2, "get": 2 + 1 + 3 + 1}


def test_a_hundred_times_longer_log_opens_with_as_many_listings_and_few_more_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    store = MemoryStore()
    write_log(store, 11_207)
    compact(store)

    run, counting = opened(store)

    assert run.head == 11_207
    assert counting.requests == {"list": 2, "get": 2 + 1 + 3 + 1}


def test_a_log_that_is_compacted_as_it_grows_never_takes_more_than_ten_requests_to_open() -> None:
    """10,000 snapshots make 20,300 entries: one compaction that stays, with these spans 1,000 entries."""
    store = MemoryStore()
    write_log(store, 1_190)
    compact(store)
    most: Counter[str] = Counter()
    for entry in itertools.islice(long_log(1_203), 1_190, None):
        store.put(layout.log_key(entry.number), entry.data)
        compact(store)
        run, counting = opened(store)
        assert run.head == entry.number
        most |= counting.requests

    assert most == {"list": 2, "get": 1 + 2 + 1 + 3 + 1}
    growing = [span for span in list_compactions(store) if not span.stays]
    assert len(growing) <= 4, "those that longer ones replaced are deleted"


def test_a_log_without_compactions_opens_as_before() -> None:
    store = MemoryStore()
    write_log(store, 7)

    _, counting = opened(store)

    assert counting.requests == {"list": 2, "get": 7 + 1}


def test_entries_of_kinds_that_this_version_does_not_know_are_kept_to_the_byte(store: MemoryStore) -> None:
    head = plain(store)
    odd = {
        "critical": True,
        "kind": "SnapshotsRelocated",
        "number": LENGTH + 1,
        "id": "x",
        "previous": head.head_digest,
        "time": "",
        "writer": "a later version",
        "format": "1.7",
        "body": {"to": ["\u2603", None]},
    }
    data = msgspec.json.format(msgspec.json.encode(odd), indent=3)
    store.put(layout.log_key(LENGTH + 1), data)
    previous = hashlib.sha256(data).hexdigest()
    for entry in long_log(LENGTH + 5):
        if entry.number > LENGTH + 1:
            fields = msgspec.json.decode(entry.data) | {"previous": previous}
            altered = msgspec.json.encode(fields)
            previous = hashlib.sha256(altered).hexdigest()
            store.put(layout.log_key(entry.number), altered)
    compact(store)

    assert contents(store, EntryRange(111, 120))[LENGTH - 110].data == data
    run, _ = opened(store)
    assert (run.head, run.unknown_critical) == (LENGTH + 5, "SnapshotsRelocated")


def test_a_writer_that_opened_from_compactions_continues_the_chain(store: MemoryStore) -> None:
    log = RunLog(store, writer="test")
    log.append(lambda run: AttemptStarted(attempt=run.highest_attempt + 1, world_size=1))

    assert RunLog(store, writer="other").refresh() == log.run
    assert log.run.head == LENGTH + 1


def test_two_readers_of_which_one_is_older_than_the_compactions_agree() -> None:
    store = MemoryStore()
    write_log(store, 50)
    early = RunLog(store, writer="early")
    early.refresh()
    write_log(store, LENGTH)
    compact(store)

    late, _ = opened(store)

    assert early.refresh().snapshots.keys() == late.snapshots.keys()
    assert early.run.head_digest == late.head_digest


@pytest.mark.store
@pytest.mark.parametrize("driver", ["fsspec", "native"])
def test_a_log_on_a_real_s3_server_is_compacted_and_opened_from_there(driver: Driver, seaweed: Server) -> None:
    remote = open_store(seaweed.settings(), driver=driver)
    write_log(remote, 25)
    expected = RunLog(remote, writer="test").refresh()

    assert compact(remote) == 2 + 2
    counting = CountingStore(remote)
    assert RunLog(counting, writer="test").refresh() == expected
    assert counting.requests == {"list": 2, "get": 2 + 1 + 1 + 1}


@pytest.mark.store
def test_a_listing_that_begins_late_costs_no_pages_of_earlier_keys(route: Route, folder: str) -> None:
    if route.server.name != "moto":
        pytest.skip("the server would refuse a request that was changed on the way")
    keys = [f"{folder}{layout.log_key(number)}" for number in range(91, 113)]
    for key in keys:
        route.patient.put(key, b"entry")
    route.proxy.faults.append(Fault("GET", "list-type", "answer in small pages", times=100))

    found = route.patient.list(f"{folder}{layout.LOG_FOLDER}", after=keys[-3])

    assert [info.key for info in found] == keys[-2:]
    assert route.proxy.count("GET", "list-type") <= 2


# What is wrong with a compaction costs requests and nothing else

BIG = EntryRange(1, 100)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda store: store.corrupt(BIG.key, b"rot"), id="rot"),
        pytest.param(lambda store: store.corrupt(BIG.key, b"x" * (65 * 1024 * 1024)), id="too large"),
        pytest.param(
            lambda store: store.corrupt(BIG.key, store.get(EntryRange(1, 10).key, max_bytes=10**6).data), id="other"
        ),
        pytest.param(lambda store: forge(store, BIG, lambda e: [e[0], *e[2:3], *e[2:]]), id="an entry twice"),
        pytest.param(lambda store: forge(store, BIG, lambda e: [*e[:50], e[0], *e[51:]]), id="an entry of elsewhere"),
    ],
)
def test_a_damaged_compaction_is_ignored_loudly_and_smaller_ones_serve(
    damage: Callable[[MemoryStore], None], staying: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    damage(staying)

    run, counting = opened(staying)

    assert run == plain(staying)
    assert BIG.key in caplog.text
    # All eleven small ones, the big one in vain, the entry they end in, the five after it, and the look for a next one.
    assert counting.requests["get"] == 11 + 1 + 1 + 5 + 1


@pytest.mark.parametrize("number", [1, 50, 100], ids=["the first", "one in the middle", "the last"])
def test_a_forged_history_with_a_chain_of_its_own_is_ignored_loudly(
    number: int, staying: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    staying.delete([EntryRange(101, 110).key])
    forge(staying, BIG, lambda entries: rechained(entries, number))

    run, _ = opened(staying)

    assert run == plain(staying)
    assert "ignoring all compactions" in caplog.text


def test_a_compaction_that_does_not_continue_the_one_before_is_ignored(
    staying: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    forge(staying, EntryRange(101, 110), lambda entries: rechained(entries, 101))

    assert opened(staying)[0] == plain(staying)
    assert EntryRange(101, 110).key in caplog.text


def test_a_damaged_compaction_that_grows_is_ignored_and_those_that_stay_serve(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.corrupt(EntryRange(1, 110).key, b"rot")

    run, counting = opened(store)

    assert run == plain(store)
    assert EntryRange(1, 110).key in caplog.text
    assert counting.requests["get"] == 1 + 2 + 1 + 1 + 3 + 1


def test_a_compaction_that_vanishes_after_it_was_listed_is_done_without(staying: MemoryStore) -> None:
    expected = plain(staying)
    listed = staying.list(layout.COMPACTION_FOLDER)
    staying.delete([BIG.key])
    faulty = FaultyStore(staying)
    faulty.list = lambda prefix="", *, after="": (  # type: ignore[method-assign]
        listed if prefix == layout.COMPACTION_FOLDER else staying.list(prefix, after=after)
    )

    assert RunLog(faulty, writer="test").refresh() == expected


def test_a_failing_store_is_not_taken_for_a_damaged_compaction(store: MemoryStore) -> None:
    down = StoreError("read", "a compaction", "no connection to the store")
    log = RunLog(FaultyStore(store, gets=[fails_with(down)]), writer="test")

    with pytest.raises(StoreError):
        log.refresh()
    assert log.refresh().head == LENGTH


def test_a_log_whose_entries_are_lost_is_refused_although_compactions_still_hold_them(store: MemoryStore) -> None:
    """A lifecycle rule deletes what is old. A writer that took such a log for a short one would write numbers again."""
    store.delete([layout.log_key(number) for number in range(1, LENGTH + 1)])

    log = RunLog(store, writer="test")
    with pytest.raises(LogMissingError, match="only compactions are left"):
        log.append(lambda run: AttemptStarted(attempt=run.highest_attempt + 1, world_size=1))
    assert not list(store.list(layout.LOG_FOLDER))
    store.put(layout.log_key(LENGTH + 1), b"{}")
    with pytest.raises(LogError, match="it is missing although a compaction holds it"):
        log.refresh()


def test_a_compaction_that_another_operator_wrote_during_the_deletion_says_nothing_about_the_next_run(
    store: MemoryStore,
) -> None:
    log = RunLog(store, writer="operator")
    log.append(lambda _: RunAdopted(OWNER.deleted, OWNER))
    tombstone = log.run.head
    store.delete([layout.log_key(number) for number in range(1, tombstone)])

    assert RunLog(store, writer="test").refresh().erased
    RunLog(store, writer="trainer").append(lambda _: RunClaimed(OWNER))
    run = RunLog(store, writer="test").refresh()
    assert (run.first, run.head, run.owner) == (tombstone + 1, tombstone + 1, OWNER)


def test_a_gap_after_the_compactions_is_refused(store: MemoryStore) -> None:
    store.delete([layout.log_key(114)])

    with pytest.raises(LogError, match="entry 114 is missing"):
        opened(store)


# Writing


def test_of_two_writers_the_slower_one_finds_nothing_to_do() -> None:
    store = MemoryStore()
    write_log(store, 10)
    first, second = RunLog(store, writer="first"), RunLog(store, writer="second")
    first.refresh(), second.refresh()

    first.compact(EntryRange(1, 10))
    written = store.get(EntryRange(1, 10).key, max_bytes=10**6)
    second.compact(EntryRange(1, 10))

    assert store.get(EntryRange(1, 10).key, max_bytes=10**6) == written
    assert first.compactions == second.compactions == {EntryRange(1, 10)}


def test_a_compaction_whose_reply_is_lost_is_found_by_the_next_try() -> None:
    store = MemoryStore()
    write_log(store, 10)
    log = RunLog(FaultyStore(store, puts=[loses_the_reply]), writer="test")
    log.refresh()

    with pytest.raises(UnknownOutcomeError):
        log.compact(EntryRange(1, 10))
    assert log.compactions == frozenset()
    log.compact(EntryRange(1, 10))
    assert log.compactions == {EntryRange(1, 10)}


def test_a_compaction_that_lands_late_replaces_nothing() -> None:
    store, late = MemoryStore(), LandsLate()
    write_log(store, 10)
    log = RunLog(FaultyStore(store, puts=[late]), writer="test")
    with pytest.raises(UnknownOutcomeError):
        log.compact(EntryRange(1, 10))
    log.compact(EntryRange(1, 10))

    with pytest.raises(ObjectExistsError):
        late.land()


def test_a_compaction_whose_longer_one_the_store_lost_is_kept() -> None:
    store = MemoryStore()
    write_log(store, 22)
    log = RunLog(store, writer="test")
    log.refresh()
    log.compact(EntryRange(1, 10))
    log.compact(EntryRange(11, 14))
    log.compact(EntryRange(11, 18))
    store.delete([EntryRange(11, 18).key])

    log.compact(EntryRange(21, 22))

    assert list_compactions(store) == {EntryRange(1, 10), EntryRange(11, 14), EntryRange(21, 22)}
    log.compact(EntryRange(11, 18))
    log.compact(EntryRange(11, 20))
    assert list_compactions(store) == {EntryRange(1, 10), EntryRange(11, 18), EntryRange(11, 20), EntryRange(21, 22)}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda store: store.corrupt(EntryRange(31, 40).key, b"rot"), id="rot"),
        pytest.param(
            lambda store: forge(store, EntryRange(91, 100), lambda e: rechained(e, 100)), id="a forged last entry"
        ),
    ],
)
def test_a_merger_with_a_damaged_part_is_made_from_the_log_itself(
    damage: Callable[[MemoryStore], None], store: MemoryStore
) -> None:
    before = store.get(BIG.key, max_bytes=10**6).data
    store.delete([BIG.key])
    damage(store)

    RunLog(store, writer="test").compact(BIG)

    assert store.get(BIG.key, max_bytes=10**6).data == before


def test_a_broken_log_is_not_compacted() -> None:
    store = MemoryStore()
    write_log(store, 10)
    data = store.get(layout.log_key(5), max_bytes=10**6).data
    store.corrupt(layout.log_key(5), data.replace(b"library", b"another"))

    with pytest.raises(LogError, match="entry 6"):
        RunLog(store, writer="test").compact(EntryRange(1, 10))
    assert not list(store.list(layout.COMPACTION_FOLDER))


def test_what_would_be_too_large_is_left_in_smaller_compactions_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction, "MAX_COMPACTION_BYTES", 20_000)
    store = MemoryStore()
    write_log(store, LENGTH)

    assert compact(store) == 11 + 1 + 2
    assert store.stat(BIG.key) is None
    assert store.stat(EntryRange(1, 110).key) is None
    assert opened(store)[0] == plain(store)


# Training


@pytest.mark.parametrize("managed", [False, True])
def test_training_compacts_the_log_of_a_run_that_no_operator_manages(
    managed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "POLL_SECONDS", 0.01)
    history = History()
    if managed:
        history.configured()
    store = CountingStore(stored(history.started().committed(*range(1, 12))))
    running = AttemptSession(store, OWNER, Defaults())
    running.start(world_size=1, pods=(), timeout_seconds=1)
    deadline = time.monotonic() + 20
    polled = store.requests["get"] + 20
    try:
        while not (list_compactions(store) or (managed and store.requests["get"] > polled)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        running.stop(timeout_seconds=5)
    assert (EntryRange(1, 10) in list_compactions(store)) is not managed
    assert running.log.refresh() == RunLog(store, writer="test").refresh()
