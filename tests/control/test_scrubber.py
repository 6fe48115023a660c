"""Reading snapshots back in the background: what is read, in which order, how fast, and what becomes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from checkpoint_operator.act import scrubber as scrubber_module
from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.act.scrubber import READERS, Scrubber, _ScrubReading
from checkpoint_operator.decide import plan
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import Verify
from checkpoint_operator.model.observed import Key, ScrubFinding
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.core.lineage import quarantined
from checkpoint_sidecar.core.log import SnapshotVerified
from checkpoint_sidecar.core.pointers import published_steps
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import StoredObject
from doubles.memory import MemoryStore
from support.builders import OWNER, History
from support.observations import KEY, changed, observed
from support.trainers import Trainer

OTHER = Key("training", "other")
FAST = 1e12


class Bucket(MemoryStore):
    """Tells which folders were read; fails or takes its time when told."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self.fails = False
        self.takes_seconds = 0.0
        self.flips: list[int] = []

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        folder = key.rpartition("/")[0]
        if folder not in self.read[-1:]:
            self.read.append(folder)
        time.sleep(self.takes_seconds)
        if self.fails:
            raise StoreError("read", key, "the server is tired")
        super().read_into(key, start, buffers)
        if self.flips:
            buffers[0][0] ^= self.flips.pop()

    def damage(self, snapshot: Snapshot) -> None:
        """Another byte at the same size."""
        self.put(f"{snapshot.commit.path}/__0_0.distcp", b"\x01" + bytes(699))


@dataclass
class Woken:
    """The Checkpoints that were woken, and a way to wait for them."""

    keys: list[Key] = field(default_factory=list)

    def __call__(self, key: Key) -> None:
        self.keys.append(key)

    async def times(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.keys.count(KEY) < count:
            assert time.monotonic() < deadline, f"{KEY} was not woken {count} times"
            await asyncio.sleep(0.005)


@pytest.fixture
def store() -> Bucket:
    return Bucket()


@pytest.fixture
def trainer(store: Bucket) -> Trainer:
    return Trainer(store).start()


@pytest.fixture
def woken() -> Woken:
    return Woken()


def scrubbing(
    body: Callable[[Scrubber], Awaitable[None]], woken: Woken, *, per_second: float = FAST, rest_seconds: float = 0.0
) -> None:
    """Run ``body`` with a scrubber at work."""

    async def act() -> None:
        scrubber = Scrubber(RateLimit(per_second), wake=woken, rest_seconds=rest_seconds)
        scrubber.start()
        try:
            await body(scrubber)
        finally:
            await scrubber.stop()

    asyncio.run(act())


def test_the_first_wanted_snapshot_is_read_and_the_result_stays_until_it_is_settled(
    store: Bucket, trainer: Trainer, woken: Woken
) -> None:
    old, new = trainer.commit(100), trainer.commit(200)

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (new, old), store)
        await woken.times(1)
        assert scrubber.state(KEY).findings == (
            ScrubFinding(SnapshotVerified(new.id, "Checksums", passed=True), judged=0),
        )
        scrubber.want(KEY, (new, old), store)
        await woken.times(2)
        assert [finding.check.snapshot for finding in scrubber.state(KEY).findings] == [new.id, old.id]
        scrubber.settle(KEY, scrubber.state(KEY).findings)
        assert scrubber.state(KEY).findings == ()
        assert store.read == [new.commit.path, old.commit.path]

    scrubbing(body, woken)


def test_it_reads_no_faster_than_the_limit(store: Bucket, trainer: Trainer, woken: Woken) -> None:
    snapshot = trainer.commit(100)

    async def body(scrubber: Scrubber) -> None:
        began = time.monotonic()
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(1)
        # Of its thousand bytes and some, all but the last file are waited for.
        assert time.monotonic() - began >= 0.5

    scrubbing(body, woken, per_second=2000.0)


