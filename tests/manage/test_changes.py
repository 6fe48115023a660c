"""A run is changed through its log: by the operator's rules, and not behind an operator's back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from checkpoint_sidecar import ChangeRefusedError, RunManagedError, RunNotFoundError, SnapshotNotFoundError
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.lineage import quarantined
from checkpoint_sidecar.core.log import RunConfigured, SnapshotRetired
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.run import LIBRARY_UID, SnapshotState
from checkpoint_sidecar.manage.pruning import purge
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore
from support.builders import OWNER, History
from support.stored import stored
from support.trainers import Trainer

KEEP_ONE = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0))
Change = Callable[[StoredRun, dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "rollback": lambda run, options: run.rollback(100, **options),
    "hold": lambda run, options: run.hold(100, **options),
    "release": lambda run, options: run.release(100, **options),
    "retire": lambda run, options: run.retire(100, **options),
    "release_quarantine": lambda run, options: run.release_quarantine(100, **options),
    "request_save": lambda run, options: run.request_save(**options),
    "remove": lambda run, options: run.remove(100, **options),
    "configure": lambda run, options: run.configure(Policy(), **options),
}


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def trained(store: Store, *steps: int) -> tuple[Trainer, StoredRun]:
    trainer = Trainer(store).start()
    for step in steps:
        trainer.commit(step)
    return trainer, StoredRun(store, writer="user")


def manage(store: Store, policy: Policy = KEEP_ONE) -> None:
    RunLog(store, writer="operator").append(lambda _: RunConfigured("uid-of-a-checkpoint", 1, policy))


def test_the_next_start_serves_a_rollback_once(bucket: Store) -> None:
    trainer, run = trained(bucket, 100, 200)
    change = run.rollback(100)
    assert change.done
    assert change.snapshot == run.find(100).id
    assert change.entry is not None
    assert change.entry.writer == "user"
    trainer.start()
    assert trainer.run.attempts[2].restored == change.snapshot
    assert not run.rollback(100, request=change.request).done


def test_a_held_snapshot_is_kept_until_it_is_released(bucket: Store) -> None:
    _, run = trained(bucket, 100, 200, 300)
    run.configure(KEEP_ONE)
    for step in (100, 200, 300):
        run.verify(step, record=True)
    run.hold(100)
    assert not run.hold(100).done
    assert set(run.prune_plan().retire) == {run.find(200).id}
    run.release(100)
    assert set(run.prune_plan().retire) == {run.find(100).id, run.find(200).id}


def test_the_running_attempt_answers_a_request_for_a_save(bucket: Store) -> None:
    trainer, run = trained(bucket, 100)
    request = run.request_save().request
    assert run.answer_to(request) is None
    attempt = trainer.run.attempt
    assert attempt is not None
    assert attempt.save_request == request
    snapshot = trainer.commit(200, save_request=request)
    run.refresh()
    assert run.answer_to(request) == snapshot
    assert not run.request_save(request=request).done


def test_a_quarantined_snapshot_is_trusted_again_on_request() -> None:
    history = History().started().committed(100, 200).found_damaged(200, 200)
    run = StoredRun(stored(history))
    assert quarantined(run.state, run.find(200))
    run.release_quarantine(200)
    assert not quarantined(run.state, run.find(200))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_that_an_operator_manages_is_left_to_it(change: Change) -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    manage(store)
    head = run.refresh().head
    with pytest.raises(RunManagedError, match="training/llama"):
        change(run, {})
    assert run.refresh().head == head
    for step in (100, 200):
        run.verify(step, record=True, without_operator=True)
    head = run.refresh().head
    change(run, {"without_operator": True})
    assert run.refresh().head >= head


def test_an_operator_that_appears_during_a_change_is_noticed() -> None:
    store = MemoryStore()
    _, run = trained(store, 100)

    class Racing(MemoryStore):
        """The operator's first policy takes the number that the change wanted."""

        def put_if_absent(self, key: str, data: Any) -> None:
            if not run.managed and key == layout.log_key(run.state.head + 1):
                manage(store)
            store.put_if_absent(key, data)

    run.store = run._log.store = racing = Racing()
    racing._objects = store._objects
    with pytest.raises(RunManagedError):
        run.hold(100)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_dry_run_writes_nothing(change: Change) -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    run.configure(KEEP_ONE)
    run.verify(200, record=True)
    head = run.refresh().head
    change(run, {"dry_run": True})
    assert run.refresh().head == head


