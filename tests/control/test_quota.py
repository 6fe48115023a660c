"""How the Checkpoints of a namespace share its quota, and what each of them says and does about it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_operator.decide.appends import entry_for, start_purge
from checkpoint_operator.decide.mirrors import mirror_actions
from checkpoint_operator.decide.plan import store_actions, to_read_back
from checkpoint_operator.decide.quota import Demand, Quotas, demand_of, spare_bytes
from checkpoint_operator.model.actions import Purge, Reinstate, Retire
from checkpoint_operator.model.observed import Key, Observed
from checkpoint_operator.report.health import judge_conditions
from checkpoint_operator.report.metrics import Metrics
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core import retention
from checkpoint_sidecar.core.api import ConditionType
from checkpoint_sidecar.core.log import PurgeStarted, SnapshotReinstated, SnapshotRetired
from checkpoint_sidecar.core.pointers import published_steps
from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.selection import Case, Quota, Terms, case_of
from support.builders import History
from support.observations import KEY, changed, observed

ONE, TWO, ELSEWHERE = Key("team", "one"), Key("team", "two"), Key("other", "one")
KEEP_ALL = RetentionPolicy(keep_last=1, keep_every_steps=1, grace_seconds=60)
SHORT, ROOMY, OVER = Quota(2000, 1000, 1000), Quota(9000, 1000), Quota(100, 2000, 0)
KEEP_ALL_SPEC = {"keepLast": 1, "keepEverySteps": 1, "gracePeriod": "60s"}


def run_of(*steps: int, retention: RetentionPolicy | None = KEEP_ALL) -> History:
    return History().configured(retention=retention).started().committed(*steps).verified(*steps)


def seen(history: History, quota: Quota | None, **spec: Any) -> Observed:
    one = observed(history, **{"retention": KEEP_ALL_SPEC, **spec})
    return changed(one, quota=quota, pointers=published_steps(history.run))


# What one Checkpoint demands


def test_floors_are_required_and_the_rest_is_spare_newest_first() -> None:
    history = run_of(100, 200, 300)
    times = [history.snapshot(step).committed_at.timestamp() for step in (200, 100)]
    assert demand_of(seen(history, None)) == Demand(required=1000, spare=((times[0], 1000), (times[1], 1000)))


def test_what_was_retired_for_the_quota_is_still_demanded_so_that_it_decides_the_same_again() -> None:
    history = run_of(100, 200, 300)
    before = demand_of(seen(history, SHORT))
    history.retired(100, reasons=("Quota",))
    assert demand_of(seen(history, SHORT)) == before


@pytest.mark.parametrize("quota", [None, ROOMY], ids=["without a quota", "with a quota that is not used up"])
def test_a_pass_judges_what_it_has_seen_once(quota: Quota | None, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []

    def counted(run: Run, now: dt.datetime, terms: Terms) -> Case:
        judged.append(run.head)
        return case_of(run, now, terms)

    monkeypatch.setattr(retention, "case_of", counted)
    one = seen(run_of(*range(100, 2100, 100)).retired(100), quota)
    assert demand_of(one) is not None
    assert store_actions(one)
    assert mirror_actions(one)
    assert to_read_back(one)
    assert status_of(one)["snapshots"] == 19
    assert len(judged) == 1


@pytest.mark.parametrize(
    ("retention", "spec"),
    [
        pytest.param(None, {"retention": None}, id="no policy"),
        pytest.param(msgspec.structs.replace(KEEP_ALL, dry_run=True), {}, id="a dry run"),
        pytest.param(KEEP_ALL, {"suspend": True}, id="suspended"),
    ],
)
def test_what_nothing_retires_is_required(retention: RetentionPolicy | None, spec: dict[str, Any]) -> None:
    assert demand_of(seen(run_of(100, 200, retention=retention), None, **spec)) == Demand(required=2000)


def test_a_run_that_another_checkpoint_has_taken_over_demands_nothing_here() -> None:
    assert demand_of(seen(run_of(100, 200).adopted(), None)) == Demand()


def test_of_a_log_that_cannot_be_read_no_demand_is_known() -> None:
    assert demand_of(observed(None)) is None


# How much each Checkpoint gets


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        pytest.param(1000, {}, id="enough"),
        pytest.param(60, {}, id="just enough"),
        pytest.param(59, {TWO: 0}, id="the oldest of all goes"),
        pytest.param(41, {ONE: 10, TWO: 0}, id="then the next oldest, whosoever"),
        pytest.param(39, {ONE: 0, TWO: 0}, id="then the next"),
        pytest.param(5, {ONE: 0, TWO: 0}, id="less than what is required"),
    ],
)
def test_the_newest_of_the_whole_namespace_stay(limit: int, allowed: dict[Key, int]) -> None:
    demands = {ONE: Demand(20, ((300.0, 10), (200.0, 10))), TWO: Demand(10, ((100.0, 10),))}
    assert spare_bytes(demands, limit) == allowed


demands = st.dictionaries(
    st.sampled_from([Key("team", name) for name in "abcd"]),
    st.builds(
        Demand,
        st.integers(0, 100),
        st.lists(st.tuples(st.floats(0, 1e9), st.integers(1, 50)), max_size=5).map(
            lambda spare: tuple(sorted(spare, reverse=True))
        ),
    ),
)


def retained(wanted: dict[Key, Demand], allowed: dict[Key, int]) -> int:
    def kept(key: Key, demand: Demand) -> int:
        room, total = allowed.get(key), 0
        for _, size in demand.spare:
            if room is not None and total + size > room:
                break
            total += size
        return demand.required + total

    return sum(kept(key, demand) for key, demand in wanted.items())


@given(demands, st.integers(0, 500))
def test_together_they_stay_within_the_quota_or_retain_only_what_they_must(
    wanted: dict[Key, Demand], limit: int
) -> None:
    required = sum(demand.required for demand in wanted.values())
    assert retained(wanted, spare_bytes(wanted, limit)) <= max(limit, required)


@given(demands, st.integers(0, 500))
def test_what_fits_is_left_alone(wanted: dict[Key, Demand], limit: int) -> None:
    everything = sum(demand.required + sum(size for _, size in demand.spare) for demand in wanted.values())
    assert (spare_bytes(wanted, limit) == {}) == (everything <= limit or all(not d.spare for d in wanted.values()))


# All of them


def test_a_namespace_without_a_quota_has_none() -> None:
    quotas = Quotas({"team": 0, "other": 10})
    assert quotas.note(ONE, Demand(100)) == ()
    assert quotas.of(ONE) is None


def test_namespaces_do_not_count_for_each_other_and_the_default_is_for_those_that_are_not_named() -> None:
    quotas = Quotas({"*": 50, "other": 10})
    quotas.note(ONE, Demand(40))
    quotas.note(ELSEWHERE, Demand(20))
    one, elsewhere = quotas.of(ONE), quotas.of(ELSEWHERE)
    assert one == Quota(50, 40)
    assert not one.exceeded
    assert elsewhere == Quota(10, 20)
    assert elsewhere.exceeded


def test_only_those_whose_part_changes_are_woken() -> None:
    quotas = Quotas({"team": 30})
    assert quotas.note(ONE, Demand(10, ((1.0, 10),))) == ()
    assert quotas.note(TWO, Demand(10)) == ()
    assert quotas.note(TWO, Demand(11)) == (ONE,), "its spare one does not fit any more"
    assert quotas.note(TWO, Demand(12)) == (), "nothing follows from that"
    assert quotas.note(TWO, Demand(31)) == (ONE,), "now the quota is exceeded"
    assert quotas.forget(TWO) == (ONE,)
    assert quotas.of(ONE) == Quota(30, 10)
    assert quotas.of(TWO) is None


def test_what_a_status_says_counts_until_the_log_was_read() -> None:
    quotas = Quotas({"team": 30})
    quotas.expect(ONE, 20)
    quotas.expect(TWO, 20)
    assert quotas.of(ONE) == Quota(30, 40)
    quotas.note(ONE, Demand(5))
    quotas.expect(ONE, 20)
    assert quotas.of(TWO) == Quota(30, 25)


# What a Checkpoint does about it


def test_what_the_quota_does_not_reach_for_is_retired_and_purged_and_is_not_reinstated() -> None:
    history = run_of(100, 200, 300)
    assert Retire(history.id(100), Terms(SHORT)) in store_actions(seen(history, SHORT))
    assert not any(isinstance(action, Retire) for action in store_actions(seen(history, ROOMY)))
    history.retired(100, reasons=("Quota",)).wait(minutes=2)
    assert Purge(history.id(100), Terms(SHORT)) in store_actions(seen(history, SHORT))
    assert Reinstate(history.id(100), Terms(ROOMY)) in store_actions(seen(history, ROOMY))
    assert not any(isinstance(action, Reinstate) for action in store_actions(seen(history, SHORT)))


@pytest.mark.parametrize("spec", [{"suspend": True}, {"retention": None}], ids=["suspended", "no retention"])
def test_without_retention_a_quota_retires_nothing(spec: dict[str, Any]) -> None:
    history = run_of(100, 200, 300, retention=KEEP_ALL if "suspend" in spec else None)
    assert not any(isinstance(action, Retire | Purge) for action in store_actions(seen(history, OVER, **spec)))


def test_the_log_is_asked_again_with_the_same_quota() -> None:
    history = run_of(100, 200, 300)
    run, now, first = history.run, history.now, history.id(100)
    owner = observed(history).owner
    assert entry_for(Retire(first, Terms(SHORT)), run, owner=owner, now=now) == SnapshotRetired(first, ("Quota",))
    assert entry_for(Retire(first), run, owner=owner, now=now) is None
    history.retired(100, reasons=("Quota",)).wait(minutes=2)
    run, now = history.run, history.now
    assert entry_for(Reinstate(first), run, owner=owner, now=now) == SnapshotReinstated(first)
    assert entry_for(Reinstate(first, Terms(SHORT)), run, owner=owner, now=now) is None
    assert start_purge(run, Purge(first, Terms(SHORT)), owner=owner, now=now) == PurgeStarted(first)
    assert start_purge(run, Purge(first), owner=owner, now=now) is None


@pytest.mark.parametrize("spec", [{}, {"suspend": True}, {"retention": None}], ids=["keeps", "suspended", "no policy"])
def test_a_quota_that_nothing_can_keep_is_a_condition_with_figures_and_what_to_do(spec: dict[str, Any]) -> None:
    history = run_of(100, 200)
    judged = {one.type: one for one in judge_conditions(seen(history, OVER, **spec))}
    found = judged[ConditionType.RETENTION_ENFORCED]
    assert (found.status, found.reason) == ("False", "QuotaExceeded")
    assert "2.0 KiB" in found.message
    assert "100 B" in found.message
    assert KEY.namespace in found.message
    assert "keepLast" in found.message
    assert judged[ConditionType.READY].reason != "QuotaExceeded"
    assert found.quotes, "the figures change with each commit of the namespace; the status must not"
    within = {one.type: one for one in judge_conditions(seen(history, SHORT, **spec))}
    assert within[ConditionType.RETENTION_ENFORCED].reason != "QuotaExceeded"


def test_metrics_say_how_large_the_quota_is_and_whether_it_is_exceeded() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    labels = {"namespace": KEY.namespace, "checkpoint": KEY.name}
    history = run_of(100)
    metrics.observe(seen(history, None), ready=True)
    assert value("checkpoint_operator_quota_exceeded", labels) is None
    metrics.observe(seen(history, OVER), ready=True)
    assert value("checkpoint_operator_quota_exceeded", labels) == 1
    assert value("checkpoint_operator_namespace_quota_bytes", {"namespace": KEY.namespace}) == 100
    metrics.observe(seen(history, SHORT), ready=True)
    assert value("checkpoint_operator_quota_exceeded", labels) == 0
    metrics.forget(KEY)
    assert value("checkpoint_operator_quota_exceeded", labels) is None
