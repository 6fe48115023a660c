"""deletionPolicy: Delete. What is decided when, and what is in the bucket when the operator dies at any request."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.decide import finalizer, plan
from checkpoint_operator.decide.appends import entry_for
from checkpoint_operator.decide.finalizer import FINALIZER, Release, finalizers, in_the_way, release
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import Adopt, CollectOrphans, End, Erase
from checkpoint_operator.model.observed import Key, Observed, RunProgress, StoreFault
from checkpoint_operator.report.faults import fault_of
from checkpoint_sidecar.core import attempt, layout
from checkpoint_sidecar.core.api import EventReason, Reason
from checkpoint_sidecar.core.errors import FencedError, LogError, PrefixClaimedError
from checkpoint_sidecar.core.log import SaveRequested
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from control.sessions import session_on
from doubles.dying import DyingStore, Killed
from doubles.memory import MemoryStore
from support.builders import OTHER_OWNER, OWNER, History
from support.observations import KEY, changed, later, observed, pod
from support.trainers import Trainer

HOUR = dt.timedelta(hours=1)


def saved() -> History:
    return History().configured().started().committed(100, 200)


SAVED = saved()


def deleted(history: History | None, *, policy: str = "Delete", **changes: Any) -> Observed:
    """A Checkpoint that a user just deleted and that our finalizer keeps."""
    seen = observed(history, deletionPolicy=policy)
    checkpoint = replace(seen.checkpoint, finalizers=("theirs", FINALIZER), deleted_at=seen.wall)
    return changed(seen, checkpoint=checkpoint, **changes)


def given_up() -> History:
    history = saved()
    body = entry_for(End(), history.run, owner=OWNER, now=history.now)
    assert body is not None
    return history.append(body)


# The finalizer


@pytest.mark.parametrize(
    ("policy", "has", "wanted"),
    [
        pytest.param("Delete", ("theirs",), ("theirs", FINALIZER), id="set as soon as the spec asks for it"),
        pytest.param("Delete", (FINALIZER,), None, id="set once"),
        pytest.param("Retain", ("theirs", FINALIZER), ("theirs",), id="removed when the spec no longer asks for it"),
        pytest.param("Retain", ("theirs",), None, id="Retain has none"),
    ],
)
def test_the_finalizer_follows_the_spec(policy: str, has: tuple[str, ...], wanted: tuple[str, ...] | None) -> None:
    checkpoint = replace(observed(None, deletionPolicy=policy).checkpoint, finalizers=has)
    assert finalizers(checkpoint) == wanted


def test_a_checkpoint_that_is_deleted_gets_no_finalizer_any_more() -> None:
    checkpoint = observed(None, deletionPolicy="Delete").checkpoint
    assert finalizers(replace(checkpoint, deleted_at=dt.datetime.now(dt.UTC))) is None


# What is done, and when


def test_nothing_is_deleted_while_the_checkpoint_is_not_deleted() -> None:
    kept = observed(SAVED, deletionPolicy="Delete")
    assert not {End, Erase} & {type(action) for action in plan.store_actions(kept)}
    assert release(kept) is None


def test_with_retain_a_deleted_checkpoint_leaves_everything() -> None:
    seen = deleted(SAVED, policy="Retain")
    assert plan.store_actions(seen) == ()
    free = replace(seen, checkpoint=replace(seen.checkpoint, finalizers=("theirs",)))
    assert not {End, Erase} & {type(action) for action in plan.store_actions(free)}


def test_the_run_is_given_up_first_and_then_deleted_and_then_the_checkpoint_goes() -> None:
    assert plan.store_actions(deleted(SAVED)) == (End(),)
    assert plan.store_actions(deleted(given_up())) == (Erase(),)
    assert release(deleted(given_up())) is None
    assert release(deleted(History(owner=None))) == Release()
    assert plan.store_actions(deleted(History(owner=None))) == ()


def test_pods_are_fenced_at_once_and_nothing_is_deleted_before_they_have_ended() -> None:
    assert plan.store_actions(deleted(SAVED, pods=(pod(),))) == (End(),)
    running = deleted(given_up(), pods=(pod(),))
    assert plan.store_actions(running) == ()
    assert in_the_way(running) == "Pod llama-0 has not ended yet."
    assert plan.store_actions(changed(running, pods=(pod(phase="Succeeded"),))) == (Erase(),)


def test_a_deletion_also_waits_for_progress_that_no_pod_here_reports() -> None:
    seen = deleted(given_up())
    assert seen.now is not None
    heard = RunProgress(1, 250, seen.now)
    reporting = changed(seen, progress={1: heard})
    assert plan.store_actions(reporting) == ()
    assert plan.next_pass(reporting) == finalizer.SILENCE.total_seconds()
    assert plan.store_actions(later(reporting, minutes=1)) == (Erase(),)
    assert plan.store_actions(changed(seen, progress={1: replace(heard, ended=True)})) == (Erase(),)


def test_after_the_end_no_attempt_commits_or_starts_and_no_owner_takes_the_run_over() -> None:
    run = given_up().run
    with pytest.raises(FencedError):
        attempt.current(run, 1)
    for owner in (OWNER, OTHER_OWNER):
        with pytest.raises(PrefixClaimedError, match="its run was deleted"):
            attempt.check_owner(run, owner, url="s3://bucket/run")
    assert entry_for(Adopt(str(OWNER.deleted)), run, owner=OTHER_OWNER, now=SAVED.now) is None


def test_a_deleted_checkpoint_that_another_finalizer_keeps_claims_nothing_anew() -> None:
    seen = deleted(History(owner=None))
    kept = replace(seen, checkpoint=replace(seen.checkpoint, finalizers=("theirs",)))
    assert plan.store_actions(kept) == ()


def test_a_new_checkpoint_at_the_prefix_reports_what_a_deleted_run_left_there() -> None:
    fault = fault_of(observed(given_up()))
    assert fault is not None
    assert (fault.reason, fault.stalled) == (Reason.PREFIX_CLAIMED, True)
    assert "left of a run that was deleted" in fault.message
    assert plan.store_actions(observed(given_up())) == ()


# What does not work


UNAVAILABLE = StoreFault(Reason.STORE_UNAVAILABLE, "The store does not answer.")
NO_SECRET = StoreFault(Reason.SECRET_NOT_FOUND, "Secret s3-keys does not exist.")
IN_THE_WAY = [
    pytest.param({"fault": UNAVAILABLE, "run": None, "now": None}, "does not answer", id="the store is gone"),
    pytest.param({"fault": NO_SECRET, "run": None, "now": None}, "does not exist", id="the Secret is gone"),
    pytest.param({"refusal": "objects are locked"}, "locked", id="deletions are refused"),
    pytest.param({"pods": (pod(),)}, "has not ended", id="pods never end"),
    pytest.param({"run": replace(SAVED.run, unknown_critical="Future")}, "Upgrade", id="a newer version wrote the log"),
]


@pytest.mark.parametrize(("changes", "why"), IN_THE_WAY)
def test_what_is_in_the_way_for_an_hour_leaves_the_data_and_says_what_is_left(
    changes: dict[str, Any], why: str
) -> None:
    seen = deleted(given_up(), **changes)
    assert why in in_the_way(seen)
    assert Erase() not in plan.store_actions(seen)
    assert release(later(seen, minutes=59)) is None
    released = release(replace(later(seen, hours=1), now=seen.now))
    assert released is not None
    assert why in released.retained
    assert "What is left under s3://bucket/run" in released.retained
    assert finalizer.last_word(released).reason == EventReason.DATA_RETAINED


def test_what_can_be_deleted_is_deleted_however_long_it_takes() -> None:
    assert release(later(deleted(given_up()), days=3)) is None


@pytest.mark.parametrize(
    ("history", "changes", "why"),
    [
        pytest.param(SAVED, {"owner": OTHER_OWNER}, f"belongs to {OWNER}", id="the run belongs to another owner"),
        pytest.param(
            None, {"rival": Key("team", "outer")}, "in another namespace", id="the prefix overlaps another one"
        ),
        pytest.param(None, {"fault": NO_SECRET, "namespace_deleted": True}, "s3-keys", id="namespace and Secret go"),
        pytest.param(SAVED, {"policy": "Retain"}, "Retain", id="the user changes their mind"),
    ],
)
def test_what_waiting_cannot_change_leaves_the_data_at_once(
    history: History | None, changes: dict[str, Any], why: str
) -> None:
    seen = deleted(history, **changes)
    released = release(seen)
    assert released is not None
    assert why in released.retained
    assert plan.store_actions(seen) == ()


# What is in the bucket


@pytest.fixture
def store() -> MemoryStore:
    """A run of two attempts: snapshots, one of them half retired, leftovers, compactions, and things of others."""
    store = MemoryStore()
    trainer = Trainer(store).start()
    trainer.commit(100)
    trainer.start()
    trainer.commit(200)
    trainer.report(230)
    store.put(f"{layout.SaveFolder(300, 2, 'aaaaaaaa', trainer.run.short_identity).path}/__0_0.distcp", b"half")
    store.put("_probe/0123456789abcdef/old", b"")
    store.put("_log-compacted/00000000000000000001-00000000000000000200.gz", b"derived")
    for key in OTHERS:
        store.put(key, b"another owner's")
    return store


OTHERS = {
    "notes.txt",
    "_probe/notes.txt",
    "step-100/evaluation/results.json",
    "step-7/.metadata",
    "step-7/__0_0.distcp",
    "step-400/_log/00000000000000000001.json",
    "step-400/0001-aaaaaaaa/__0_0.distcp",
    "step-400/.metadata",
    "step-500/0001-aaaaaaaa/__0_0.distcp",
    "nested/_log/00000000000000000001.json",
    "nested/step-100/0001-aaaaaaaa/__0_0.distcp",
}


def without_tombstone(store: Store) -> set[str]:
    return {key for key in keys(store) if layout.log_number(key) is None}


def keys(store: Store) -> set[str]:
    return {info.key for info in store.list()}


def delete(store: Store, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """What the passes of one operator process do."""
    session = session_on_any(store, monkeypatch)
    given_up_before = session.log.refresh().owner == OWNER.deleted
    for action in (Erase(),) if given_up_before else (End(), Erase()):
        assert [outcome.error for outcome in carry_out([action], session, owner=OWNER)] == [None]
    return session


def session_on_any(store: Store, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)
    session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
    session.probe()
    return session


def test_all_of_the_run_is_deleted_but_a_tombstone_and_nothing_of_others(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = RunLog(store, writer="reader").refresh().head
    session = delete(store, monkeypatch)
    assert keys(store) - {layout.log_key(head + 1)} == OTHERS
    run = session.log.refresh()
    assert (run.erased, run.remnants, run.owner) == (True, False, OWNER.deleted)
    again = Trainer(store).start().run
    assert again.highest_attempt == 1, "the prefix is as good as new"
    assert (again.first, again.snapshots) == (head + 2, {}), "and its numbers continue"


def test_what_stays_is_listed_in_the_last_event(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_on_any(store, monkeypatch)
    _, erased = carry_out([End(), Erase()], session, owner=OWNER)
    assert erased.survey is not None
    run = session.log.refresh()
    seen = changed(deleted(History(owner=None)), run=run, survey=erased.survey.with_pointers([7]))
    assert plan.store_actions(seen) == ()
    released = release(seen)
    assert released is not None
    message = finalizer.last_word(released).message
    for named in ("nested/ (has a run log", "step-400/ (has a run log", "step-7/.metadata (", "and "):
        assert named in message
    assert len(message) < 1024


def test_two_operators_delete_one_run_and_the_slow_one_leaves_the_next_run_alone(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one is stopped before each of its deletions in turn."""
    for at in range(1, 40):
        copy = MemoryStore()
        for info in store.list():
            copy.put(info.key, store.get(info.key, max_bytes=1 << 20).data)
        slow = Stopped(copy, at)
        slow.meanwhile = partial(next_run, copy, monkeypatch)
        delete(slow, monkeypatch)
        if slow.stopped:
            trainer = Trainer(copy)
            assert {s.step for s in trainer.run.snapshots.values() if s.live} == {100, 900}
            assert {key for key in keys(copy) if key.startswith("step-900/")} >= {"step-900/.metadata"}
            assert keys(copy) >= OTHERS
            trainer.start().commit(901)
    assert not slow.stopped, "all were tried"


