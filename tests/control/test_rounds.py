"""The rounds of one pass: plan after plan, until nothing is left or the store cannot be used."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest

from checkpoint_operator.act import rounds
from checkpoint_operator.decide import plan
from checkpoint_operator.fairness.store_threads import AbandonedError
from checkpoint_operator.gather.memory import Memory
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.gather.spec_policy import policy_of
from checkpoint_operator.model.actions import Claim
from checkpoint_operator.model.observed import Checkpoint, Observed
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.access import StoreSettings
from doubles.memory import MemoryStore
from support.builders import OBJECT_UID, OWNER
from support.coroutines import result_of
from support.observations import CREATED, KEY, spec_of

Outcomes = tuple[ActionOutcome, ...]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The memory of a Checkpoint whose store is empty."""
    store = MemoryStore()
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)
    session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
    session.probe()
    return Memory(session)


@pytest.fixture
def new(memory: Memory) -> Observed:
    """A Checkpoint that was just created."""
    assert memory.session is not None
    spec = spec_of()
    return Observed(
        owner=OWNER,
        checkpoint=Checkpoint(KEY, OBJECT_UID, 1, CREATED, spec),
        wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        policy=policy_of(spec),
        run=memory.session.log.refresh(),
        now=memory.session.now(),
        memory=memory.known(),
    )


def passed(seen: Observed, memory: Memory, blocking: Callable[[rounds.RoundWork], Outcomes]) -> Observed:
    async def call(work: rounds.RoundWork) -> Outcomes:
        return blocking(work)

    return result_of(rounds.run(seen, memory, blocking=call))


def test_a_pass_plans_again_from_what_each_round_has_left_until_nothing_is_left(new: Observed, memory: Memory) -> None:
    done: list[list[str]] = []

    def blocking(work: rounds.RoundWork) -> Outcomes:
        outcomes = work()
        done.append([type(outcome.action).__name__ for outcome in outcomes])
        return outcomes

    seen = passed(new, memory, blocking)
    assert done == [["Claim"], ["Configure"], ["SurveyPrefix"]]
    assert seen.ours
    assert seen.fault is None
    assert plan.store_actions(seen) == ()


def test_a_store_that_fails_ends_the_pass_and_its_connection(new: Observed, memory: Memory) -> None:
    calls = []

    def blocking(work: rounds.RoundWork) -> Outcomes:
        calls.append(work)
        return (ActionOutcome(Claim(), StoreError("append", "s3://memory/run", "503 Slow Down")),)

    seen = passed(new, memory, blocking)
    assert len(calls) == 1
    assert seen.fault is not None
    assert seen.fault.reason is Reason.STORE_UNAVAILABLE
    assert memory.session is None


def test_a_store_that_does_not_return_ends_the_pass(new: Observed, memory: Memory) -> None:
    def blocking(_: rounds.RoundWork) -> Outcomes:
        raise AbandonedError

    seen = passed(new, memory, blocking)
    assert seen.fault is not None
    assert seen.fault.reason is Reason.PASS_TIMED_OUT
    assert "s3://memory/run" in seen.fault.message


def test_a_backlog_is_left_to_the_next_pass(new: Observed, memory: Memory) -> None:
    calls = []

    def blocking(work: rounds.RoundWork) -> Outcomes:
        calls.append(work)
        return ()  # as if others had always been faster

    seen = passed(new, memory, blocking)
    assert len(calls) == rounds.MAX_ROUNDS
    assert seen.fault is None
    assert plan.store_actions(seen)
