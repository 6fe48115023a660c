"""The promises hold for the real code under everything the machine does; without any one rule, they fall.

``CHECKPOINT_FAULTS=long`` plays thousands of other stories each time and shortens one that fails; without it, the same
stories are played every time. What was explored is written to ``build/model.json``.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.stateful import run_state_machine_as_test

from checkpoint_sidecar.core.errors import CheckpointError
from model.machine import Explored, Machine
from model.mutants import MUTANTS, Mutant
from model.stories import Stage
from model.upheavals import Upheavals

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
SEEDS = [random.randrange(2**32) for _ in range(20)] if LONG else (*range(1, 9), 13)
STORIES = 250 if LONG else 15
MOST_STORIES = 20
"""Stories per seed when a mutant is hunted; many seeds with few stories get further than few seeds with many."""
OTHER_SEEDS = 36
FIGURES = Path(__file__).parents[2] / "build" / "model.json"

figures: dict[str, Any] = {"profile": "long" if LONG else "quick", "mutants": {}}
everything = Explored()


def tell(number: int, stories: int, explored: Explored, *phases: Phase, machine: type[Machine] = Upheavals) -> None:
    """Tell the stories of one seed: the same ones whatever else this test run has imported."""
    told = seed(number)(type("Told", (machine,), {"explored": explored}))
    limits = settings(
        max_examples=stories,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.MonkeyPatch.context() as patch:
        # Hypothesis likes to draw numbers that it finds in the modules of the project, as far as they are imported.
        patch.setattr(HypothesisProvider, "_maybe_draw_constant", lambda *_, **__: None)
        run_state_machine_as_test(told, settings=limits)


@pytest.fixture(scope="module", autouse=True)
def record() -> Iterator[None]:
    """Keep warnings about thousands of injected faults to ourselves, and the figures for others."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps({**figures, **everything.figures()}, indent=1) + "\n")


@pytest.mark.timeout(7200 if LONG else 120)
@pytest.mark.parametrize("number", SEEDS, ids="seed {}".format)
def test_the_promises_hold(number: int) -> None:
    tell(number, STORIES, everything, Phase.generate, *([Phase.shrink] if LONG else []))


def test_the_machine_gets_everywhere() -> None:
    """One that never races, purges, reinstates or meets damage would prove nothing by being content."""
    expected = {
        *("SnapshotReinstated", "SnapshotPurged", "RunAdopted", "RollbackRequested", "kills", "late landings"),
        *("deletions", "new Checkpoints", "vanished logs", "others' data", "changes of hands", "repairs"),
    }
    assert expected <= {what for what, count in everything.happened.items() if count > 2}
    assert everything.lost_races > 30


def hunt(mutant: Mutant, patch: pytest.MonkeyPatch, explored: Explored) -> None:
    """The story told by hand; or the machine's, from the seed that led to it when it was written down, then others."""
    if not isinstance(mutant.caught_by, int):
        mutant.caught_by(Stage(patch))
        return
    for number in (mutant.caught_by, *range(1, OTHER_SEEDS)):
        tell(number, MOST_STORIES, explored, Phase.generate, machine=mutant.machine)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"rule {mutant.rule}: {mutant.wrong}")
def test_without_a_rule_a_promise_falls(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.apply(monkeypatch)
    explored = Explored()
    with pytest.raises((AssertionError, CheckpointError)) as caught:
        hunt(mutant, monkeypatch, explored)
    figures["mutants"][mutant.wrong] = {
        "rule": mutant.rule,
        "by": f"the machine, story {explored.stories}" if explored.stories else "a story told by hand",
        "as": ": ".join(map(str, caught.value.args[:2])) or type(caught.value).__name__,
    }
