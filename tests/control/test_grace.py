"""Whether an eviction leaves a pod the time to save."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint_operator.decide.grace_period import too_short
from checkpoint_operator.gather.pods import pod_from
from checkpoint_operator.report.health import judge_conditions
from checkpoint_sidecar.core.policy import SavePolicy
from support.builders import History
from support.observations import changed, observed, pod


def saving(*seconds: float, save: SavePolicy | None = None) -> History:
    """A run whose saves took this long."""
    history = History().configured(save=save or SavePolicy()).started()
    for number, each in enumerate(seconds, start=1):
        history.committed(10 * number, seconds=each).verified(10 * number)
    return history


@pytest.mark.parametrize(
    ("seconds", "grace", "complains"),
    [
        pytest.param((20.0,), 30, False, id="a quarter more than the save and three seconds to exit fit"),
        pytest.param((20.0,), 28, False, id="just fits"),
        pytest.param((20.0,), 27, True, id="just too short"),
        pytest.param((60.0, 1.0, 1.0), 30, True, id="one slow save among the last three counts"),
        pytest.param((60.0, 1.0, 1.0, 1.0), 30, False, id="what was slow long ago does not count"),
        pytest.param((), 1, False, id="nothing is known before the first save"),
        pytest.param((20.0,), None, False, id="the grace period is not known"),
    ],
)
def test_the_grace_period_is_compared_with_the_slowest_recent_save(
    seconds: tuple[float, ...], grace: float | None, complains: bool
) -> None:
    assert bool(too_short(saving(*seconds).run, [pod(grace_seconds=grace)])) is complains


def test_the_pod_with_the_least_time_is_named_unless_it_has_ended() -> None:
    pods = [pod("first", grace_seconds=20), pod("second", grace_seconds=10)]
    assert "Pod second has 10 s" in too_short(saving(30.0).run, pods)
    ended = [pods[0], pod("second", grace_seconds=10, phase="Failed")]
    assert "Pod first has 20 s" in too_short(saving(30.0).run, ended)


def test_no_pod_needs_time_for_a_save_that_the_policy_does_not_ask_for() -> None:
    history = saving(30.0, save=SavePolicy(on_termination=False))
    assert too_short(history.run, [pod(grace_seconds=1)]) == ""


def test_a_run_whose_pods_cannot_save_in_time_is_not_protected() -> None:
    def protected(grace: float) -> tuple[str, str]:
        seen = changed(observed(saving(30.0)), pods=(pod(grace_seconds=grace),))
        judged = next(each for each in judge_conditions(seen) if each.type == "Protected")
        return judged.status, judged.reason

    assert protected(30) == ("False", "GracePeriodTooShort")
    assert protected(60) == ("True", "RecentSnapshot")


def test_the_grace_period_is_read_from_the_pod() -> None:
    body: dict[str, Any] = {"metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    assert pod_from(body).grace_seconds is None
    assert pod_from({**body, "spec": {"terminationGracePeriodSeconds": 45}}).grace_seconds == 45
