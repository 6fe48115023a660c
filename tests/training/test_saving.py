"""A process and its background save end together, whichever wants to end first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from checkpoint_sidecar import Checkpointer, Terminated
from checkpoint_sidecar.core.errors import StoreError, TransferCancelledError
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Buffer, KeepsUnfinished, Store, Upload
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer as module
from checkpoint_sidecar.training.transfers import TransferProgress
from localcluster.objectstore import REGION, ObjectStore
from training.checkpointer_runs import EVERY_STEP, RunStorage, Training, Watched, await_saves, started

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

PROCESS = """
import signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer as module
from training.checkpointer_runs import Training, Watched

# Where the tests run in the background of a shell, it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def slowly(key):
    if key.endswith(".distcp"):
        print("uploading", flush=True)
        time.sleep({seconds})
        with ThreadPoolExecutor(1) as pool:
            pool.submit(print, "threads can be started", flush=True).result()

module.open_store = lambda settings: Watched(open_store(settings), slowly)
checkpointer = Checkpointer(Training().state, sys.argv[1], save=SavePolicy(every_steps=1, every_seconds=None))
checkpointer.restore()
checkpointer.step(1)
{end}
"""


@contextmanager
def process(storage: RunStorage, *, seconds: float = 1.0, end: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that ends during its save, whose upload takes some seconds; it closes nothing."""
    script = PROCESS.format(seconds=seconds, end=end)
    running = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, storage.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": "tests"},
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "uploading\n"
        yield running
    finally:
        running.kill()
        running.communicate()


def test_a_process_that_ends_waits_for_its_save(storage: RunStorage) -> None:
    """In every way in which a process ends: test_endings."""
    with process(storage) as running:
        output, _ = running.communicate(timeout=30)
        assert running.returncode == 0
    assert output == "threads can be started\n"
    assert [commit.step for commit in storage.bodies(SnapshotCommitted)] == [1]


def test_an_interrupted_process_calls_its_save_off_and_leaves_nothing(storage: RunStorage) -> None:
    with process(storage) as running:
        time.sleep(0.5)  # until it is waiting
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    assert storage.bodies(SnapshotCommitted) == []
    assert not list(storage.store.list("step-"))


def test_a_save_that_hangs_although_it_was_called_off_does_not_keep_the_process(storage: RunStorage) -> None:
    end = "from checkpoint_sidecar.training import saving; saving.CANCELLED_SECONDS = 0.2"
    with process(storage, seconds=60, end=end) as running:
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=10)


def test_a_save_that_would_outlast_the_grace_period_leaves_nothing(storage: RunStorage, on_upload: Any) -> None:
    """SIGTERM comes when training is over and only the save is waited for."""
    on_upload(lambda key: time.sleep(1.0) if key.endswith(".distcp") else None)
    with pytest.raises(TransferCancelledError), started(storage, save=EVERY_STEP, grace_seconds=3.2) as checkpointer:  # noqa: PT012
        checkpointer.step(1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert storage.bodies(SnapshotCommitted) == []
    assert not list(storage.store.list("step-"))


@pytest.mark.timeout(20)
def test_why_a_save_failed_can_be_printed_with_its_traceback(storage: RunStorage, on_upload: Any) -> None:
    on_upload(lambda _: (_ for _ in ()).throw(StoreError("upload", "a key", "the disk is full")))
    with pytest.raises(StoreError) as caught, started(storage) as checkpointer:
        checkpointer.save(1)
    assert "the disk is full" in "".join(traceback.format_exception(caught.value))


class SlowParts:
    """An upload of which every part takes a while; counts those that are stored."""

    def __init__(self, upload: Upload, stored: list[int]) -> None:
        self._upload = upload
        self._stored = stored

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upload, name)

    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        time.sleep(0.5)
        self._upload.write_part(index, buffers)
        self._stored.append(index)


class SlowStore(Watched):
    def __init__(self, store: Store, stored: list[int]) -> None:
        super().__init__(store, lambda _: None)
        self._stored = stored

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Any]:
        with super().upload(key, size) as upload:
            yield SlowParts(upload, self._stored) if key.endswith(".distcp") else upload


@pytest.mark.store
def test_a_save_that_is_called_off_leaves_no_unfinished_upload(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    monkeypatch.setattr(module, "open_store", lambda settings: SlowStore(open_store(settings), stored))
    monkeypatch.setattr(parts, "PART_BYTES", 8 * 1024 * 1024)
    monkeypatch.setenv("CHECKPOINT_CONNECTIONS", "2")
    keys = {name: object_store.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    settings = StoreSettings(f"s3://{bucket}/run", object_store.endpoint, REGION, credentials=Credentials.of(keys))
    state = {"weights": torch.nn.Linear(4096, 4096)}
    with pytest.raises(Terminated), Checkpointer(state, settings, save=EVERY_STEP, grace_seconds=3.0) as saver:  # noqa: PT012
        saver.restore()
        saver.step(1)
        while not stored:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        saver.step(2)
    assert len(stored) < 9, "it was not called off in the middle"
    await_saves()
    store = open_store(settings)
    assert isinstance(store, KeepsUnfinished)
    assert not list(store.unfinished())
    assert not list(store.list("step-"))


def test_no_thread_outlives_the_checkpointer(storage: RunStorage) -> None:
    before = set(threading.enumerate())
    storage.train(4)
    deadline = time.monotonic() + 5
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < deadline, set(threading.enumerate()) - before
        time.sleep(0.01)


def test_the_copy_that_training_waits_for_is_timed(storage: RunStorage) -> None:
    with started(storage) as checkpointer:
        assert checkpointer.last_staging_seconds is None
        checkpointer.save(1)
        assert checkpointer.last_staging_seconds is not None
        assert 0 < checkpointer.last_staging_seconds < 1


def test_a_running_save_can_be_watched(storage: RunStorage, on_upload: Any) -> None:
    let_go = threading.Event()
    on_upload(lambda _: let_go.wait(10))
    with started(storage, save=EVERY_STEP) as checkpointer:
        assert checkpointer.progress is None
        checkpointer.step(1)
        while (now := checkpointer.progress) is None:
            time.sleep(0.01)
        assert (now.operation, now.step, now.bytes.done) == ("save", 1, 0)
        let_go.set()
        checkpointer.wait()
        assert checkpointer.progress is None


class SlowReads(Watched):
    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        time.sleep(0.2)
        self._store.read_into(key, start, buffers)


def test_a_running_restore_can_be_watched(storage: RunStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.train(2)
    monkeypatch.setattr(module, "open_store", lambda settings: SlowReads(open_store(settings), lambda _: None))
    seen: list[TransferProgress] = []
    with Checkpointer(Training().state, storage.url) as checkpointer:
        restoring = threading.Thread(target=checkpointer.restore)
        restoring.start()
        while restoring.is_alive():
            if now := checkpointer.progress:
                seen.append(now)
            time.sleep(0.01)
    assert {(now.operation, now.step) for now in seen} == {("restore", 2)}
    assert seen[-1].bytes.total > 0
    assert checkpointer.progress is None
