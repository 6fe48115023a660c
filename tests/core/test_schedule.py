"""When a save is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.core.schedule import LastSave, due

STEPS_ONLY = SavePolicy(every_steps=500, every_seconds=None)
TIME_ONLY = SavePolicy(every_steps=None, every_seconds=900.0)
BOTH = SavePolicy(every_steps=500, every_seconds=900.0)
NEITHER = SavePolicy(every_steps=None, every_seconds=None)
FRESH = LastSave(step=0, at=0.0)


@pytest.mark.parametrize(
    ("policy", "last", "step", "now", "request_id", "expected"),
    [
        pytest.param(STEPS_ONLY, FRESH, 499, 0, "", None, id="before the step"),
        pytest.param(STEPS_ONLY, FRESH, 500, 0, "", "Schedule", id="at the step"),
        pytest.param(STEPS_ONLY, FRESH, 503, 0, "", "Schedule", id="past the step, when the loop skips some"),
        pytest.param(STEPS_ONLY, LastSave(500, 0), 999, 0, "", None, id="between two"),
        pytest.param(STEPS_ONLY, LastSave(742, 0), 1000, 0, "", "Schedule", id="round again after an odd one"),
        pytest.param(STEPS_ONLY, LastSave(500, 0), 500, 1e6, "", None, id="never the same step twice"),
        pytest.param(STEPS_ONLY, LastSave(500, 0), 300, 1e6, "", None, id="never a step of the past"),
        pytest.param(TIME_ONLY, FRESH, 7, 899.9, "", None, id="before the time"),
        pytest.param(TIME_ONLY, FRESH, 7, 900.0, "", "Schedule", id="at the time"),
        pytest.param(TIME_ONLY, LastSave(7, 900), 8, 901, "", None, id="the time counts from the last save"),
        pytest.param(BOTH, LastSave(499, 0), 500, 1, "", "Schedule", id="whichever comes first: step"),
        pytest.param(BOTH, LastSave(500, 0), 501, 901, "", "Schedule", id="whichever comes first: time"),
        pytest.param(NEITHER, FRESH, 10**6, 1e9, "", None, id="no cadence, never"),
        pytest.param(NEITHER, FRESH, 1, 0, "now", "Request", id="on request without a cadence"),
        pytest.param(BOTH, FRESH, 500, 900, "now", "Request", id="a request is named before the schedule"),
        pytest.param(NEITHER, LastSave(1, 0, "now"), 2, 0, "now", None, id="a served request is over"),
        pytest.param(NEITHER, LastSave(1, 0, "now"), 2, 0, "again", "Request", id="a new request acts again"),
        pytest.param(NEITHER, LastSave(2, 0), 2, 0, "now", None, id="a request waits for the next step"),
    ],
)
def test_a_save_is_due(
    policy: SavePolicy, last: LastSave, step: int, now: float, request_id: str, expected: str | None
) -> None:
    assert due(policy, last, step=step, now=now, request=request_id) == expected


@given(st.integers(1, 50), st.integers(0, 1000))
def test_every_interval_of_steps_has_exactly_one_save(interval: int, restored: int) -> None:
    policy, last, saved = SavePolicy(every_steps=interval, every_seconds=None), LastSave(restored, 0), []
    for step in range(restored + 1, restored + 5 * interval + 1):
        if due(policy, last, step=step, now=0):
            saved.append(step)
            last = LastSave(step, 0)
    assert len(saved) == 5
    assert all(step % interval == 0 for step in saved)
