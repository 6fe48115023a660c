"""The costs of metadata grow with the ranks, not with their square."""

from __future__ import annotations

import cProfile
import importlib
import json
import pstats
from pathlib import Path
from typing import Any

import pytest

TENSORS = 10
FEW, MANY = 16, 64
LIMIT = 5
"""For four times the ranks; the square would be sixteen."""


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("ranks")


def calls(ranks: Any, number: int) -> tuple[int, Any]:
    """Count the calls of our functions in a save and a restore, which no other load on the machine changes.

    Torch's own validation compares all pairs of chunks where a tensor's longest side is not the one that is cut.
    """
    with cProfile.Profile() as profile:
        costs = ranks.measure(number, TENSORS)
    functions = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    return sum(called for (file, _, _), (_, called, *_) in functions if "checkpoint_sidecar" in file), costs


def test_work_and_bytes_grow_with_the_ranks_and_no_faster(ranks: Any) -> None:
    ranks.measure(FEW, TENSORS)  # what is done once is done
    (few, before), (many, after) = calls(ranks, FEW), calls(ranks, MANY)
    assert many <= LIMIT * few
    assert after.rank0_bytes_repeated <= LIMIT * before.rank0_bytes_repeated
    assert after.size_checks == before.size_checks == 1


def test_planning_reads_that_replicas_share_grows_with_the_ranks_and_no_faster(
    ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    planned = ranks.planned

    def profiled(*arguments: Any) -> Any:
        with cProfile.Profile() as profile:
            given = planned(*arguments)
        counted.append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
        return given

    monkeypatch.setattr(ranks, "planned", profiled)
    before, after = ranks.measure(FEW, TENSORS), ranks.measure(MANY, TENSORS)
    alone_few, few, alone_many, many = counted
    assert many <= LIMIT * few
    assert alone_many <= LIMIT * alone_few
    assert after.shared_reads_rank0_bytes <= LIMIT * before.shared_reads_rank0_bytes


def test_the_figures_are_written(ranks: Any, tmp_path: Path) -> None:
    ranks.main([4], 3, tmp_path / "ranks.json")
    (costs,) = json.loads((tmp_path / "ranks.json").read_text())["sizes"]
    assert costs["ranks"] == 4
    assert costs["rank0_bytes_repeated"] > 0
