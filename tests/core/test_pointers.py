"""What torch's own reader is shown of a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given

from checkpoint_sidecar.core.pointers import published_for, published_steps
from core.strategies import stories
from support.builders import History


def run_of(*steps: int) -> History:
    """An attempt that saved some steps."""
    return History().started().committed(*steps)


def resumed(history: History) -> History:
    """The next attempt, which restored what it announced."""
    return history.started().restored()


def rolled_back(history: History, to: int, request: str = "rollback-1") -> History:
    return resumed(history.rollback(to, request=request))


@pytest.mark.parametrize(
    ("tell", "step", "expected"),
    [
        pytest.param(lambda: run_of(100, 200), 100, "100-1-aaaaaaac", id="the snapshot of the step"),
        pytest.param(lambda: run_of(100, 200), 300, None, id="no snapshot of the step"),
        pytest.param(lambda: run_of(100, 200).retired(100), 100, None, id="not a retired one"),
        pytest.param(lambda: run_of(100, 200).found_damaged(100, 100), 100, None, id="not a damaged one"),
        pytest.param(lambda: rolled_back(run_of(100, 200), 100).committed(150), 200, None, id="not a superseded one"),
        pytest.param(lambda: run_of(100, 200), None, "200-1-aaaaaaad", id="the newest for a drop-in directory"),
        pytest.param(History, None, None, id="nothing was saved"),
    ],
)
def test_the_stock_pointer_shows(tell: Callable[[], History], step: int | None, expected: str | None) -> None:
    shown = published_for(tell().run, step)
    assert (shown.id if shown else None) == expected


@given(stories())
def test_all_pointers_at_once_are_those_of_each_step(history: History) -> None:
    run = history.run
    steps = {snapshot.step for snapshot in run.snapshots.values()}
    one_by_one = {step: shown.id for step in steps if (shown := published_for(run, step))}
    assert published_steps(run) == one_by_one
    assert list(published_steps(run).values())[:1] == [s.id for s in [published_for(run, None)] if s]
