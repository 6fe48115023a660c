"""Hooks are called after commits and restores, and cannot harm training."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from checkpoint_sidecar import Checkpointer, CommittedSnapshot, RestoredSnapshot
from checkpoint_sidecar.core.policy import SavePolicy

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def train(url: str, total: int, **hooks: Any) -> None:
    with Checkpointer(
        {"model": nn.Linear(4, 4)}, url, save=SavePolicy(every_steps=1, every_seconds=None), **hooks
    ) as checkpointer:
        for step in checkpointer.steps(total):
            checkpointer.step(step, metrics={"loss": 1 / step})


def test_each_commit_and_each_start_is_reported_once_in_order(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    commits: list[CommittedSnapshot] = []
    starts: list[RestoredSnapshot] = []
    others: list[int] = []
    hooks = {"on_commit": [commits.append, lambda each: others.append(each.step)], "on_restore": starts.append}
    train(url, 2, **hooks)
    train(url, 3, **hooks)
    assert [each.step for each in commits] == others == [1, 2, 3]
    assert [(each.step, each.attempt, each.snapshot) for each in starts] == [(0, 1, ""), (2, 2, commits[1].snapshot)]
    first = commits[0]
    assert (first.url, first.metrics, first.attempt, first.trigger) == (url, {"loss": 1.0}, 1, "Schedule")
    assert first.bytes > 0
    assert first.folder.startswith(f"{url}/step-1/")
    assert Path(first.folder.removeprefix("file://")).is_dir()
    assert starts[1].metrics == {"loss": 0.5}
    assert starts[1].bytes == commits[1].bytes


def test_a_hook_that_raises_is_logged_and_the_others_are_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise SystemExit("the tracker is down")

    seen: list[CommittedSnapshot] = []
    train(f"file://{tmp_path}/run", 2, on_commit=[fail, seen.append], on_restore=fail)
    assert len(seen) == 2
    assert "a hook failed" in caplog.text
    assert "the tracker is down" in caplog.text


def test_a_hook_that_hangs_delays_neither_saves_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("checkpoint_sidecar.training.checkpointer._LEAVE_SECONDS", 0.3)
    hang = threading.Event()
    began = time.monotonic()
    train(f"file://{tmp_path}/run", 3, on_commit=lambda _: hang.wait(60))
    assert time.monotonic() - began < 30
    assert "a hook still runs" in caplog.text
    assert len(list(tmp_path.glob("run/step-*/*/manifest.json"))) == 3
    hang.set()
