"""Collecting what killed attempts left: when it is planned, what is deleted, and what no race can make it delete."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.decide.plan import next_pass, store_actions
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import CollectLast, CollectOrphans, StoreAction
from checkpoint_operator.model.observed import Observed, RunProgress
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_sidecar.core.errors import AccessDeniedError, FencedError, StoreError
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import AttemptFenced, RunAdopted, RunConfigured
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.run import Run, SnapshotState
from checkpoint_sidecar.runs.entries import get_entries
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import ObjectInfo, UnfinishedUpload
from doubles.memory import MemoryStore
from support.builders import BEGINNING, OBJECT_UID, OTHER_OWNER, OWNER, History
from support.observations import changed, later, observed, pod
from support.trainers import Trainer

HOUR = dt.timedelta(hours=1)


def left(step: int, attempt: int, run: Run, nonce: str = "aaaaaaaa") -> str:
    """A file of a save that was not finished."""
    return f"{SaveFolder(step, attempt, nonce, run.short_identity).path}/__0_0.distcp"


class Store(MemoryStore):
    """Something may happen while it is listed, and it may keep unfinished uploads."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        super().__init__(clock=lambda: self.now)
        self.while_listing: Callable[[], object] = lambda: None
        self.uploads: list[UnfinishedUpload] = []

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        if prefix == "step-":
            self.while_listing()
        return super().list(prefix, after=after)

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        return iter([upload for upload in self.uploads if upload.key.startswith(prefix)])

    def discard(self, upload: UnfinishedUpload) -> None:
        self.uploads.remove(upload)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def trainer(store: Store) -> Trainer:
    """A second attempt, after a first one that committed step 100 and was killed in the save of step 200."""
    trainer = Trainer(store).start()
    trainer.commit(100)
    store.put(left(200, 1, trainer.run), b"half")
    return trainer.start()


@pytest.fixture
def collect(store: Store, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ActionOutcome]:
    """A collection, two hours later."""
    return collection(store, CollectOrphans(2), monkeypatch)


def collection(store: Store, action: StoreAction, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ActionOutcome]:
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)

    def act() -> ActionOutcome:
        store.now += 2 * HOUR
        session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
        session.probe()
        session.log.refresh()
        (outcome,) = carry_out([action], session, owner=OWNER)
        return outcome

    return act


def steps(store: Store) -> set[str]:
    return {info.key for info in MemoryStore.list(store, "step-")}


def test_the_leftovers_go_and_every_snapshot_stays(
    store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]
) -> None:
    before = steps(store)
    assert collect().error is None
    assert before - steps(store) == {left(200, 1, trainer.run)}


def test_what_the_running_attempt_is_uploading_stays(
    store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]
) -> None:
    store.put(left(300, 2, trainer.run), b"half")
    collect()
    assert left(300, 2, trainer.run) in steps(store)


def test_a_save_that_is_committed_and_fenced_while_objects_are_listed_stays(
    store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]
) -> None:
    no_grace = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0))
    trainer.log.append(lambda _: RunConfigured(OBJECT_UID, 1, no_grace))

    def commit_and_restart() -> None:
        trainer.commit(300)
        trainer.start()

    store.while_listing = commit_and_restart
    assert collect().error is None
    assert {s.step for s in trainer.run.snapshots.values()} == {100, 300}
    assert len(steps(store)) == 12, "two snapshots with their pointers, and nothing else"


def test_a_save_that_appears_while_a_new_attempt_starts_is_collected_in_its_time(
    store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]
) -> None:
    late = left(300, 1, trainer.run, "bbbbbbbb")
    store.while_listing = lambda: store.put(late, b"of a process that did not notice")
    collect()
    assert late in steps(store)
    store.while_listing = lambda: None
    collect()
    assert late not in steps(store)


