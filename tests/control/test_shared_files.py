"""Purges by the operator leave what other snapshots share, and take it once none does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.act.execute import carry_out, verify
from checkpoint_operator.decide.plan import store_actions
from checkpoint_operator.model.actions import Configure, Purge, Retire, Verify
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.events import for_entries
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core import fold
from checkpoint_sidecar.core import log as log_module
from checkpoint_sidecar.core.compaction import RawEntry, encode, span_of, unpack
from checkpoint_sidecar.core.errors import ChangeRefusedError
from checkpoint_sidecar.core.layout import compaction_key, log_key
from checkpoint_sidecar.core.log import PurgeStarted, SnapshotCommittedSharing, SnapshotVerified
from checkpoint_sidecar.core.orphans import orphaned
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.core.purging import purge_due, release
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.shared_files import MOST_FILES
from checkpoint_sidecar.core.sharing import distinct_bytes, freed_bytes, left_bytes, releasable
from checkpoint_sidecar.engine.verify import VerificationPass, verify_snapshot
from checkpoint_sidecar.manage.checking import check_snapshot
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from control.sessions import session_on
from doubles.dying import DyingStore, Killed
from doubles.memory import MemoryStore
from support.builders import OBJECT_UID, OWNER
from support.observations import observed
from support.trainers import Trainer

KEEP_ONE = RetentionPolicy(keep_last=1, grace_seconds=0)
FROZEN = {"__0_s0.distcp": bytes(5000), "__1_s0.distcp": bytes(6000)}


class Scene:
    """A run whose second snapshot shares both settled files of the first one, and whose third shares one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = MemoryStore()
        self.trainer = Trainer(self.store).start()
        self.first = self.trainer.commit(100, settled=FROZEN)
        self.second = self.trainer.commit(200, shared=dict.fromkeys(FROZEN, self.first))
        self.third = self.trainer.commit(300, shared={"__0_s0.distcp": self.first})
        self.session = session_on(self.store, monkeypatch)
        self.act(Configure(OBJECT_UID, 1, Policy(retention=KEEP_ONE)))
        self.act(*(Verify(each.id) for each in (self.first, self.second, self.third)))

    def act(self, *actions: Any) -> None:
        outcomes = carry_out(actions, self.session, owner=OWNER)
        assert [outcome.error for outcome in outcomes] == [None] * len(actions)

    def purge(self, *snapshots: Snapshot) -> None:
        for each in snapshots:
            self.act(Retire(each.id), Purge(each.id))

    def reopened(self, monkeypatch: pytest.MonkeyPatch) -> Run:
        """What the next operator reads."""
        self.session = session_on(self.store, monkeypatch)
        return self.run

    @property
    def run(self) -> Run:
        return self.session.log.refresh()

    @property
    def seen(self) -> Observed:
        """What the operator sees in its next pass."""
        return self.seen_with()

    def seen_with(self, **spec: Any) -> Observed:
        return replace(observed(None, **spec), run=self.run, now=self.session.now())

    def state(self, snapshot: Snapshot) -> SnapshotState:
        return self.run.snapshots[snapshot.id].state

    def names(self, snapshot: Snapshot) -> list[str]:
        return [info.key.rpartition("/")[2] for info in self.store.list(f"{snapshot.commit.path}/")]

    @property
    def data(self) -> int:
        """Bytes of all saves, without manifests."""
        found = [info for info in self.store.list("step-") if info.key.count("/") == 2]
        return sum(info.size for info in found if not info.key.endswith("manifest.json"))


def test_a_purge_leaves_what_others_share_and_the_account_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    live = [each for each in scene.run.snapshots.values() if each.live]
    assert distinct_bytes(live) == scene.data
    scene.purge(scene.first)
    assert scene.state(scene.first) is SnapshotState.PURGED
    assert scene.names(scene.first) == sorted(FROZEN)
    for each in (scene.second, scene.third):
        assert verify_snapshot(scene.store, each.commit, level="Checksums") == each.commit.bytes
    run = scene.run
    assert sum(left_bytes(run, each) for each in run.snapshots.values()) == scene.data
    assert distinct_bytes([each for each in run.snapshots.values() if each.live]) == scene.data


def test_what_fewer_need_is_released_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.purge(scene.first)
    assert releasable(scene.run) == ()
    scene.purge(scene.second)
    assert releasable(scene.run) == (scene.first.id,)
    assert scene.first.id in purge_due(judge(scene.run, now=scene.session.now()))
    assert freed_bytes(scene.run, scene.run.snapshots[scene.first.id]) == 6000
    scene.session.log.append(lambda run: release(run, scene.first.id))
    assert scene.state(scene.first) is SnapshotState.PURGING
    assert left_bytes(scene.run, scene.run.snapshots[scene.first.id]) == 11000
    scene.act(Purge(scene.first.id))
    assert scene.names(scene.first) == ["__0_s0.distcp"]
    fourth = scene.trainer.commit(400)
    scene.session.log.refresh()
    scene.act(Verify(fourth.id))
    scene.purge(scene.third)
    scene.act(Purge(scene.first.id))
    assert scene.names(scene.first) == []
    assert releasable(scene.run) == ()
    freed = [entry.body.bytes for entry in entries(scene.store) if isinstance(entry.body, log_module.SnapshotPurged)]
    assert sum(freed) + scene.data == sum(each.own_bytes for each in scene.run.snapshots.values())


