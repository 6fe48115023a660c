"""A process and its background save end together, whichever wants to end first."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from checkpoint_sidecar.core.log import SnapshotCommitted
from training.checkpointer_runs import RunStorage

PROCESS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer as module
from training.checkpointer_runs import Training, Watched

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
    """One that comes to its end under its save, whose upload takes some seconds; it forgot to close anything."""
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


@pytest.mark.parametrize(
    ("end", "code"),
    [
        pytest.param("", 0, id="normally"),
        pytest.param("sys.exit(3)", 3, id="by-sys-exit"),
        pytest.param("raise ZeroDivisionError", 1, id="by-an-error"),
    ],
)
def test_a_process_that_ends_waits_for_its_save(storage: RunStorage, end: str, code: int) -> None:
    with process(storage, end=end) as running:
        output, _ = running.communicate(timeout=30)
        assert running.returncode == code
    assert output == "threads can be started\n"
    assert [commit.step for commit in storage.bodies(SnapshotCommitted)] == [1]
