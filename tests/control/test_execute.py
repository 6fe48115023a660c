"""Carrying out a plan: what is in the store afterwards, also when the operator dies in the middle of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable

import pytest

from checkpoint_operator.act.execute import carry_out, verify
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import (
    CollectLast,
    CollectOrphans,
    Compact,
    Configure,
    PublishPointer,
    Purge,
    RecordCheck,
    Reinstate,
    Retire,
    StoreAction,
    Verify,
)
from checkpoint_operator.model.outcome import ActionOutcome, BudgetError
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.compaction import EntryRange
from checkpoint_sidecar.core.errors import ObjectTooLargeError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.lineage import quarantined
from checkpoint_sidecar.core.log import PurgeStarted, RestoreStarted
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.run import Snapshot, SnapshotState
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from control.sessions import session_on
from doubles.counting import CountingStore
from doubles.dying import DyingStore, Killed
from doubles.memory import MemoryStore
from support.builders import OBJECT_UID, OTHER_OWNER, OWNER
from support.longlogs import write_log
from support.trainers import Trainer

NO_GRACE = RetentionPolicy(keep_last=1, grace_seconds=0)
DATA = {"__0_0.distcp", "__1_0.distcp", ".metadata", "stock.metadata", "manifest.json"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def session(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return session_on(store, monkeypatch)


@pytest.fixture
def trainer(store: MemoryStore) -> Trainer:
    return Trainer(store).start()


def ready_to_purge(trainer: Trainer, session: RunStore) -> Snapshot:
    """Two verified snapshots, of which the policy has retired the first."""
    first, second = trainer.commit(100), trainer.commit(200)
    session.log.refresh()
    configure = Configure(OBJECT_UID, 1, Policy(retention=NO_GRACE))
    outcomes = carry_out([configure, Verify(first.id), Verify(second.id), Retire(first.id)], session, owner=OWNER)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert session.log.run.snapshots[first.id].state is SnapshotState.RETIRED
    return first


def contents(store: Store) -> set[str]:
    return {info.key for info in store.list("step-")}


def test_verifying_compares_the_size_of_every_file(trainer: Trainer, session: RunStore) -> None:
    snapshot = trainer.commit(100)
    session.log.refresh()
    carry_out([Verify(snapshot.id)], session, owner=OWNER)
    assert session.log.run.snapshots[snapshot.id].verified == "Sizes"


@pytest.mark.parametrize(
    ("damage", "evidence"),
    [
        pytest.param(lambda s, path: s.delete([f"{path}/__1_0.distcp"]), "MissingObject", id="a file is missing"),
        pytest.param(lambda s, path: s.put(f"{path}/__1_0.distcp", b"short"), "SizeMismatch", id="a file is short"),
        pytest.param(lambda s, path: s.delete([f"{path}/manifest.json"]), "MissingObject", id="no manifest"),
        pytest.param(lambda s, path: s.put(f"{path}/manifest.json", b"{}"), "ManifestMismatch", id="another manifest"),
    ],
)
def test_verifying_names_the_damage(
    damage: Callable[[Store, str], None], evidence: str, trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    snapshot = trainer.commit(100)
    session.log.refresh()
    damage(store, snapshot.commit.path)
    carry_out([Verify(snapshot.id)], session, owner=OWNER)
    found = session.log.run.snapshots[snapshot.id]
    assert (found.verified, found.failures) == ("None", 1)
    assert found.evidence.startswith(evidence)


def test_the_same_damage_found_by_two_operators_counts_once(
    trainer: Trainer, session: RunStore, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = trainer.commit(100)
    session.log.refresh()
    store.delete([f"{snapshot.commit.path}/__1_0.distcp"])
    other = session_on(store, monkeypatch)
    finding = verify(store, snapshot)
    for each in (session, other):
        carry_out([RecordCheck(finding)], each, owner=OWNER)
    run = session.log.refresh()
    assert run.snapshots[snapshot.id].failures == 1
    assert not quarantined(run, run.snapshots[snapshot.id])


def test_a_failing_store_is_no_evidence(
    trainer: Trainer, session: RunStore, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = trainer.commit(100)
    session.log.refresh()

    def refuse(_: str) -> None:
        raise StoreError("stat", "x", "timeout")

    monkeypatch.setattr(store, "stat", refuse)
    (outcome,) = carry_out([Verify(snapshot.id)], session, owner=OWNER)
    assert isinstance(outcome.error, StoreError)
    assert session.log.refresh().snapshots[snapshot.id].failures == 0


def test_the_absence_of_files_that_are_being_purged_is_no_evidence(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    doomed = ready_to_purge(trainer, session)
    session.log.append(lambda _: PurgeStarted(doomed.id))
    store.delete([f"{doomed.commit.path}/__0_0.distcp"])
    found = verify(store, doomed)
    assert not found.check.passed
    carry_out([RecordCheck(found)], session, owner=OWNER)
    assert session.log.run.snapshots[doomed.id].failures == 0


def test_a_dry_run_that_began_meanwhile_keeps_a_planned_retirement_from_being_written(
    trainer: Trainer, session: RunStore
) -> None:
    first, second = trainer.commit(100), trainer.commit(200)
    session.log.refresh()
    dry = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0, dry_run=True))
    check = [Verify(first.id), Verify(second.id)]
    planned: list[StoreAction] = [Configure(OBJECT_UID, 1, dry), *check, Retire(first.id), Purge(first.id)]
    carry_out(planned, session, owner=OWNER)
    assert session.log.run.snapshots[first.id].state is SnapshotState.LIVE


def test_purging_deletes_what_the_manifest_lists_and_nothing_else(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    doomed = ready_to_purge(trainer, session)
    store.put(f"{doomed.commit.path}/notes.txt", b"a stranger's")
    store.put("step-100/0001-aaaaaaaa/__0_0.distcp", b"the save of another attempt")
    before = contents(store)
    carry_out([Purge(doomed.id)], session, owner=OWNER)
    gone = {f"{doomed.commit.path}/{name}" for name in DATA} | {"step-100/.metadata"}
    assert before - contents(store) == gone
    assert session.log.run.snapshots[doomed.id].state is SnapshotState.PURGED


def test_the_stock_pointer_of_a_purged_step_shows_the_snapshot_that_remains(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    doomed = ready_to_purge(trainer, session)
    carry_out([Purge(doomed.id)], session, owner=OWNER)
    assert store.stat("step-100/.metadata") is None
    assert store.stat("step-200/.metadata") is not None


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_purge_that_is_killed_anywhere_ends_in_the_same_state_when_it_is_tried_again(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 1
    while True:
        store = MemoryStore()
        session = session_on(store, monkeypatch)
        doomed = ready_to_purge(Trainer(store).start(), session)
        survivor = session.log.run.newest
        dying = DyingStore(store, at=calls, after=after)
        monkeypatch.setattr(session, "store", dying)
        session.log.store = dying
        try:
            carry_out([Purge(doomed.id)], session, owner=OWNER)
        except Killed:
            pass
        else:
            break
        state = session_on(store, monkeypatch).log.refresh().snapshots[doomed.id].state
        if state is SnapshotState.RETIRED:
            assert len(contents(store)) == 12, "nothing is deleted before PurgeStarted is in the log"
        again = session_on(store, monkeypatch)
        assert carry_out([Purge(doomed.id)], again, owner=OWNER)[0].error is None
        assert again.log.refresh().snapshots[doomed.id].state is SnapshotState.PURGED
        assert {key.split("/")[0] for key in contents(store)} == {"step-200"}
        assert again.log.run.newest == survivor
        assert len(contents(store)) == 6
        calls += 1
    assert calls > 8, "the loop has tried every call of a purge"


def test_files_whose_deletion_fails_stay_announced_for_a_later_purge(
    trainer: Trainer, session: RunStore, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = ready_to_purge(trainer, session)

    delete = store.delete

    def refuse(keys: Iterable[str]) -> None:
        wanted = list(keys)
        if any(key.startswith(doomed.commit.path) for key in wanted):
            raise StoreError("delete", store.url, "the server is tired")
        delete(wanted)

    monkeypatch.setattr(store, "delete", refuse)
    (outcome,) = carry_out([Purge(doomed.id)], session, owner=OWNER)
    assert isinstance(outcome.error, StoreError)
    assert session.log.refresh().snapshots[doomed.id].state is SnapshotState.PURGING


def test_nothing_is_deleted_while_it_is_unknown_whether_the_purge_was_announced(
    monkeypatch: pytest.MonkeyPatch, store: MemoryStore
) -> None:
    session = session_on(store, monkeypatch)
    doomed = ready_to_purge(Trainer(store).start(), session)
    session.log = RunLog(store, writer="operator test", timeout_seconds=0.01)
    session.log.refresh()

    def lose_the_reply(key: str, data: bytes) -> None:
        raise UnknownOutcomeError("create", key, "the connection broke")

    monkeypatch.setattr(store, "put_if_absent", lose_the_reply)
    (outcome,) = carry_out([Purge(doomed.id)], session, owner=OWNER)
    assert isinstance(outcome.error, UnknownOutcomeError)
    assert len(contents(store)) == 12


def test_a_snapshot_that_a_restore_announced_meanwhile_is_not_purged(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    doomed = ready_to_purge(trainer, session)
    before = contents(store)
    RunLog(store, writer="library test").append(lambda _: RestoreStarted(trainer.number, doomed.id))
    assert carry_out([Purge(doomed.id)], session, owner=OWNER)[0].error is None
    assert contents(store) == before


def test_the_grace_is_measured_on_the_stores_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    store = MemoryStore(clock=lambda: slow)
    session = session_on(store, monkeypatch)
    trainer = Trainer(store).start()
    first, second = trainer.commit(100), trainer.commit(200)
    session.log.refresh()
    policy = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=60))
    carry_out(
        [Configure(OBJECT_UID, 1, policy), Verify(first.id), Verify(second.id), Retire(first.id), Purge(first.id)],
        session,
        owner=OWNER,
    )
    assert session.log.run.snapshots[first.id].state is SnapshotState.RETIRED
    slow += dt.timedelta(seconds=61)
    session.probe()
    carry_out([Purge(first.id)], session, owner=OWNER)
    assert session.log.run.snapshots[first.id].state is SnapshotState.PURGED


@pytest.mark.parametrize("kind", ["Purge", "CollectOrphans", "CollectLast"])
def test_nothing_goes_early_if_the_stores_clock_is_set_back_after_it_was_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    store = MemoryStore(clock=lambda: now)
    trainer = Trainer(store).start()
    first, second = trainer.commit(100), trainer.commit(200)
    store.put(f"{SaveFolder(300, 1, 'aaaaaaaa', trainer.run.short_identity).path}/__0_0.distcp", b"half")
    if kind != "CollectLast":
        trainer.start()
    actions: dict[str, StoreAction] = {
        "Purge": Purge(first.id),
        "CollectOrphans": CollectOrphans(2),
        "CollectLast": CollectLast(1, second.id),
    }
    policy = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=3600))
    check = [Verify(first.id), Verify(second.id)]
    retire: list[StoreAction] = [Configure(OBJECT_UID, 1, policy), *check, Retire(first.id)]
    carry_out(retire, session_on(store, monkeypatch), owner=OWNER)

    now += dt.timedelta(hours=30)
    session = session_on(store, monkeypatch)
    now -= dt.timedelta(hours=30)
    before = contents(store)
    carry_out([actions[kind]], session, owner=OWNER)
    assert contents(store) == before
    assert session.log.run.fenced_up_to == 0
    now += dt.timedelta(hours=26)
    carry_out([actions[kind]], session, owner=OWNER)
    assert contents(store) < before


def test_a_compacted_log_opens_from_the_compaction(session: RunStore, store: MemoryStore) -> None:
    write_log(store, 210)
    session.log.refresh()
    (outcome,) = carry_out([Compact(EntryRange(1, 200))], session, owner=OWNER)
    assert outcome.error is None
    counting = CountingStore(store)
    assert RunLog(counting, writer="library test").refresh() == session.log.run
    assert counting.requests["get"] == 1 + 1 + 10 + 1


def test_two_operators_purge_the_same_snapshot_without_harm(
    trainer: Trainer, session: RunStore, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = ready_to_purge(trainer, session)
    other = session_on(store, monkeypatch)
    session.log.append(lambda _: PurgeStarted(doomed.id))
    for each in (other, session):
        assert carry_out([Purge(doomed.id)], each, owner=OWNER)[0].error is None
    kinds = [type(entry.body).__name__ for entry in session.log.entries(range(1, session.log.refresh().head + 1))]
    assert (kinds.count("PurgeStarted"), kinds.count("SnapshotPurged")) == (1, 1)


def test_nothing_is_written_into_the_log_of_another_run(trainer: Trainer, session: RunStore) -> None:
    doomed = ready_to_purge(trainer, session)
    head = session.log.run.head
    carry_out([Purge(doomed.id), Reinstate(doomed.id)], session, owner=OTHER_OWNER)
    assert session.log.refresh().head == head
    assert session.log.run.snapshots[doomed.id].state is SnapshotState.RETIRED


def test_a_damaged_snapshot_is_purged_by_what_lies_in_its_folder(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    doomed = ready_to_purge(trainer, session)
    store.put(f"{doomed.commit.path}/manifest.json", b"rot")
    assert carry_out([Purge(doomed.id)], session, owner=OWNER)[0].error is None
    assert {key.split("/")[0] for key in contents(store)} == {"step-200"}


def test_a_pointer_whose_bytes_are_missing_is_removed_and_holds_up_nothing(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    snapshot = trainer.commit(100)
    session.log.refresh()
    store.put("step-100/.metadata", b"old" + Origin(trainer.run.short_identity, "100-1-aaaaaaaa").encode())
    store.delete([f"{snapshot.commit.path}/{layout.STOCK_METADATA_NAME}"])
    outcomes = carry_out([PublishPointer(100, snapshot.id), Verify(snapshot.id)], session, owner=OWNER)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert store.stat("step-100/.metadata") is None


@pytest.mark.parametrize("name", [layout.STOCK_METADATA_NAME, layout.MANIFEST_NAME])
def test_a_pointer_whose_bytes_are_not_what_was_committed_is_removed_and_holds_up_nothing(
    trainer: Trainer, session: RunStore, store: MemoryStore, name: str
) -> None:
    snapshot = trainer.commit(100)
    session.log.refresh()
    store.put("step-100/.metadata", b"old" + Origin(trainer.run.short_identity, "100-1-aaaaaaaa").encode())
    store.put(f"{snapshot.commit.path}/{name}", b"an answer of the metadata service")
    outcomes = carry_out([PublishPointer(100, snapshot.id)], session, owner=OWNER)
    assert [outcome.error for outcome in outcomes] == [None]
    assert store.stat("step-100/.metadata") is None


@pytest.mark.parametrize(
    "error",
    [
        BudgetError("read", "s3://bucket/run/manifest.json", "80 MiB", reason=Reason.OBJECT_TOO_LARGE),
        ObjectTooLargeError("publish", "s3://bucket/run/.metadata", "2 GiB"),
    ],
    ids=["manifest", "pointer"],
)
def test_a_pointer_that_is_too_large_to_be_checked_is_no_fault(error: StoreError) -> None:
    assert ActionOutcome(PublishPointer(100, "100-1-abcdefgh"), error).refused
    assert not ActionOutcome(Verify("100-1-abcdefgh"), error).refused


def test_another_writers_checkpoint_at_a_step_is_left_alone_and_reported(
    trainer: Trainer, session: RunStore, store: MemoryStore
) -> None:
    snapshot = trainer.commit(500)
    store.put("step-500/.metadata", b"torch's own")
    session.log.refresh()
    for action in (PublishPointer(500, snapshot.id), PublishPointer(500, "")):
        (outcome,) = carry_out([action], session, owner=OWNER)
        assert outcome.left_alone
    assert store.get("step-500/.metadata", max_bytes=100).data == b"torch's own"