def next_run(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    delete(store, monkeypatch)
    trainer = Trainer(store).start()
    trainer.commit(100)
    trainer.commit(900)


class Stopped(DyingStore):
    """Something happens before one of its deletions, those of its probes left aside."""

    def __init__(self, store: Store, at: int) -> None:
        super().__init__(store, at=10_000, after=False)
        self.until, self.stopped = at, False
        self.meanwhile: Callable[[], None] = lambda: None

    def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        self.until -= not keys or not keys[0].startswith(layout.PROBE_FOLDER)
        if self.until == 0 and not self.stopped:
            self.stopped = True
            self.meanwhile()
        self._inner.delete(keys)


def test_a_run_that_belongs_to_another_owner_is_not_touched(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(store)
    session = session_on(store, monkeypatch)
    carry_out([End(), Erase()], session, owner=OTHER_OWNER)
    carry_out([Erase()], session, owner=OWNER)
    assert keys(store) == before


def deaths() -> list[Any]:
    return [
        pytest.param(at, after, id=f"{'after' if after else 'before'} request {at}")
        for at in range(1, 70)
        for after in (False, True)
    ]


@pytest.mark.parametrize(("at", "after"), deaths())
def test_killed_at_any_request_it_shows_no_half_a_run_and_the_next_operator_continues(
    at: int, after: bool, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {key for key in keys(store) if key.startswith("step-")}
    dying = DyingStore(store, at=at, after=after)
    try:
        delete(dying, monkeypatch)
    except Killed:
        pass
    else:
        pytest.skip(f"a deletion makes fewer than {at} requests")
    check_no_reader_sees_half_a_run(store, whole)
    delete(store, monkeypatch)
    assert without_tombstone(store) == OTHERS
    assert RunLog(store, writer="reader").refresh().erased


def check_no_reader_sees_half_a_run(store: MemoryStore, whole: set[str]) -> None:
    """Check that a reader sees a whole run of ours, a run without an owner, no log at all, or is refused."""
    try:
        run = RunLog(store, writer="reader").refresh()
    except LogError:
        assert keys(store) & whole <= OTHERS, "the log goes last"
        return
    if run.owner == OWNER:
        assert whole <= keys(store)
    else:
        assert run.owner == OWNER.deleted
        assert not run.erased or keys(store) & whole <= OTHERS, "the log goes last"


def test_a_deletion_makes_no_more_requests_than_are_tried_above(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = DyingStore(store, at=10_000, after=False)
    delete(counted, monkeypatch)
    assert counted.calls <= deaths()[-1].values[0]


def test_what_a_stale_writer_added_after_the_end_is_a_reason_to_stop(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_on(store, monkeypatch)
    carry_out([End()], session, owner=OWNER)
    number = session.log.run.head
    store.put(layout.log_key(number + 7), b"{}")
    (outcome,) = carry_out([Erase()], session, owner=OWNER)
    assert isinstance(outcome.error, LogError)
    assert layout.log_key(1) in keys(store)


def test_an_entry_against_the_rules_after_the_end_costs_the_prefix_nothing(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out([End()], session_on(store, monkeypatch), owner=OWNER)
    tombstone = RunLog(store, writer="reader").refresh().head
    RunLog(store, writer="without rules").append(lambda _: SaveRequested("late", 1))
    delete(store, monkeypatch)
    assert {layout.log_number(key) for key in keys(store)} - {None} == {tombstone, tombstone + 1}
    run = RunLog(store, writer="reader").refresh()
    assert (run.head, run.erased) == (tombstone + 1, True)
    assert Trainer(store).start().run.first == tombstone + 2


def test_the_next_run_deletes_what_is_left_below_the_tombstone_and_nothing_above_it(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number above it that became free could be taken by a writer that was stopped before its claim."""
    carry_out([End()], session_on(store, monkeypatch), owner=OWNER)
    tombstone = RunLog(store, writer="reader").refresh().head
    RunLog(store, writer="without rules").append(lambda _: SaveRequested("late", 1))
    RunLog(store, writer="without rules").append(lambda _: SaveRequested("later", 1))
    remnant = store.get(layout.log_key(tombstone - 1), max_bytes=1 << 20).data
    delete(store, monkeypatch)
    store.put(layout.log_key(tombstone - 1), remnant)
    trainer = Trainer(store).start().start()
    session = session_on(store, monkeypatch)
    soon = session.now() + 2 * HOUR
    monkeypatch.setattr(session, "now", lambda: soon)
    (outcome,) = carry_out([CollectOrphans(2)], session, owner=OWNER)
    assert outcome.error is None
    numbers = {layout.log_number(key) for key in keys(store)} - {None}
    assert numbers == set(range(tombstone, trainer.run.head + 1))


def test_a_compaction_does_not_make_a_half_deleted_log_readable(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_on(store, monkeypatch)
    carry_out([End()], session, owner=OWNER)
    deleted_first: list[str] = []
    monkeypatch.setattr(session, "delete", deleted_first.extend)
    carry_out([Erase()], session, owner=OWNER)
    log = [key for key in deleted_first if key.startswith("_log")]
    assert log[0].startswith("_log-compacted/")
    assert log[1:] == [layout.log_key(number) for number in range(1, session.log.refresh().head)]


def test_names_for_absent_owners_fit_and_are_no_checkpoints() -> None:
    assert OWNER.deleted.is_deleted
    assert not OWNER.is_deleted
    assert str(OWNER.deleted) == f"{OWNER.cluster}/{KEY.namespace}/{KEY.name}:deleted"
