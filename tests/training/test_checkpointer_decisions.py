"""The pure parts of ``Checkpointer``: votes, the last act before SIGKILL, metrics."""

from __future__ import annotations

import itertools

import pytest
import torch

from checkpoint_sidecar.attempt.save_target import decimal_strings
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.log import Trigger
from checkpoint_sidecar.core.schedule import RESERVE_SECONDS
from checkpoint_sidecar.core.termination import LastAct, Situation, next_act
from checkpoint_sidecar.training.vote import Agreed, Stop, Vote


def agree(*votes: Vote) -> Agreed:
    return Agreed.decode([max(column) for column in zip(*(vote.encode() for vote in votes), strict=True)])


def nothing_at(step: int) -> Agreed:
    return Agreed(first=step, last=step, trigger=None, saving=False, failed=False, stop=None)


def test_ranks_with_nothing_to_say_agree_on_nothing() -> None:
    assert agree(Vote(7), Vote(7)) == nothing_at(7)


@pytest.mark.parametrize("trigger", ["Schedule", "Request", "Termination", "Eviction", "Manual", "Final"])
def test_the_trigger_of_rank_0_reaches_every_rank(trigger: Trigger) -> None:
    assert agree(Vote(7, trigger=trigger), Vote(7)).trigger == trigger


def test_one_rank_that_saves_or_failed_is_enough() -> None:
    agreed = agree(Vote(7, saving=True), Vote(7, failed=True), Vote(7))
    assert (agreed.saving, agreed.failed) == (True, True)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        pytest.param([None, Stop(12.5)], Stop(12.5), id="one-rank-was-asked"),
        pytest.param([Stop(20.0), Stop(12.5)], Stop(12.5), id="the-first-to-be-killed-counts"),
        pytest.param([Stop(20.0, repeated=True), Stop(12.5)], Stop(12.5, repeated=True), id="one-rank-was-asked-twice"),
        pytest.param([Stop(-3.0), None], Stop(-3.0), id="too-late"),
        pytest.param([Stop(0.0), None], Stop(0.0), id="at-the-last-moment"),
    ],
)
def test_the_shortest_grace_period_counts(stops: list[Stop | None], expected: Stop) -> None:
    votes = [Vote(7, stop=stop) for stop in stops]
    assert [agree(*order).stop for order in itertools.permutations(votes)] == [expected] * 2


def test_ranks_that_ran_apart_are_noticed() -> None:
    agreed = agree(Vote(7), Vote(9))
    assert (agreed.first, agreed.last) == (7, 9)


@pytest.mark.parametrize(
    ("remaining", "saving", "saved", "wanted", "expected_seconds", "act"),
    [
        pytest.param(60, True, False, True, 10, LastAct.FINISH_RUNNING_SAVE, id="a-running-save-is-finished-first"),
        pytest.param(60, True, False, False, 10, LastAct.FINISH_RUNNING_SAVE, id="even-when-no-new-one-is-wanted"),
        pytest.param(60, False, False, True, 10, LastAct.SAVE, id="then-the-present-step-is-saved"),
        pytest.param(60, False, False, True, None, LastAct.SAVE, id="a-save-of-unknown-duration-is-tried"),
        pytest.param(60, False, True, True, 10, LastAct.STOP, id="nothing-is-left-to-save"),
        pytest.param(60, False, False, False, 10, LastAct.STOP, id="the-policy-or-a-second-sigterm-says-no"),
        pytest.param(60, False, False, True, 50, LastAct.STOP, id="it-could-not-commit-in-time"),
        pytest.param(RESERVE_SECONDS, True, False, True, 10, LastAct.STOP, id="the-reserve-is-not-spent"),
        pytest.param(-5, False, False, True, None, LastAct.STOP, id="the-grace-period-is-over"),
    ],
)
def test_the_grace_period_is_spent_on_what_can_commit(
    remaining: float, saving: bool, saved: bool, wanted: bool, expected_seconds: float | None, act: LastAct
) -> None:
    assert next_act(Situation(remaining, saving, saved, wanted, expected_seconds)) is act


def test_metrics_keep_every_bit() -> None:
    loss = torch.tensor(0.1, requires_grad=True)
    assert decimal_strings({"loss": loss, "rate": 3e-5, "epoch": 2, "bad": float("nan")}) == {
        "loss": "0.10000000149011612",
        "rate": "3e-05",
        "epoch": "2.0",
        "bad": "nan",
    }


@pytest.mark.parametrize(
    "metrics",
    [
        pytest.param({"loss": "low"}, id="a-word"),
        pytest.param({"loss": torch.zeros(2)}, id="a-vector"),
        pytest.param({"": 1.0}, id="a-nameless-one"),
        pytest.param({"x" * 65: 1.0}, id="too-long-a-name"),
        pytest.param({f"m{n}": 1.0 for n in range(33)}, id="too-many"),
    ],
)
def test_metrics_that_do_not_fit_the_log_are_refused(metrics: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"^record (loss|metric|33 metrics)"):
        decimal_strings(metrics)