def test_the_commit_of_a_fenced_process_whose_data_was_collected_is_refused(
    store: Store, collect: Callable[[], ActionOutcome]
) -> None:
    fenced = Trainer(store)
    fenced.number = 1
    collect()
    with pytest.raises(FencedError):
        fenced.commit(200)
    assert [s.step for s in fenced.run.snapshots.values() if s.state is SnapshotState.LIVE] == [100]


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(
            lambda trainer: trainer.log.append(lambda _: RunAdopted(OTHER_OWNER, OWNER)), id="the run changes hands"
        ),
        pytest.param(lambda trainer: trainer.start(), id="an attempt starts, and with it the grace"),
    ],
)
def test_nothing_goes_if_meanwhile(
    happens: Callable[[Trainer], object], store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]
) -> None:
    store.while_listing = lambda: happens(trainer)
    before = steps(store)
    assert collect().error is None
    assert steps(store) == before


def test_nothing_goes_in_a_dry_run(store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]) -> None:
    dry = RetentionPolicy(keep_last=1, dry_run=True)
    trainer.log.append(lambda _: RunConfigured(OBJECT_UID, 1, Policy(retention=dry)))
    before = steps(store)
    collect()
    assert steps(store) == before


def test_uploads_of_fenced_attempts_are_discarded_and_others_are_not(
    store: Store, trainer: Trainer, collect: Callable[[], ActionOutcome]
) -> None:
    old, new = store.now, store.now + 2 * HOUR
    abandoned = UnfinishedUpload(left(200, 1, trainer.run), "1", old)
    young = UnfinishedUpload(left(200, 1, trainer.run), "2", new)
    running = UnfinishedUpload(left(300, 2, trainer.run), "3", old)
    stranger = UnfinishedUpload("step-300/notes.txt", "4", old)
    drop_in = UnfinishedUpload("step-300/0001-aaaaaaaa/__0_0.distcp", "5", old)
    store.uploads = [abandoned, young, running, stranger, drop_in]
    assert collect().error is None
    assert store.uploads == [young, running, stranger, drop_in]