@pytest.mark.parametrize(
    "retention", [None, RetentionPolicy(keep_last=1, dry_run=True)], ids=["without a policy", "in a dry run"]
)
def test_what_nothing_needs_goes_whatever_the_policy_says(
    retention: RetentionPolicy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(monkeypatch)
    scene.purge(scene.first, scene.second)
    scene.act(Configure(OBJECT_UID, 2, Policy(retention=retention)))
    assert planned_purges(scene.seen_with(suspend=True)) == []
    assert planned_purges(scene.seen) == [scene.first.id]
    scene.act(Purge(scene.first.id))
    assert scene.names(scene.first) == ["__0_s0.distcp"]
    assert planned_purges(scene.seen) == []


def test_an_orphan_collector_leaves_what_a_purge_left(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.purge(scene.first)
    scene.trainer.start()
    listed = {info.key: info.modified for info in scene.store.list("step-")}
    assert orphaned(scene.run, listed, now=scene.session.now()) == ()


def test_a_purge_that_keeps_too_little_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.act(Retire(scene.first.id))
    scene.session.log.append(lambda _: PurgeStarted(scene.first.id, "0:0"))
    assert scene.state(scene.first) is SnapshotState.RETIRED
    scene.act(Purge(scene.first.id))
    assert scene.names(scene.first) == sorted(FROZEN)


def test_a_commit_between_the_plan_and_the_purge_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.purge(scene.first)
    scene.purge(scene.second)
    # Only the file of rank 0 is needed now, until this commit, which the operator has not read yet.
    late = Trainer.commit(scene.trainer, 400, shared=dict.fromkeys(FROZEN, scene.first))
    scene.act(Purge(scene.first.id))
    assert scene.names(scene.first) == sorted(FROZEN)
    assert verify_snapshot(scene.store, late.commit, level="Checksums") == late.commit.bytes


def test_a_manifest_that_cannot_be_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    for each in (scene.first, scene.second):
        scene.store.put(f"{each.commit.path}/manifest.json", b"damaged")
    scene.purge(scene.first)
    assert scene.names(scene.first) == sorted(FROZEN)
    assert verify_snapshot(scene.store, scene.third.commit, level="Checksums") == scene.third.commit.bytes


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("which", ["the purge that keeps", "the purge that releases"])
def test_a_purge_that_is_killed_at_any_request_is_finished_by_the_next_operator(
    which: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 1
    while True:
        scene = Scene(monkeypatch)
        scene.act(Retire(scene.first.id))
        if which == "the purge that releases":
            scene.act(Purge(scene.first.id))
            scene.purge(scene.second)
        left = ["__0_s0.distcp"] if which == "the purge that releases" else sorted(FROZEN)
        dying = DyingStore(scene.store, at=calls, after=after)
        monkeypatch.setattr(scene.session, "store", dying)
        scene.session.log.store = dying
        try:
            carry_out([Purge(scene.first.id)], scene.session, owner=OWNER)
        except Killed:
            pass
        else:
            break
        readable = [each for each in scene.reopened(monkeypatch).snapshots.values() if each.live]
        for each in readable:
            assert verify_snapshot(scene.store, each.commit, level="Checksums") == each.commit.bytes
        scene.act(Purge(scene.first.id))
        assert scene.state(scene.first) is SnapshotState.PURGED
        assert scene.names(scene.first) == left
        run = scene.run
        assert releasable(run) == ()
        assert sum(left_bytes(run, each) for each in run.snapshots.values()) == scene.data
        calls += 1
    assert calls > 6, "the loop has tried every call of a purge"


def planned_purges(seen: Observed) -> list[str]:
    return [each.snapshot for each in store_actions(seen) if isinstance(each, Purge)]


class Crowd(Scene):
    """A run whose second and third snapshots share more files of the first one, together, than a purge can leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = [f"__0_s{number}.distcp" for number in range(MOST_FILES + 2)]
        self.store = MemoryStore()
        self.trainer = Trainer(self.store).start()
        self.first = self.trainer.commit(100, settled=dict.fromkeys(names, b"frozen"))
        self.second = self.trainer.commit(200, shared=dict.fromkeys(names[:MOST_FILES], self.first))
        self.third = self.trainer.commit(300, shared=dict.fromkeys(names[2:], self.first))
        self.session = session_on(self.store, monkeypatch)
        self.act(Configure(OBJECT_UID, 1, Policy(retention=KEEP_ONE)))
        self.act(Verify(self.third.id), Retire(self.first.id))


def test_a_snapshot_that_others_need_too_much_of_stays_whole_until_they_need_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Crowd(monkeypatch)
    names = scene.names(scene.first)
    seen = scene.seen
    assert planned_purges(seen) == []
    scene.act(Purge(scene.first.id))
    assert scene.state(scene.first) is SnapshotState.RETIRED
    assert scene.names(scene.first) == names
    assert verify_snapshot(scene.store, scene.first.commit, level="Checksums") == scene.first.commit.bytes
    cause = "other snapshots share 4098 of its files, and a purge can leave at most 4096"
    status = status_of(seen)
    (judged,) = (each for each in status["conditions"] if each["type"] == "RetentionEnforced")
    assert (judged["status"], judged["reason"]) == ("True", "Enforced")
    assert f"except {scene.first.id}: {cause}. It stays retired; retire some of those snapshots" in judged["message"]
    (pending,) = status["pendingPurge"]
    assert pending["bytes"] == scene.first.own_bytes - 4098 * len(b"frozen")
    run = StoredRun(scene.store)
    run.verify(300, checksums=True, record=True, without_operator=True)
    assert run.prune_plan().blocked == f"{scene.first.id} stays whole: {cause}. Retire some of those snapshots"
    with pytest.raises(ChangeRefusedError, match=f"{cause}. Remove some of those snapshots first"):
        run.remove(scene.first.id, force=True, without_operator=True)
    assert scene.state(scene.first) is SnapshotState.RETIRED
    scene.purge(scene.second)
    assert planned_purges(scene.seen) == [scene.first.id]
    scene.act(Purge(scene.first.id))
    assert scene.state(scene.first) is SnapshotState.PURGED
    assert len(scene.names(scene.first)) == MOST_FILES
    assert verify_snapshot(scene.store, scene.third.commit, level="Checksums") == scene.third.commit.bytes


def test_an_event_says_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    said = [each.message for each in for_entries(entries(scene.store), scene.run) if "is committed" in each.message]
    assert ["of it shared with earlier snapshots" in message for message in said] == [False, True, True]


def entries(store: Store) -> list[log_module.StoredEntry]:
    log = RunLog(store, writer="test")
    head = log.refresh().head
    return list(log.entries(range(1, head + 1)))


def test_a_shared_file_that_is_damaged_counts_against_all_that_need_it_until_it_is_intact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    key = f"{scene.first.commit.path}/__1_s0.distcp"
    scene.store.put(key, b"short")
    scene.trainer.commit(400)
    scene.session.log.refresh()
    scene.act(Verify(scene.second.id))
    snapshots = scene.run.snapshots
    assert [snapshots[each.id].failures for each in (scene.first, scene.second, scene.third)] == [1, 1, 0]
    assert snapshots[scene.first.id].damaged == {"__1_s0.distcp"}
    scene.store.put(key, FROZEN["__1_s0.distcp"])
    scene.session.log.append(lambda _: SnapshotVerified(scene.second.id, "Checksums", passed=True))
    assert scene.run.snapshots[scene.second.id].failures == 0
    assert scene.run.snapshots[scene.first.id].damaged == frozenset()


def test_a_version_that_knows_no_sharing_neither_appends_nor_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.act(Retire(scene.first.id))
    before = {info.key for info in scene.store.list()}
    without = {name: kind for name, kind in log_module.KINDS.items() if kind is not SnapshotCommittedSharing}
    monkeypatch.setattr(log_module, "KINDS", without)
    monkeypatch.delitem(fold.FOLD, SnapshotCommittedSharing)
    old = session_on(scene.store, monkeypatch)
    assert old.log.run.unknown_critical == "SnapshotCommittedSharing"
    (outcome,) = carry_out([Purge(scene.first.id)], old, owner=OWNER)
    assert outcome.error is not None
    assert "SnapshotCommittedSharing" in str(outcome.error)
    assert {info.key for info in scene.store.list()} >= before
    with pytest.raises(Exception, match="SnapshotCommittedSharing"):
        Trainer(scene.store).start()


def test_a_compacted_log_says_the_same_of_shared_files(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.purge(scene.first)
    head = scene.run.head
    raw = []
    for number in range(1, head + 1):
        stored = scene.store.get(log_key(number), max_bytes=1 << 20)
        raw.append(RawEntry(number, stored.data, stored.info.modified))
    packed, span = encode(raw), span_of(compaction_key(1, head))
    assert packed is not None
    assert span is not None
    again = replay(entry.decode() for entry in unpack(packed, span))
    run = scene.run
    assert again.snapshots[scene.first.id].kept == run.snapshots[scene.first.id].kept != ""
    assert again.sharers == run.sharers


def test_evidence_against_a_shared_file_is_not_refuted_by_what_a_pass_has_read_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    same_pass = VerificationPass()
    assert verify(scene.store, scene.second, level="Checksums", same_pass=same_pass).check.passed
    key = f"{scene.first.commit.path}/__0_s0.distcp"
    scene.store.put(key, bytes(4999) + b"!")
    damaged = SnapshotVerified(scene.second.id, "Checksums", False, "ChecksumMismatch", damaged_file=key)
    scene.session.log.append(lambda _: damaged)
    third = scene.run.snapshots[scene.third.id]
    assert third.failures == 1
    assert not verify(scene.store, third, level="Checksums", same_pass=same_pass).check.passed
    assert not check_snapshot(scene.store, third, checksums=True, same_pass=same_pass).passed
