"""A start does not fence an attempt that still trains, and does not wait for one that is gone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from checkpoint_sidecar.attempt.heartbeat import ProgressReport
from checkpoint_sidecar.attempt.predecessor import SILENT_AFTER_SECONDS, wait_for_predecessor
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core import attempt as decisions
from checkpoint_sidecar.core.errors import AccessDeniedError, StoreError
from checkpoint_sidecar.core.heartbeat import MAX_PROGRESS_BYTES, Heartbeat, encode
from checkpoint_sidecar.core.layout import PROGRESS_KEY
from checkpoint_sidecar.core.log import EvictionNoticed, PodIdentity
from checkpoint_sidecar.runs.heartbeat import read_heartbeat
from checkpoint_sidecar.runs.log import RunLog
from doubles.faulty import FaultyStore, fails_with
from doubles.memory import MemoryStore
from support.builders import OWNER, POD

NEWCOMER = (PodIdentity("llama-1", "u-new"),)
BEGINNING = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass
class World:
    """A run whose attempt 1 has started, a clock that all share, and what happens second by second."""

    seconds: float = 0.0
    happens: Callable[[World], None] = lambda _: None
    store: MemoryStore = field(init=False)
    log: RunLog = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStore(clock=lambda: BEGINNING + dt.timedelta(seconds=self.seconds))
        self.log = RunLog(self.store, writer="test")
        self.log.append(lambda run: decisions.claim(run, OWNER, url=self.store.url))
        self.log.append(lambda run: decisions.start(run, world_size=1, pods=(POD,)))

    def heartbeat(self, *, ended: bool = False) -> None:
        self.store.put(PROGRESS_KEY, encode(Heartbeat(1, 100, f"{self.seconds}", (POD,), ended)))

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.happens(self)

    def wait(self, pods: tuple[PodIdentity, ...] = NEWCOMER, timeout: float = 120.0) -> float:
        """How long a start by ``pods`` waits."""
        began = self.seconds
        wait_for_predecessor(self.log, pods=pods, timeout_seconds=timeout, clock=lambda: self.seconds, sleep=self.sleep)
        return self.seconds - began


def test_without_a_heartbeat_no_start_waits() -> None:
    assert World().wait() == 0


HINT = encode(Heartbeat(1, 100, "0", (POD,)))


@pytest.mark.parametrize(
    "hint",
    [b"rot", b"x" * (MAX_PROGRESS_BYTES + 1), HINT.replace(b"llama", b"llam\xe1"), b'{"x":' + b"[" * 60_000],
    ids=["damaged", "too large", "a flipped bit makes invalid UTF-8", "nested without end"],
)
def test_a_hint_that_makes_no_sense_is_no_reason_to_wait(hint: bytes) -> None:
    world = World()
    world.store.put(PROGRESS_KEY, hint)
    assert world.wait() == 0


def test_a_hint_that_may_not_be_read_is_no_reason_to_wait_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    denied = fails_with(AccessDeniedError("read", PROGRESS_KEY, "its storage class forbids it"))
    store = FaultyStore(MemoryStore("s3://memory/denied"), gets=[denied, denied])
    assert [read_heartbeat(store), read_heartbeat(store)] == [None, None]
    assert [record.message for record in caplog.records] == [
        "ignoring s3://memory/denied/_progress.json until the next heartbeat replaces it: its storage class forbids it"
    ]


def test_a_store_that_fails_for_the_moment_is_no_missing_hint() -> None:
    store = FaultyStore(MemoryStore(), gets=[fails_with(StoreError("read", PROGRESS_KEY, "503"))])
    with pytest.raises(StoreError, match="503"):
        read_heartbeat(store)


def test_an_old_heartbeat_is_no_reason_to_wait() -> None:
    world = World()
    world.heartbeat()
    world.seconds += 60
    assert world.wait() == 0


def test_a_heartbeat_that_stops_is_waited_for_until_it_is_old() -> None:
    world = World()
    world.heartbeat()
    world.seconds += 5
    assert world.wait() == SILENT_AFTER_SECONDS - 5


def test_a_container_that_restarts_in_its_pod_does_not_wait() -> None:
    world = World()
    world.heartbeat()
    assert world.wait(pods=(POD,)) == 0


def test_a_running_attempt_is_waited_for_until_the_timeout_and_then_fenced(caplog: pytest.LogCaptureFixture) -> None:
    world = World(happens=lambda world: world.heartbeat() if world.seconds % 10 == 0 else None)
    world.heartbeat()
    assert world.wait(timeout=60) == 60
    assert "still training at step 100" in caplog.text


def test_a_goodbye_ends_the_wait_at_once() -> None:
    world = World(happens=lambda world: world.heartbeat(ended=world.seconds >= 4))
    world.heartbeat()
    assert world.wait() == 4


def test_an_eviction_of_the_running_attempt_ends_the_wait_at_once() -> None:
    def evict(world: World) -> None:
        world.heartbeat()
        if world.seconds == 3:
            world.log.append(lambda _: EvictionNoticed(1, POD, "drained"))

    world = World(happens=evict)
    world.heartbeat()
    assert world.wait() == 3


def test_reading_the_stores_clock_leaves_nothing_behind() -> None:
    world = World()
    world.heartbeat()
    world.wait()
    assert not [info.key for info in world.store.list("_probe/")]


# Whose heartbeat it is


class Reports:
    """The heartbeat of attempt 1, as it wakes up beside whatever has happened since."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.session = AttemptSession(world.store, OWNER, Defaults())
        self.session.attempt = 1
        self.session.log.refresh()
        self.report = ProgressReport(self.session, (POD,))

    def write(self) -> int:
        """Write a heartbeat; returns whose heartbeat is there then."""
        self.report._write()
        stored = read_heartbeat(self.world.store)
        assert stored is not None
        return stored.heartbeat.attempt


def test_a_gang_that_wakes_up_leaves_the_heartbeat_of_its_successor_alone() -> None:
    reports = Reports(world := World())
    assert reports.write() == 1
    world.log.append(lambda run: decisions.start(run, world_size=1, pods=NEWCOMER))
    world.store.put(PROGRESS_KEY, encode(Heartbeat(2, 7, "", NEWCOMER)))
    assert reports.session.fenced is None, "the process has not read the log since it was stopped"
    assert reports.write() == 2


def test_a_damaged_heartbeat_of_an_attempt_that_never_was_is_overwritten() -> None:
    reports = Reports(world := World())
    world.store.put(PROGRESS_KEY, encode(Heartbeat(99, 7, "", NEWCOMER)))
    assert reports.write() == 1
