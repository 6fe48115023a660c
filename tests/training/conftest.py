"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_sidecar.attempt import session
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer
from training.checkpointer_runs import RunStorage, Watched


@pytest.fixture
def storage(tmp_path: Path) -> RunStorage:
    return RunStorage(f"file://{tmp_path}/run")


@pytest.fixture
def on_upload(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Watch the uploads of checkpointers opened from here on."""

    def watch(action: Callable[[str], None]) -> None:
        monkeypatch.setattr(
            checkpointer, "open_store", lambda settings: Watched(open_store(settings), action), raising=True
        )

    return watch


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POLL_SECONDS", 0.02)