def test_a_store_that_does_not_tell_its_unfinished_uploads_is_no_fault(
    store: Store, collect: Callable[[], ActionOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str) -> None:
        raise AccessDeniedError("list the unfinished uploads of", prefix, "the store answered 403")

    monkeypatch.setattr(store, "unfinished", refuse)
    assert collect().error is None
    assert left(200, 1, Trainer(store).run) not in steps(store)


def test_a_deletion_that_failed_is_reported_and_tried_again(
    store: Store, collect: Callable[[], ActionOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = store.delete

    def refuse(keys: Iterable[str]) -> None:
        keys = list(keys)
        if any(key.startswith("step-") for key in keys):
            raise StoreError("delete", keys[0], "the server is tired")
        delete(keys)

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", refuse)
        assert isinstance(collect().error, StoreError)
    assert collect().error is None
    assert left(200, 1, Trainer(store).run) not in steps(store)


# What the last attempt left


@pytest.fixture
def collect_last(store: Store, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ActionOutcome]:
    """A collection of what the second attempt left, two hours later."""
    store.put(left(300, 2, trainer.run), b"half")
    return collection(store, CollectLast(2, ""), monkeypatch)


def test_the_last_attempt_is_fenced_before_what_it_left_is_deleted(
    store: Store, trainer: Trainer, collect_last: Callable[[], ActionOutcome]
) -> None:
    before = steps(store)
    assert collect_last().error is None
    assert before - steps(store) == {left(300, 2, trainer.run), left(200, 1, Trainer(store).run)}
    with pytest.raises(FencedError):
        trainer.commit(300)
    assert trainer.start().commit(400).id == trainer.run.newest


def test_unfinished_uploads_of_the_last_attempt_are_discarded(
    store: Store, trainer: Trainer, collect_last: Callable[[], ActionOutcome]
) -> None:
    store.delete([left(300, 2, trainer.run)])
    store.uploads = [UnfinishedUpload(left(300, 2, trainer.run), "1", store.now)]
    assert collect_last().error is None
    assert store.uploads == []


def test_a_last_attempt_that_left_nothing_is_not_fenced(
    store: Store, trainer: Trainer, collect_last: Callable[[], ActionOutcome]
) -> None:
    store.delete([left(300, 2, trainer.run), left(200, 1, Trainer(store).run)])
    head = trainer.run.head
    assert collect_last().error is None
    assert trainer.run.head == head


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(lambda trainer: trainer.commit(300), id="commits"),
        pytest.param(lambda trainer: trainer.start(), id="is followed by a later one"),
        pytest.param(lambda trainer: trainer.log.append(lambda _: RunAdopted(OTHER_OWNER, OWNER)), id="changes hands"),
    ],
)
def test_nothing_goes_if_meanwhile_the_last_attempt(
    sign: Callable[[Trainer], object], store: Store, trainer: Trainer, collect_last: Callable[[], ActionOutcome]
) -> None:
    store.while_listing = lambda: sign(trainer)
    before = steps(store)
    assert collect_last().error is None
    assert before <= steps(store)
    assert "AttemptFenced" not in {
        type(entry.decode().body).__name__ for entry in get_entries(store, [trainer.run.head])
    }


def test_a_collection_that_died_after_the_fence_is_ended_by_the_next(
    store: Store, trainer: Trainer, collect_last: Callable[[], ActionOutcome]
) -> None:
    trainer.log.append(lambda _: AttemptFenced(2))
    assert collect_last().error is None
    assert not any("0002-aaaaaaaa" in key for key in steps(store))


def silent(**changes: Any) -> Observed:
    """A run whose only attempt committed once and then, for a day and an hour, nothing."""
    history = History().configured().started().committed(100).verified(100)
    return changed(later(observed(history), hours=25), pointers={100: history.id(100)}, **changes)


def test_a_silent_attempt_is_swept_once() -> None:
    seen = silent()
    (action,) = store_actions(seen)
    assert isinstance(action, CollectLast)
    assert store_actions(changed(seen, last_collected=(action.attempt, action.commit))) == ()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"pods": (pod(),)}, id="a pod runs"),
        pytest.param({"refusal": "object lock"}, id="nothing can be deleted"),
        pytest.param({"progress": {1: RunProgress(1, 100, BEGINNING + 20 * HOUR)}}, id="it reports progress"),
    ],
)
def test_an_attempt_is_not_swept_while(changes: dict[str, Any]) -> None:
    assert store_actions(silent(**changes)) == ()


def test_an_attempt_that_said_goodbye_is_swept_after_the_grace() -> None:
    history = History().configured().started().committed(100).verified(100)
    goodbye = {1: RunProgress(1, 100, history.now, ended=True)}
    seen = changed(observed(history), pointers={100: history.id(100)}, progress=goodbye)
    assert (store_actions(seen), next_pass(seen)) == ((), 3600)
    assert [type(action) for action in store_actions(later(seen, hours=1))] == [CollectLast]


# When


def test_it_is_planned_once_an_attempt_when_the_grace_is_over() -> None:
    history = History().configured().started().committed(100).verified(100).started()
    fresh = changed(observed(history), pointers={100: history.id(100)})
    assert store_actions(fresh) == ()
    assert next_pass(fresh) == 3600
    due = later(fresh, hours=1)
    assert store_actions(due) == (CollectOrphans(2),)
    assert store_actions(changed(due, orphans_collected=2)) == ()
    assert next_pass(changed(due, orphans_collected=2)) == 23 * 3600, "when the last attempt was silent for a day"
    assert next_pass(changed(due, orphans_collected=2, last_collected=(2, ""))) is None


def test_it_is_not_planned_for_a_suspended_run() -> None:
    history = History().configured().started().started()
    assert store_actions(later(observed(history, suspend=True), hours=2)) == ()
    assert store_actions(later(observed(history), hours=2)) == (CollectOrphans(2),)
