"""Lets ``accelerator_snapshots`` do what ``save_state`` and ``load_state`` do, in accelerate's own tests.

A folder of checkpoints is a run, and the names of the checkpoints stand for its steps. A plugin of pytest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.integrations.accelerate import accelerator_snapshots

_STEPS = {"initial": 1, "checkpoint": 2}
"""Names without a number."""

_opened: dict[Accelerator, Checkpointer] = {}


def save_state(self: Accelerator, output_dir: str | None = None, **_: Any) -> str:
    folder = Path(output_dir or f"{self.project_dir}/checkpoints/checkpoint_{self.save_iteration}").absolute()
    if self not in _opened:
        _open(self, folder)
    _opened[self].save(_step(folder))
    self.project_configuration.iteration += 1
    return str(folder)


def load_state(self: Accelerator, input_dir: str | None = None, **_: Any) -> None:
    folder = Path(input_dir or f"{self.project_dir}/checkpoints/checkpoint_{self.save_iteration - 1}").absolute()
    close()
    assert _open(self, folder) == _step(folder), "the newest snapshot is another one"


def close() -> None:
    """End the runs, as the end of their processes would."""
    while _opened:
        _opened.popitem()[1].close()


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close()


def _open(accelerator: Accelerator, folder: Path) -> int:
    _opened[accelerator] = accelerator_snapshots(accelerator, folder.parent.as_uri())
    restored = _opened[accelerator].restore()
    return restored.step if restored else 0


def _step(folder: Path) -> int:
    number = re.search(r"\d+$", folder.name)
    return int(number[0]) + 1 if number else _STEPS[folder.name]


Accelerator.save_state, Accelerator.load_state = save_state, load_state
