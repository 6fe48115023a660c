"""What a terminating attempt still saves, and how it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from checkpoint_sidecar import Checkpointer, Terminated
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.core.heartbeat import decode
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.policy import SavePolicy
from training.checkpointer_runs import EVERY_STEP, NO_SCHEDULE, RunStorage, await_saves, started

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def terminated_at(step: int, checkpointer: Checkpointer, *, signals: int = 1) -> Terminated:
    """Ask this process to terminate, let the watching thread notice, and finish a step."""
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    with pytest.raises(Terminated) as caught:
        checkpointer.step(step)
    assert caught.value.code == 143
    return caught.value


def commits(storage: RunStorage) -> list[tuple[int, str]]:
    return [(commit.step, commit.trigger) for commit in storage.bodies(SnapshotCommitted)]


def test_the_present_step_is_saved(storage: RunStorage) -> None:
    with started(storage) as checkpointer:
        assert terminated_at(3, checkpointer).saved_step == 3
    assert commits(storage) == [(3, "Termination")]


def test_a_running_save_is_finished_and_then_the_present_step_is_saved(storage: RunStorage, on_upload: Any) -> None:
    on_upload(lambda key: time.sleep(0.3) if key.endswith(".distcp") else None)
    with started(storage, save=EVERY_STEP) as checkpointer:
        checkpointer.step(1)
        assert terminated_at(2, checkpointer).saved_step == 2
    assert commits(storage) == [(1, "Schedule"), (2, "Termination")]


@pytest.mark.parametrize(
    ("on_termination", "signals"),
    [pytest.param(False, 1, id="the-policy-says-so"), pytest.param(True, 2, id="sigterm-came-twice")],
)
def test_a_running_save_is_finished_although_no_new_one_is_wanted(
    storage: RunStorage, on_upload: Any, on_termination: bool, signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoint_sidecar.training.signals.ECHO_SECONDS", 0.0)
    on_upload(lambda key: time.sleep(0.5) if key.endswith(".distcp") else None)
    save = SavePolicy(every_steps=1, every_seconds=None, on_termination=on_termination)
    with started(storage, save=save) as checkpointer:
        checkpointer.step(1)
        assert terminated_at(2, checkpointer, signals=signals).saved_step == 1
    assert commits(storage) == [(1, "Schedule")]


def test_a_step_that_is_saved_is_not_saved_again(storage: RunStorage) -> None:
    with started(storage) as checkpointer:
        checkpointer.save(3)
        assert terminated_at(3, checkpointer).saved_step == 3
    assert commits(storage) == [(3, "Manual")]


def test_without_time_nothing_is_begun_and_the_log_says_what_is_lost(
    storage: RunStorage, caplog: pytest.LogCaptureFixture
) -> None:
    with started(storage, grace_seconds=1.0) as checkpointer:
        checkpointer.save(1)
        assert terminated_at(3, checkpointer).saved_step == 1
    assert commits(storage) == [(1, "Manual")]
    assert "the steps after 1 are lost" in caplog.text


def test_a_save_that_hangs_does_not_outlast_the_grace_period(storage: RunStorage, on_upload: Any) -> None:
    let_go = threading.Event()
    on_upload(lambda _: let_go.wait(20))
    with pytest.raises(Terminated) as caught, started(storage, grace_seconds=3.5) as checkpointer:  # noqa: PT012
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        checkpointer.step(3)
    assert time.monotonic() - began < 3.5
    assert caught.value.saved_step is None
    let_go.set()


def test_a_save_that_cannot_commit_in_time_is_called_off_and_leaves_nothing(
    storage: RunStorage, on_upload: Any
) -> None:
    on_upload(lambda key: time.sleep(1.0) if key.endswith(".distcp") else None)
    with started(storage, grace_seconds=3.5) as checkpointer:
        assert terminated_at(3, checkpointer).saved_step is None
    await_saves()
    assert commits(storage) == []
    assert not list(storage.store.list("step-"))


def test_a_save_that_fails_does_not_change_the_exit(storage: RunStorage, on_upload: Any) -> None:
    on_upload(lambda _: (_ for _ in ()).throw(StoreError("upload", "a key", "the disk is full")))
    with started(storage) as checkpointer:
        began = time.monotonic()
        assert terminated_at(3, checkpointer).saved_step is None
    assert time.monotonic() - began < 10, "it was tried again and again"
    assert commits(storage) == []


def test_a_save_that_failed_before_sigterm_does_not_cost_the_last_one(storage: RunStorage, on_upload: Any) -> None:
    failures = [StoreError("upload", "a key", "the network was down")]

    def fail_once(_: str) -> None:
        if failures:
            raise failures.pop()

    on_upload(fail_once)
    with started(storage, save=EVERY_STEP) as checkpointer:
        checkpointer.step(1)
        assert terminated_at(2, checkpointer).saved_step == 2
    assert commits(storage) == [(2, "Termination")]


def test_the_attempt_says_goodbye(storage: RunStorage) -> None:
    with pytest.raises(Terminated), started(storage) as checkpointer:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        checkpointer.step(3)
    progress = decode(storage.store.get("_progress.json", max_bytes=4096).data)
    assert progress is not None
    assert (progress.step, progress.ended) == (3, True)


SCRIPT = """
import sys, time
from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.policy import SavePolicy

state = {"seen": [0]}
with Checkpointer(state, sys.argv[1], save=SavePolicy(every_seconds=None)) as checkpointer:
    for step in checkpointer.steps(1_000_000):
        state["seen"][0] = step
        if step == 1:
            print("training", flush=True)
        time.sleep(0.01)
        checkpointer.step(step)
"""


@pytest.mark.distributed
def test_a_real_process_ends_with_code_143_and_its_successor_continues(storage: RunStorage) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, storage.url], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        process.terminate()
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.wait()
    ((step, trigger),) = commits(storage)
    assert trigger == "Termination"
    state = {"seen": [0]}
    with Checkpointer(state, storage.url, save=NO_SCHEDULE) as checkpointer:
        restored = checkpointer.restore()
    assert restored is not None
    assert (restored.step, state["seen"]) == (step, [step])
