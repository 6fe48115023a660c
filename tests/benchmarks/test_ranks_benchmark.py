"""The costs of metadata grow with the ranks, not with their square."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

LEAST_SECONDS = 0.003
"""Steps that take less are mostly noise."""
LIMIT = 8
"""For four times the ranks: between 4, which is linear, and 16, which is quadratic, because CPU seconds vary."""


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("ranks")


def test_no_step_grows_faster_than_the_ranks(ranks: Any) -> None:
    few, many = ([ranks.measure(number, 60) for _ in range(2)] for number in (16, 64))
    for step in few[0].steps:
        least = min(costs.steps[step] for costs in few)
        if least >= LEAST_SECONDS:
            assert min(costs.steps[step] for costs in many) <= LIMIT * least, step
    assert many[0].size_checks == few[0].size_checks == 1


def test_what_travels_to_each_rank_at_the_end_of_a_save_does_not_grow(ranks: Any) -> None:
    few, many = (ranks.measure(number, 10).steps["a rank: metadata received"] for number in (2, 16))
    assert many < few + LEAST_SECONDS


def test_the_figures_are_written(ranks: Any, tmp_path: Path) -> None:
    ranks.main([4], 3, tmp_path / "ranks.json")
    (costs,) = json.loads((tmp_path / "ranks.json").read_text())["sizes"]
    assert costs["ranks"] == 4
    assert costs["rank0_bytes_repeated"] > 0