def test_what_is_not_wanted_any_more_is_not_read_to_its_end(store: Bucket, trainer: Trainer, woken: Woken) -> None:
    old, new = trainer.commit(100), trainer.commit(200)

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (old,), store)
        await asyncio.sleep(0.05)
        scrubber.want(KEY, (new,), store)
        await woken.times(1)
        assert scrubber.state(KEY).findings == ()
        assert store.read == [old.commit.path]

    scrubbing(body, woken, per_second=10.0)


def test_a_newer_snapshot_does_not_interrupt_what_is_being_read(store: Bucket, trainer: Trainer, woken: Woken) -> None:
    old = trainer.commit(100)

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (old,), store)
        await asyncio.sleep(0.05)
        scrubber.want(KEY, (trainer.commit(200), old), store)
        await woken.times(1)
        assert [finding.check.snapshot for finding in scrubber.state(KEY).findings] == [old.id]

    scrubbing(body, woken, per_second=5000.0)


def test_a_large_snapshot_does_not_keep_other_checkpoints_waiting(
    store: Bucket, trainer: Trainer, woken: Woken
) -> None:
    snapshot = trainer.commit(100)
    slow = Bucket()
    large = Trainer(slow).start().commit(100)
    slow.takes_seconds = 0.3

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(OTHER, (large,), slow)
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(1)
        assert woken.keys == [KEY]

    scrubbing(body, woken)


def test_a_failing_store_is_no_evidence_and_is_left_alone_for_a_while(
    store: Bucket, trainer: Trainer, woken: Woken
) -> None:
    snapshot = trainer.commit(100)
    store.fails = True

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(1)
        assert scrubber.state(KEY).findings == ()
        store.read.clear()
        scrubber.want(KEY, (snapshot,), store)
        await asyncio.sleep(0.05)
        assert store.read == []

    scrubbing(body, woken)


def test_damage_is_looked_at_again_after_a_rest(store: Bucket, trainer: Trainer, woken: Woken) -> None:
    snapshot = trainer.commit(100)
    store.damage(snapshot)

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(1)
        (finding,) = scrubber.state(KEY).findings
        assert (finding.check.passed, finding.check.evidence) == (False, "ChecksumMismatch")
        scrubber.settle(KEY, (finding,))
        store.read.clear()
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(2)
        assert store.read == [], "it woke its Checkpoint when the rest was over, and read nothing before"
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(3)
        assert store.read == [snapshot.commit.path]

    scrubbing(body, woken, rest_seconds=0.3)


def test_a_bit_that_flips_on_the_way_is_no_damage(store: Bucket, trainer: Trainer, woken: Woken) -> None:
    snapshot = trainer.commit(100)
    store.flips = [1]

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(1)
        assert scrubber.state(KEY).findings == (
            ScrubFinding(SnapshotVerified(snapshot.id, "Checksums", passed=True), judged=0),
        )

    scrubbing(body, woken)
    assert store.flips == []


def test_bytes_that_differ_in_each_read_are_held_against_the_reader(
    store: Bucket, trainer: Trainer, woken: Woken
) -> None:
    snapshot = trainer.commit(100)
    store.flips = [1, 2, 4]

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (snapshot,), store)
        await woken.times(1)
        assert scrubber.state(KEY).findings == ()

    scrubbing(body, woken)
    assert store.flips == []


def test_a_checkpoint_that_is_gone_leaves_nothing(store: Bucket, trainer: Trainer, woken: Woken) -> None:
    snapshot = trainer.commit(100)

    async def body(scrubber: Scrubber) -> None:
        scrubber.want(KEY, (snapshot,), store)
        await asyncio.sleep(0.02)
        scrubber.forget(KEY)
        await woken.times(1)
        assert scrubber.state(KEY).findings == ()

    scrubbing(body, woken, per_second=10.0)


