"""``Checkpointer`` in one process, without a process group, on a real store; no operator anywhere."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import checkpoint_sidecar
from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core import layout, manifest
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    ConfigurationError,
    FencedError,
    PrefixClaimedError,
    StoreError,
)
from checkpoint_sidecar.core.heartbeat import decode
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    EvictionNoticed,
    Owner,
    PodIdentity,
    SaveRequested,
    SnapshotCommitted,
)
from checkpoint_sidecar.core.policy import OverwritePolicy, SavePolicy
from checkpoint_sidecar.runs.heartbeat import read_heartbeat
from checkpoint_sidecar.store.fsspec import misdirected
from training.checkpointer_runs import EVERY_STEP, RunStorage, Training, started, train_until

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


# Saving and restoring


def test_an_interrupted_run_ends_like_an_undisturbed_one(storage: RunStorage) -> None:
    storage.train(3)
    resumed = storage.train(7)
    assert storage.trained == [1, 2, 3, 4, 5, 6, 7]
    assert resumed.fingerprint() == RunStorage(f"{storage.url}-undisturbed").train(7).fingerprint()


def test_saves_happen_when_due_and_at_the_end(storage: RunStorage) -> None:
    storage.train(5)
    commits = storage.bodies(SnapshotCommitted)
    assert [(c.step, c.trigger) for c in commits] == [(2, "Schedule"), (4, "Schedule"), (5, "Final")]
    assert [c.parent for c in commits] == ["", commits[0].snapshot, commits[1].snapshot]


def test_a_last_step_that_is_saved_is_not_saved_again(storage: RunStorage) -> None:
    storage.train(4)
    assert [c.trigger for c in storage.bodies(SnapshotCommitted)] == ["Schedule", "Schedule"]


def test_a_finished_run_trains_nothing_more(storage: RunStorage) -> None:
    storage.train(4)
    storage.train(4)
    assert storage.trained == [1, 2, 3, 4]
    assert len(storage.run.snapshots) == 2


def test_a_commit_says_what_was_saved(storage: RunStorage) -> None:
    training = storage.train(2)
    snapshot = storage.snapshot(2)
    folder = layout.parse_save_folder(snapshot.commit.path)
    stored = manifest.decode(
        storage.store.get(folder.manifest, max_bytes=1 << 20).data,
        expected_digest=snapshot.commit.manifest_digest,
        subject="",
    )
    assert snapshot.commit.bytes == stored.size > 1000
    assert snapshot.commit.files == len(stored.files)
    assert float(snapshot.commit.metrics["loss"]) > 0
    assert 0 < snapshot.commit.blocked_seconds <= snapshot.commit.seconds
    assert training.seen == {"samples": 3}


def test_save_returns_when_the_snapshot_is_committed(storage: RunStorage) -> None:
    with started(storage) as checkpointer:
        assert checkpointer.save(1) == storage.snapshot(1).id
        assert storage.snapshot(1).commit.trigger == "Manual"


def test_torchs_own_reader_finds_every_step(storage: RunStorage) -> None:
    from torch.distributed.checkpoint import FileSystemReader, load

    training = storage.train(2)
    weights = {"model": {name: torch.zeros_like(t) for name, t in training.model.state_dict().items()}}
    load(weights, storage_reader=FileSystemReader(f"{storage.url.removeprefix('file://')}/step-2"))
    assert all(torch.equal(weights["model"][name], t) for name, t in training.model.state_dict().items())


def test_training_continues_while_the_upload_runs(storage: RunStorage, on_upload: Any) -> None:
    let_go = threading.Event()
    on_upload(lambda key: let_go.wait(10) if "step-2/" in key else None)
    training = Training()
    with started(storage, training, save=SavePolicy(every_steps=2, every_seconds=None)) as checkpointer:
        for step in (1, 2, 3):
            training.train(step)
            checkpointer.step(step)
        assert not storage.run.snapshots
        let_go.set()
        checkpointer.wait()
    # What was saved is the state of step 2, although step 3 has changed every weight since.
    restored = Training()
    with Checkpointer(restored.state, storage.url) as checkpointer:
        checkpointer.restore()
        assert restored.fingerprint() == RunStorage(f"{storage.url}-undisturbed").train(2).fingerprint()


def test_a_second_save_waits_for_the_first(storage: RunStorage, on_upload: Any) -> None:
    on_upload(lambda _: threading.Event().wait(0.02))
    storage.train(4, save=EVERY_STEP)
    assert [c.step for c in storage.bodies(SnapshotCommitted)] == [1, 2, 3, 4]


def test_a_second_save_may_be_skipped_instead(storage: RunStorage, on_upload: Any) -> None:
    let_go = threading.Event()
    on_upload(lambda key: let_go.wait(10) if "step-1/" in key else None)
    training = Training()
    save = SavePolicy(every_steps=1, every_seconds=None)
    with started(storage, training, save=save, while_saving="skip") as checkpointer:
        checkpointer.step(1)
        checkpointer.step(2)
        let_go.set()
        checkpointer.wait()
        checkpointer.step(3)
    assert [c.step for c in storage.bodies(SnapshotCommitted)] == [1, 3]


def test_a_failed_upload_surfaces_at_the_next_step_and_leaves_nothing(storage: RunStorage, on_upload: Any) -> None:
    failures = [StoreError("upload", "a key", "the disk is full")]

    def fail_once(key: str) -> None:
        if failures and key.endswith(".distcp"):
            raise failures.pop()

    on_upload(fail_once)
    training = Training()
    with started(
        storage, training, save=SavePolicy(every_steps=2, every_seconds=None, on_failure="Raise")
    ) as checkpointer:
        with pytest.raises(StoreError, match="the disk is full"):
            train_until(lambda: False, checkpointer, training)
        assert not [info.key for info in storage.store.list("step-")]
        checkpointer.step(1000)
    assert [c.step for c in storage.bodies(SnapshotCommitted)] == [1000]


def test_a_failed_upload_surfaces_at_the_latest_when_the_run_is_closed(storage: RunStorage, on_upload: Any) -> None:
    on_upload(lambda _: (_ for _ in ()).throw(StoreError("upload", "a key", "the disk is full")))
    with pytest.raises(StoreError, match="the disk is full"), started(storage, save=EVERY_STEP) as checkpointer:
        checkpointer.step(1)


def test_an_error_of_the_training_loop_is_not_replaced(storage: RunStorage, on_upload: Any) -> None:
    on_upload(lambda _: (_ for _ in ()).throw(StoreError("upload", "a key", "the disk is full")))
    with pytest.raises(ZeroDivisionError), started(storage, save=EVERY_STEP) as checkpointer:  # noqa: PT012
        checkpointer.step(1)
        raise ZeroDivisionError


# Overwrite policy


@pytest.mark.parametrize(
    "in_the_log", [pytest.param(False, id="from-the-argument"), pytest.param(True, id="from-the-log")]
)
@pytest.mark.parametrize("policy", ["Never", "Skip", "Replace"])
def test_saving_a_step_twice_follows_the_overwrite_policy(
    storage: RunStorage, policy: OverwritePolicy, in_the_log: bool
) -> None:
    if in_the_log:
        storage.restored_step()
        storage.configure(overwrite=policy)
    with started(storage, overwrite="Never" if in_the_log else policy) as checkpointer:
        first = checkpointer.save(1)
        if policy == "Never":
            with pytest.raises(CheckpointExistsError, match="Checkpoint already exists"):
                checkpointer.save(1)
        else:
            assert (checkpointer.save(1) == first) is (policy == "Skip")
    commits = storage.bodies(SnapshotCommitted)
    assert [c.replaces for c in commits] == ["", first][: 1 + (policy == "Replace")]


def test_an_upload_whose_step_was_saved_meanwhile_is_given_up(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(storage, overwrite="Skip") as checkpointer:
        first = checkpointer.save(1)
        # Past the checks before the upload, as if another save of the step had been committed during it.
        monkeypatch.setattr(AttemptSession, "admit", lambda *_: None)
        assert checkpointer.save(1) == first
    assert len([info for info in storage.store.list("step-") if info.key.endswith("manifest.json")]) == 1


# Whose run it is


def test_a_prefix_of_another_run_is_refused(storage: RunStorage) -> None:
    storage.train(1, run="mine")
    with pytest.raises(PrefixClaimedError, match="claimed by local/local/mine"):
        storage.train(2, run="yours")
    assert len(storage.bodies(AttemptStarted)) == 1


def test_a_later_attempt_fences_the_first(storage: RunStorage, quick_polls: None) -> None:
    training = Training()
    with pytest.raises(FencedError, match="attempt 2 has started"), started(storage, training) as first:  # noqa: PT012
        first.save(1)
        with started(storage, takeover_seconds=0.0):
            with pytest.raises(FencedError):
                train_until(lambda: False, first, training)
            with pytest.raises(FencedError):
                first.save(2)
    assert [c.attempt for c in storage.bodies(SnapshotCommitted)] == [1]


def test_a_fenced_upload_is_never_committed(storage: RunStorage, on_upload: Any) -> None:
    let_go = threading.Event()
    on_upload(lambda key: let_go.wait(10) if "step-1/" in key else None)
    with pytest.raises(FencedError), started(storage, save=EVERY_STEP) as first:  # noqa: PT012
        first.step(1)
        with started(storage, takeover_seconds=0.0):
            let_go.set()
            first.wait()
    assert not storage.run.snapshots
    assert not [info.key for info in storage.store.list("step-")]


def test_an_attempt_says_goodbye_so_that_the_next_does_not_wait(storage: RunStorage) -> None:
    storage.train(3)
    progress = decode(storage.store.get("_progress.json", max_bytes=4096).data)
    assert progress is not None
    assert (progress.attempt, progress.step, progress.ended) == (1, 3, True)


def test_a_fenced_attempt_that_hangs_does_not_speak_in_the_name_of_its_successor(
    storage: RunStorage, quick_polls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoint_sidecar.attempt.heartbeat.INTERVAL_SECONDS", 0.02)
    training = Training()
    with pytest.raises(FencedError), started(storage, training) as first:  # noqa: PT012
        with started(storage, takeover_seconds=0.0):
            pass
        time.sleep(0.3)  # the first one sits in a step
        train_until(lambda: False, first, training)
    stored = read_heartbeat(storage.store)
    assert stored is not None
    assert (stored.heartbeat.attempt, stored.heartbeat.ended) == (2, True)


# Word from the operator, through the log


def test_a_save_is_made_on_request_and_says_which(storage: RunStorage, quick_polls: None) -> None:
    training = Training()
    with started(storage, training) as checkpointer:
        storage.append(SaveRequested("before-the-upgrade", 1))
        train_until(lambda: bool(storage.run.snapshots), checkpointer, training)
    (commit,) = storage.bodies(SnapshotCommitted)
    assert (commit.trigger, commit.save_request) == ("Request", "before-the-upgrade")


def test_a_notice_of_eviction_makes_one_save(storage: RunStorage, quick_polls: None) -> None:
    training = Training()
    with started(storage, training) as checkpointer:
        storage.append(EvictionNoticed(1, PodIdentity("llama-0", "u"), "drained"))
        train_until(lambda: bool(storage.run.snapshots), checkpointer, training)
    assert [c.trigger for c in storage.bodies(SnapshotCommitted)] == ["Eviction"]


def test_a_new_policy_is_followed_while_training(storage: RunStorage, quick_polls: None) -> None:
    training = Training()
    with started(storage, training) as checkpointer:
        storage.configure(save=EVERY_STEP)
        train_until(lambda: bool(storage.run.snapshots), checkpointer, training)
    assert storage.bodies(SnapshotCommitted)[0].trigger == "Schedule"


# Misuse


def test_a_pod_that_was_not_injected_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHECKPOINT_URL", raising=False)
    with pytest.raises(ConfigurationError, match=r"checkpoint-operator\.dev/checkpoint"):
        Checkpointer.from_env(Training().state)


def test_an_injected_pod_needs_no_arguments(storage: RunStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = {"CHECKPOINT_POD_NAME": "llama-0", "CHECKPOINT_POD_UID": "u1", "CHECKPOINT_GRACE_SECONDS": "90"}
    for name, value in {"CHECKPOINT_RUN": "c1/team/llama", "CHECKPOINT_URL": storage.url, **pod}.items():
        monkeypatch.setenv(name, value)
    with Checkpointer.from_env(Training().state) as checkpointer:
        checkpointer.restore()
    assert storage.run.owner == Owner("c1", "team", "llama")
    assert storage.bodies(AttemptStarted)[0].pods == (PodIdentity("llama-0", "u1"),)
    try:
        with pytest.raises(ConfigurationError, match="taken for a local path"):
            os.makedirs("s3://bucket/run/beside-the-checkpointer")
    finally:
        misdirected.allow()


@pytest.mark.parametrize("call", [lambda c: c.step(1), lambda c: c.save(1)], ids=["step", "save"])
def test_nothing_is_saved_before_the_restore(storage: RunStorage, call: Callable[[Checkpointer], None]) -> None:
    with (
        Checkpointer(Training().state, storage.url) as checkpointer,
        pytest.raises(ConfigurationError, match="restore"),
    ):
        call(checkpointer)


@pytest.mark.parametrize("call", [lambda c: c.step(9), lambda c: c.save(9), lambda c: c.restore()])
def test_a_closed_checkpointer_is_of_no_more_use(storage: RunStorage, call: Callable[[Checkpointer], None]) -> None:
    with Checkpointer(Training().state, storage.url) as checkpointer:
        checkpointer.restore()
    with pytest.raises(ConfigurationError, match="is closed"):
        call(checkpointer)


def test_a_url_that_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="gopher"):
        Checkpointer({}, "gopher://host/run")


def test_every_public_name_can_be_imported() -> None:
    for name in checkpoint_sidecar.__all__:
        assert getattr(checkpoint_sidecar, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = checkpoint_sidecar.nonsense


def test_the_story_of_an_attempt_can_be_read_in_the_log(storage: RunStorage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "checkpoint_sidecar")
    storage.train(2)
    storage.train(3)
    story = [re.split(r" \(| at |: \d", record.getMessage())[0] for record in caplog.records]
    assert story == [
        "attempt 1 of local/local/run",
        "nothing to restore: starting",
        "save of step 2: begins",
        f"saved step 2 as {storage.snapshot(2).id}",
        "attempt 2 of local/local/run",
        "restore of step 2: begins",
        f"restored step 2 from {storage.url}/{storage.snapshot(2).commit.path}",
        "save of step 3: begins",
        f"saved step 3 as {storage.snapshot(3).id}",
    ]
    assert any(record.getMessage().endswith(": 1 rank on 1 host") for record in caplog.records)
