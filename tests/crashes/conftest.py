"""Fixtures of the crash matrix: the long profile, the runs that crashes befall, and the table of results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crashes.points import Crash, Mode, Point
from localcluster.objectstore import ObjectStore
from support.s3servers import Server
from training.checkpointer_ranks import Job, Outcome, Sharding, run
from training.checkpointer_runs import RunStorage

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
"""Whether to try every mode at every point, on a sharded model; else each point is tried at least once."""

SHARDING: Sharding = "fsdp2" if LONG else "none"

RESULTS = Path(__file__).parents[2] / "build" / "crash_matrix.json"


@pytest.fixture(scope="session")
def seaweed(object_store: ObjectStore) -> Server:
    return Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)


@dataclass
class Matrix:
    """What became of each crash, for the documentation."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: str, crash: Crash, *, restored: object, absent: list[str], **more: Any) -> None:
        """One crash.

        Args:
            path: Which path of the product it befell.
            restored: What the next process group went on from.
            absent: What was looked for afterwards and not found.
        """
        row = {"path": path, "point": crash.point.name, "mode": crash.mode, "restored": restored, "absent": absent}
        self.rows.append(row | more)

    def write(self, to: Path) -> None:
        to.parent.mkdir(exist_ok=True)
        profile = "long" if LONG else "quick"
        to.write_text(json.dumps({"profile": profile, "crashes": self.rows}, indent=1) + "\n")


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    matrix = Matrix()
    yield matrix
    matrix.write(RESULTS)


@pytest.fixture
def crash_at(tmp_path: Path) -> Callable[[Point, Mode], Crash]:
    """Makes crashes, each with a folder of its own."""

    def make(point: Point, mode: Mode) -> Crash:
        folder = tmp_path / "crash"
        folder.mkdir()
        return Crash(point, mode, folder)

    return make


@dataclass(frozen=True)
class Trained:
    """A run that has come to its end, on which others are founded."""

    folder: Path
    outcomes: list[Outcome]

    @property
    def storage(self) -> RunStorage:
        return RunStorage(f"file://{self.folder}/run")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trained]:
    """Runs of so many steps that nothing disturbed; every second step and the last one are saved."""
    runs: dict[int, Trained] = {}

    def train(total: int) -> Trained:
        if total not in runs:
            folder = tmp_path_factory.mktemp(f"trained-{total}")
            runs[total] = Trained(folder, run(Job(f"file://{folder}/run", total, sharding=SHARDING), folder))
        return runs[total]

    return train
