"""Stores that do not let the operator delete, or write: normal states in which everything else continues."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import pytest

from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.gather.memory import REFUSED_SECONDS, Memory
from checkpoint_operator.gather.run_store import KEYS_PER_BATCH, RunStore
from checkpoint_operator.model.actions import (
    CollectOrphans,
    Configure,
    PublishPointer,
    Purge,
    Retire,
    StoreAction,
    Verify,
)
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_sidecar.core.errors import AccessDeniedError, DeletionRefusedError, StoreError
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.run import Snapshot, SnapshotState
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Buffer, ObjectInfo
from checkpoint_sidecar.store.common.calls import deleting
from checkpoint_sidecar.store.http.answers import explain_answer
from doubles.memory import MemoryStore
from support.builders import OBJECT_UID, OWNER
from support.trainers import Trainer

NO_GRACE = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0))


class Locked(MemoryStore):
    """Refuses the requests that a test names."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        super().__init__(clock=lambda: self.now)
        self.deletes: list[list[str]] = []
        self.no_delete: type[StoreError] | None = None
        self.no_write = self.no_read = False

    def delete(self, keys: Iterable[str]) -> None:
        self.deletes.append(list(keys))
        if self.no_delete is not None:
            raise self.no_delete("delete", self.url, "the store answered AccessDenied")
        super().delete(self.deletes[-1])

    def put(self, key: str, data: Buffer) -> None:
        if self.no_write:
            raise AccessDeniedError("write", key, "the store answered AccessDenied")
        super().put(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        if self.no_write:
            raise AccessDeniedError("create", key, "the store answered AccessDenied")
        super().put_if_absent(key, data)

    def stat(self, key: str) -> ObjectInfo | None:
        if self.no_read:
            raise AccessDeniedError("look up", key, "the store answered AccessDenied")
        return super().stat(key)


@pytest.fixture
def store() -> Locked:
    return Locked()


@pytest.fixture
def session(store: Locked, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)
    return RunStore(StoreSettings("s3://memory/run"), writer="operator test")


def doomed(store: Locked, session: RunStore) -> Snapshot:
    """The first of two snapshots, retired."""
    trainer = Trainer(store).start()
    first, second = trainer.commit(100), trainer.commit(200)
    session.probe()
    session.log.refresh()
    check = [Verify(first.id), Verify(second.id)]
    planned: list[StoreAction] = [Configure(OBJECT_UID, 1, NO_GRACE), *check, Retire(first.id)]
    assert [outcome.error for outcome in carry_out(planned, session, owner=OWNER)] == [None] * 4
    return first


# Deleting


def test_a_store_that_only_refuses_to_delete_passes_the_probe(store: Locked, session: RunStore) -> None:
    Trainer(store).start().commit(100)
    store.no_delete = DeletionRefusedError
    session.probe()
    assert "AccessDenied" in session.refusal
    assert session.now() >= store.now
    store.no_delete = None
    session.probe()
    assert session.refusal == ""


@pytest.mark.parametrize(
    ("status", "code", "refused"),
    [
        pytest.param(403, "AccessDenied", True, id="a missing right, or object lock on S3"),
        pytest.param(403, "", True, id="retention of a bucket on Google Cloud Storage"),
        pytest.param(400, "ObjectLocked", True, id="object lock on MinIO"),
        pytest.param(409, "BlobImmutableDueToPolicy", True, id="immutability on Azure"),
        pytest.param(409, "OperationAborted", False, id="a conflict"),
        pytest.param(503, "SlowDown", False, id="too many requests"),
        pytest.param(404, "NoSuchBucket", False, id="no bucket"),
    ],
)
def test_a_refusal_is_not_reported_as_a_failure(status: int, code: str, refused: bool) -> None:
    fault = explain_answer(status, code)
    with pytest.raises(StoreError) as raised, deleting():
        raise fault.kind("delete", "step-100/0001-aaaaaaaa/__0_0.distcp", fault.cause)
    assert isinstance(raised.value, DeletionRefusedError) is refused


def test_a_store_that_fails_to_delete_does_not_pass_the_probe(store: Locked, session: RunStore) -> None:
    store.no_delete = StoreError
    with pytest.raises(StoreError):
        session.probe()


def test_a_refused_deletion_ends_the_deletions_of_the_round_and_nothing_else(store: Locked, session: RunStore) -> None:
    first = doomed(store, session)
    store.no_delete = DeletionRefusedError
    third = Trainer(store).start().commit(300)
    session.log.refresh()
    outcomes = carry_out(
        [Purge(first.id), Purge(first.id), CollectOrphans(2), PublishPointer(300, third.id), Verify(third.id)],
        session,
        owner=OWNER,
    )
    assert [type(outcome.action) for outcome in outcomes] == [Purge, PublishPointer, Verify]
    assert [isinstance(outcome.error, DeletionRefusedError) for outcome in outcomes] == [True, False, False]
    assert session.log.run.snapshots[third.id].verified == "Sizes"


def test_a_purge_is_not_even_announced_where_nothing_can_be_deleted(store: Locked, session: RunStore) -> None:
    first = doomed(store, session)
    store.no_delete = DeletionRefusedError
    (outcome,) = carry_out([Purge(first.id)], session, owner=OWNER)
    assert outcome.refused
    assert session.log.run.snapshots[first.id].state is SnapshotState.RETIRED
    store.no_delete = None
    carry_out([Purge(first.id)], session, owner=OWNER)
    assert session.log.run.snapshots[first.id].state is SnapshotState.PURGED


def test_a_refusal_is_remembered_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("checkpoint_operator.gather.observer.time.monotonic", lambda: now)
    memory = Memory(refusal="object lock", refused_at=now)
    now += REFUSED_SECONDS - 1
    assert memory.refused() == "object lock"
    now += 1
    assert memory.refused() == ""


def test_what_probes_could_not_delete_goes_when_it_can_be_deleted(store: Locked, session: RunStore) -> None:
    store.no_delete = DeletionRefusedError
    session.probe()
    assert len(list(store.list("_probe/"))) == 3
    store.no_delete = None
    store.now += dt.timedelta(hours=1)
    session.probe()
    assert list(store.list("_probe/")) == []


def test_where_no_object_can_be_replaced_the_clock_is_read_all_the_same(
    store: Locked, session: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store.put

    def only_once(key: str, data: Buffer) -> None:
        if store.stat(key) is not None:
            raise AccessDeniedError("write", key, "the store answered 403")
        put(key, data)

    monkeypatch.setattr(store, "put", only_once)
    store.no_delete = DeletionRefusedError
    for _ in range(2):
        session.probe()
    assert session.refusal
    assert session.now() >= store.now


@pytest.mark.parametrize(
    ("action", "kind", "refused"),
    [
        pytest.param(Purge("100-1-abcdefgh"), DeletionRefusedError, True, id="deleting data"),
        pytest.param(Purge("100-1-abcdefgh"), AccessDeniedError, False, id="reading what to delete"),
        pytest.param(PublishPointer(100, "100-1-abcdefgh"), AccessDeniedError, True, id="replacing a pointer"),
        pytest.param(PublishPointer(100, ""), DeletionRefusedError, True, id="removing a pointer"),
        pytest.param(Retire("100-1-abcdefgh"), AccessDeniedError, False, id="appending to the log"),
    ],
)
def test_what_counts_as_refused_is(action: StoreAction, kind: type[StoreError], refused: bool) -> None:
    assert ActionOutcome(action, kind("use", "a key", "the store answered 403")).refused is refused
    assert not ActionOutcome(action, StoreError("use", "a key", "the server is tired")).refused
    assert not ActionOutcome(action).refused


# Writing


def test_a_store_that_can_only_be_read_shows_its_run_and_its_clock(store: Locked, session: RunStore) -> None:
    snapshot = Trainer(store).start().commit(100)
    store.no_write = True
    session.probe()
    assert "AccessDenied" in session.read_only
    assert session.log.run.newest == snapshot.id
    assert session.now() >= store.now
    store.no_write = False
    session.probe()
    assert session.read_only == ""


def test_an_empty_store_that_can_only_be_read_is_no_failure(store: Locked, session: RunStore) -> None:
    store.no_write = True
    session.probe()
    assert session.read_only
    assert session.log.run.head == 0


def test_a_store_that_can_neither_be_written_nor_read_does_not_pass_the_probe(store: Locked, session: RunStore) -> None:
    Trainer(store).start()
    store.no_write = store.no_read = True
    with pytest.raises(AccessDeniedError):
        session.probe()


# How things are deleted


def test_deletions_come_in_batches_no_faster_than_the_limit(
    store: Locked, session: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("checkpoint_operator.gather.run_store.time.sleep", slept.append)
    session._deletions = RateLimit(100.0, clock=lambda: 0.0)
    session.delete(str(number) for number in range(2 * KEYS_PER_BATCH + 1))
    assert [len(keys) for keys in store.deletes] == [KEYS_PER_BATCH, KEYS_PER_BATCH, 1]
    assert slept == [0.0, KEYS_PER_BATCH / 100, 2 * KEYS_PER_BATCH / 100]


def test_what_killed_probes_left_is_deleted_after_an_hour_and_a_running_probe_is_left_alone(
    store: Locked, session: RunStore
) -> None:
    store.put("_probe/1111111111111111/created", b"first")
    store.now += dt.timedelta(minutes=59)
    store.put("_probe/2222222222222222/created", b"first")
    store.now += dt.timedelta(minutes=1)
    session.probe()
    assert [info.key for info in store.list("_probe/")] == ["_probe/2222222222222222/created"]