def test_a_snapshot_whose_data_is_gone_is_refused() -> None:
    history = History().configured().started().committed(100, 200).retired(100).purge_started(100).purged(100)
    run = StoredRun(stored(history))
    for change in (run.rollback, run.hold, run.retire, run.release_quarantine):
        with pytest.raises(ChangeRefusedError, match=r"@100-.*: it is purged"):
            change(100, without_operator=True)
    with pytest.raises(SnapshotNotFoundError, match="it is purged"):
        run.verify(100)


def test_nothing_is_retired_without_a_policy_nor_the_newest_verified_one() -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    with pytest.raises(ChangeRefusedError, match="no retention policy"):
        run.retire(100)
    run.configure(KEEP_ONE)
    run.verify(200, record=True)
    with pytest.raises(ChangeRefusedError, match="newest verified"):
        run.retire(200)
    assert run.retire(100).done


def test_a_save_is_asked_of_an_attempt_only() -> None:
    run = StoredRun(stored(History()))
    with pytest.raises(ChangeRefusedError, match="never started"):
        run.request_save()


def test_a_run_that_is_being_deleted_is_not_changed() -> None:
    run = StoredRun(stored(History().started().committed(100).adopted(OWNER.deleted)))
    with pytest.raises(RunNotFoundError, match="deleted"):
        run.configure(Policy(), without_operator=True)


def test_a_policy_of_the_library_does_not_make_the_run_managed() -> None:
    store = MemoryStore()
    _, run = trained(store, 100)
    assert run.configure(KEEP_ONE).done
    assert not run.configure(KEEP_ONE).done
    assert run.configure(Policy()).done
    assert (run.managed, run.state.configured, run.policy) == (False, (LIBRARY_UID, 2), Policy())
    manage(store)
    assert (run.refresh().policy, run.managed) == (KEEP_ONE, True)


def test_pruning_retires_and_deletes_what_the_policy_does_not_want(bucket: Store) -> None:
    _, run = trained(bucket, 100, 200, 300)
    assert "no retention policy" in run.prune().blocked
    run.configure(KEEP_ONE)
    assert not run.prune().retire, "nothing is verified yet"
    run.verify(300, record=True)
    planned = run.prune_plan()
    assert list(planned.retire) == [run.find(100).id, run.find(200).id]
    done = run.prune()
    assert (done.retire, done.purge) == (planned.retire, ())
    assert "checksums" in done.blocked
    run.verify(300, checksums=True, record=True)
    done = run.prune()
    assert (list(done.purge), done.bytes) == (list(planned.retire), 2 * run.find(300).commit.bytes)
    assert {s.step: s.state for s in run.snapshots(all=True)} == {
        100: SnapshotState.PURGED,
        200: SnapshotState.PURGED,
        300: SnapshotState.LIVE,
    }
    assert {info.key.split("/")[0] for info in bucket.list("step-")} == {"step-300"}
    assert run.verify(300, checksums=True).passed


def test_pruning_waits_for_the_grace_period_and_takes_only_what_is_named() -> None:
    _, run = trained(MemoryStore(), 100, 200, 300)
    run.configure(Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=3600)))
    run.verify(300, checksums=True, record=True)
    named = run.find(100).id
    done = run.prune(only={named})
    assert list(done.retire) == list(done.waits) == [named]
    assert (done.purge, run.find(200).live) == ((), True)
    assert run.prune().purge == ()


def test_what_the_policy_wants_back_is_a_candidate_again() -> None:
    _, run = trained(MemoryStore(), 100, 200)
    run.configure(Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=3600)))
    run.verify(200, record=True)
    run.prune()
    assert not run.find(100).live
    run.configure(Policy(retention=RetentionPolicy(keep_last=2, grace_seconds=3600)))
    assert run.prune().reinstate == (run.find(100).id,)
    assert run.find(100).live


def test_a_prune_that_is_killed_is_continued_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    run.configure(KEEP_ONE)
    run.verify(200, checksums=True, record=True)

    with monkeypatch.context() as patch:
        patch.setattr("checkpoint_sidecar.manage.pruning.delete_data", killed)
        with pytest.raises(KeyboardInterrupt):
            run.prune()
    assert run.find(100).state is SnapshotState.PURGING
    other = StoredRun(store)
    assert other.prune().purge == (run.find(100).id,)
    assert other.find(100).state is SnapshotState.PURGED