def test_two_looks_quarantine_a_damaged_snapshot_and_the_one_before_it_is_kept(
    store: Bucket, trainer: Trainer, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = trainer.commit(100), trainer.commit(200)
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)
    session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
    session.probe()
    session.log.refresh()
    spec = {"keepLast": 1, "gracePeriod": "1h"}
    base = changed(observed(History(), retention=spec, generation=1), pointers={100: good.id, 200: bad.id})

    def act(scrubber: Scrubber) -> Run:
        seen = replace(base, run=session.log.refresh(), now=session.now(), read_back=scrubber.state(KEY))
        while planned := plan.store_actions(seen):
            assert [outcome.error for outcome in carry_out(planned, session, owner=OWNER)] == [None] * len(planned)
            seen = changed(seen, run=session.log.run, now=session.now(), pointers=published_steps(session.log.run))
        assert seen.read_back is not None
        scrubber.settle(KEY, seen.read_back.findings)
        scrubber.want(KEY, plan.to_read_back(seen), store)
        return session.log.run

    async def next_finding(scrubber: Scrubber) -> Run:
        while not scrubber.state(KEY).findings:
            await woken.times(len(woken.keys) + 1)
            if not scrubber.state(KEY).findings:
                act(scrubber)
        return act(scrubber)

    async def body(scrubber: Scrubber) -> None:
        carry_out([Verify(bad.id)], session, owner=OWNER)
        store.damage(bad)
        run = act(scrubber)
        assert [s.state.value for s in run.snapshots.values()] == ["Retired", "Live"], "the policy keeps one"
        run = await next_finding(scrubber)
        assert (run.snapshots[bad.id].failures, quarantined(run, run.snapshots[bad.id])) == (1, False)
        assert run.snapshots[good.id].live, "it is wanted back"
        run = await next_finding(scrubber)
        assert quarantined(run, run.snapshots[bad.id])
        run = await next_finding(scrubber)
        assert (run.snapshots[good.id].state.value, run.snapshots[good.id].verified) == ("Live", "Checksums")
        assert plan.to_read_back(replace(base, run=run, now=session.now())) == ()

    scrubbing(body, woken)


def test_namespaces_take_turns_however_much_one_of_them_wants_read(
    store: Bucket, trainer: Trainer, woken: Woken
) -> None:
    snapshot = trainer.commit(100)
    store.takes_seconds = 0.01

    async def body(scrubber: Scrubber) -> None:
        for number in range(20):
            scrubber.want(Key("greedy", f"run-{number}"), [snapshot], store)
        scrubber.want(KEY, [snapshot], store)
        await woken.times(1)

    scrubbing(body, woken)
    assert woken.keys.index(KEY) < 6


def test_a_store_that_drips_or_keeps_silent_gives_its_place_to_others(
    monkeypatch: pytest.MonkeyPatch, trainer: Trainer, woken: Woken, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scrubber_module, "STUCK_SECONDS", 0.2)
    snapshot = trainer.commit(100)
    released: list[Key] = []
    silence = threading.Event()

    class Silent(MemoryStore):
        def get(self, key: str, *, max_bytes: int) -> StoredObject:  # noqa: ARG002
            silence.wait(30)
            raise StoreError("read", key, "it kept silent")

    async def body(scrubber: Scrubber) -> None:
        for number in range(READERS):
            key = Key("hostile", f"run-{number}")
            scrubber.want(key, [snapshot], Silent(), release=partial(released.append, key))
        scrubber.want(KEY, [snapshot], trainer.store)
        await woken.times(1)
        assert scrubber.state(KEY).findings

    scrubbing(body, woken)
    silence.set()
    assert len(released) == READERS
    assert "a request has not returned" in caplog.text


def test_reading_slower_than_the_least_rate_ends_and_waiting_for_the_rate_limit_is_not_slow() -> None:
    reading = _ScrubReading("100-1-abcdefgh", time.monotonic())
    reading.wait_for(1000, RateLimit(FAST))
    reading.moved_at -= 30
    reading.wait_for(1000, RateLimit(FAST))
    reading.moved_at -= 31
    with pytest.raises(Exception, match="2000 bytes in 61 s"):
        reading.wait_for(1000, RateLimit(FAST))
