"""What earlier versions saved restores, also into optimizers that were never stepped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training import flattened
from training.resuming import Job, attempt, differences, seeded

pytestmark = pytest.mark.filterwarnings("ignore")


RUNS = pytest.mark.parametrize("run", ["flattened", "digested"])


def made(run: str) -> Callable[[], Job]:
    def make() -> Job:
        state = flattened.job()
        return Job(state, lambda step: flattened.train(state, step), options={"run": run})

    return make


@RUNS
def test_a_run_of_an_earlier_version_continues(tmp_path: Path, run: str) -> None:
    make = made(run)
    shutil.copytree(Path(flattened.__file__).with_name(f"{run}_run"), tmp_path / "run")
    expected = seeded(make)
    for step in (1, 2):
        expected.step(step)
    expected.step(3)
    found = seeded(make)
    restored = attempt(lambda: found, f"file://{tmp_path}/run", 2)
    restored.step(3)
    # Another processor wrote the first two steps, and its last bits may differ.
    assert not list(differences(expected.fingerprint(), restored.fingerprint(), same=torch.allclose))


@RUNS
def test_it_saves_and_restores_in_the_new_form(tmp_path: Path, run: str) -> None:
    make = made(run)
    shutil.copytree(Path(flattened.__file__).with_name(f"{run}_run"), tmp_path / "run")
    saved = attempt(make, f"file://{tmp_path}/run", 4).fingerprint()
    torch.manual_seed(7)
    again = attempt(make, f"file://{tmp_path}/run", 4).fingerprint()
    assert not list(differences(saved, again))