def test_a_snapshot_that_is_wanted_again_after_the_plan_keeps_its_data() -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    run.configure(KEEP_ONE)
    run.verify(200, checksums=True, record=True)
    assert list(run.prune_plan().retire) == [run.find(100).id]
    run.rollback(100)
    now = run.find(200).committed_at + dt.timedelta(days=1)
    gone = purge(run._log, store, run.find(100).id, check=lambda _: None, now=now)
    assert (gone, run.find(100).live, run.verify(100, checksums=True).passed) == (False, True, True)


def test_pruning_is_refused_where_an_operator_does_it() -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    manage(store)
    with pytest.raises(RunManagedError):
        run.prune()


def test_a_removal_deletes_at_once_without_a_policy(bucket: Store) -> None:
    _, run = trained(bucket, 100, 200)
    assert not run.remove(100, dry_run=True).done
    assert run.find(100).live
    assert run.remove(100).done
    assert run.find(100).state is SnapshotState.PURGED
    assert run.find(100).reasons == ("Removed",)
    assert {info.key.split("/")[0] for info in bucket.list("step-")} == {"step-200"}
    assert run.verify(200, checksums=True).passed
    with pytest.raises(ChangeRefusedError, match="it is purged"):
        run.remove(100)


@pytest.mark.parametrize(
    ("history", "cause", "forced"),
    [
        (History().started().committed(100, 200).disposed(100, "Hold"), "it is held", True),
        (History().started().committed(100, 200).verified(100), "the newest that a start can trust", True),
        (History().started().committed(100), "the newest that a start can trust", True),
        (History().started().committed(100, 200).rollback(100), "a pending rollback restores it", False),
        (History().started().committed(100, 200).rollback(100).started(), "an attempt restores it", False),
    ],
    ids=["held", "newest verified", "only one", "rollback", "in use"],
)
def test_what_a_run_needs_is_not_removed(history: History, cause: str, forced: bool) -> None:
    store = stored(history)
    run = StoredRun(store)
    head = run.refresh().head
    with pytest.raises(ChangeRefusedError, match=cause):
        run.remove(100)
    if forced:
        run.remove(100, force=True, dry_run=True)
    else:
        with pytest.raises(ChangeRefusedError, match=cause):
            run.remove(100, force=True)
    assert run.refresh().head == head


def test_a_removal_that_is_killed_is_continued_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    _, run = trained(store, 100, 200)
    with monkeypatch.context() as patch:
        patch.setattr("checkpoint_sidecar.manage.pruning.delete_data", killed)
        with pytest.raises(KeyboardInterrupt):
            run.remove(100)
    assert run.find(100).state is SnapshotState.PURGING
    other = StoredRun(store)
    other.remove(100)
    assert other.find(100).state is SnapshotState.PURGED
    assert not list(store.list("step-100/"))


def test_a_rollback_that_overtakes_a_removal_wins() -> None:
    store = MemoryStore()
    trainer, run = trained(store, 100, 200)
    overtaking = StoredRun(store)
    append = overtaking._log.append

    def once(compute: Any) -> Any:
        entry = append(compute)
        if entry is not None and isinstance(entry.body, SnapshotRetired):
            StoredRun(store).rollback(100)
        return entry

    overtaking._log.append = once  # type: ignore[method-assign]
    with pytest.raises(ChangeRefusedError, match="a pending rollback restores it"):
        overtaking.remove(100)
    assert run.verify(100, checksums=True).passed
    assert trainer.start().run.attempts[2].restored == run.find(100).id


def test_damage_is_found_and_recorded_on_request(bucket: Store) -> None:
    _, run = trained(bucket, 100)
    snapshot = run.find(100)
    key = f"{snapshot.commit.path}/__0_0.distcp"
    seen: list[int] = []
    assert run.verify(100, checksums=True, progress=seen.append).passed
    assert sum(seen) == snapshot.commit.bytes
    bucket.put(key, b"\1" + bytes(699))
    head = run.refresh().head
    assert run.verify(snapshot).passed, "sizes are as they were"
    found = run.verify(snapshot, checksums=True)
    assert (found.passed, found.evidence) == (False, "ChecksumMismatch")
    assert "__0_0.distcp" in found.message
    assert run.refresh().head == head, "a check that is not recorded writes nothing"
    run.verify(snapshot, checksums=True, record=True)
    assert run.find(100).failures == 1
    bucket.delete([key])
    assert run.verify(snapshot).evidence == "MissingObject"
