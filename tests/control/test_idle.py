"""What tells an idle run from a lively one, and what a created object needs no more."""

from __future__ import annotations

import pytest

from checkpoint_operator.decide.mirrors import mirror_actions
from checkpoint_operator.decide.plan import silence
from checkpoint_operator.model.actions import CreateMirror
from checkpoint_operator.model.observed import Mirror
from support.builders import History
from support.observations import changed, later, observed


@pytest.mark.parametrize(
    ("history", "seconds"),
    [
        pytest.param(History().configured(), 0, id="never trained: training may begin soon"),
        pytest.param(History().configured().started(), 600, id="its start"),
        pytest.param(History().configured().started().committed(100), 600, id="its last commit"),
    ],
)
def test_a_run_is_silent_since(history: History, seconds: float) -> None:
    seen = later(observed(history), minutes=10)
    assert silence(seen) == pytest.approx(seconds, abs=60)


def test_what_the_operator_itself_writes_does_not_make_a_run_lively() -> None:
    history = History().configured().started().committed(100)
    before = silence(observed(history))
    assert silence(observed(history.verified(100))) > before


def test_a_status_that_was_written_with_its_object_needs_no_second_write() -> None:
    seen = observed(History().configured().started().committed(100, 200).verified(100, 200))
    created = [action for action in mirror_actions(seen) if isinstance(action, CreateMirror)]
    assert len(created) == 2
    there = tuple(
        Mirror(
            name := each.body["metadata"]["name"],
            "-".join(name.split("-")[-3:]),
            1,
            "Auto",
            each.status,
            controller=seen.checkpoint.uid,
        )
        for each in created
    )
    assert mirror_actions(changed(later(seen, minutes=5), mirrors=there)) == ()
