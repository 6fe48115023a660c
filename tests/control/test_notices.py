"""What nodes announce, which Checkpoints that wakes, and which saves it leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.decide.plan import store_actions
from checkpoint_operator.gather.nodes import Nodes, node_from
from checkpoint_operator.model.actions import RequestSave
from checkpoint_operator.model.observed import CORDON, Key, Node, Observed, Pod, Toleration
from checkpoint_operator.report.events import for_entries
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core.log import PodIdentity
from support.builders import History
from support.observations import KEY, changed, observed, pod

OTHER = Key("training", "other")
PODS = tuple(PodIdentity(f"llama-{rank}", f"uid-{rank}") for rank in range(2))
NO_EXECUTE = {"key": "maintenance", "effect": "NoExecute"}


def node_body(*taints: dict[str, Any], name: str = "node-a", uid: str = "", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid or f"uid-of-{name}"}, "spec": {"taints": list(taints)}, **status}


def taint(key: str = CORDON, effect: str = "NoSchedule", **more: str) -> dict[str, Any]:
    return {"key": key, "effect": effect, **more}


def on(node: str, *, rank: int = 0, phase: str = "Running", tolerations: tuple[Toleration, ...] = ()) -> Pod:
    return replace(pod(PODS[rank].name, PODS[rank].uid, phase=phase), node=node, tolerations=tolerations)


def shown(*bodies: dict[str, Any], nodes: Nodes | None = None) -> tuple[Node, ...]:
    """What a pass sees of nodes `node-a` and `node-b` after the watch showed these bodies."""
    watched = nodes or Nodes()
    for body in bodies:
        watched.show(node_from(body))
    return watched.place(KEY, ("node-a", "node-b"))


def training() -> History:
    return History().configured().started(pods=PODS)


def saves(seen: Observed) -> tuple[RequestSave, ...]:
    return tuple(action for action in store_actions(seen) if isinstance(action, RequestSave))


def asked_by(*bodies: dict[str, Any], pods: tuple[Pod, ...] = (), history: History | None = None) -> list[str]:
    """Why a save is asked for."""
    seen = changed(observed(history or training()), pods=pods or (on("node-a"),), nodes=shown(*bodies))
    return [action.reason for action in saves(seen)]


# What announces an end


@pytest.mark.parametrize(
    ("announced", "reason"),
    [
        pytest.param(taint(), "Node node-a is cordoned.", id="cordon"),
        pytest.param(
            taint("ToBeDeletedByClusterAutoscaler", value="1790000000"),
            "Node node-a has the taint ToBeDeletedByClusterAutoscaler:NoSchedule.",
            id="cluster-autoscaler",
        ),
        pytest.param(
            taint("karpenter.sh/disrupted"),
            "Node node-a has the taint karpenter.sh/disrupted:NoSchedule.",
            id="karpenter",
        ),
        pytest.param(
            taint("karpenter.sh/disruption", value="disrupting"),
            "Node node-a has the taint karpenter.sh/disruption:NoSchedule.",
            id="karpenter-before-1.0",
        ),
        pytest.param(
            taint("cloud.google.com/impending-node-termination"),
            "Node node-a has the taint cloud.google.com/impending-node-termination:NoSchedule.",
            id="gke",
        ),
        pytest.param(
            taint("aws-node-termination-handler/spot-itn"),
            "Node node-a has the taint aws-node-termination-handler/spot-itn:NoSchedule.",
            id="aws-spot",
        ),
        pytest.param(NO_EXECUTE, "Node node-a has the taint maintenance:NoExecute.", id="any-no-execute"),
    ],
)
def test_a_node_that_announces_its_end_leads_to_a_save(announced: dict[str, Any], reason: str) -> None:
    assert asked_by(node_body(announced)) == [reason]


@pytest.mark.parametrize(
    "taints",
    [
        pytest.param((), id="none"),
        pytest.param((taint("nvidia.com/gpu", value="present"),), id="a-dedicated-node"),
        pytest.param((taint("DeletionCandidateOfClusterAutoscaler", "PreferNoSchedule"),), id="only-a-candidate"),
        pytest.param((taint("node.kubernetes.io/memory-pressure"),), id="pressure"),
    ],
)
def test_other_taints_lead_to_nothing(taints: tuple[dict[str, Any], ...]) -> None:
    assert asked_by(node_body(*taints)) == []


@pytest.mark.parametrize(
    ("toleration", "saved"),
    [
        pytest.param(Toleration("maintenance", "Exists"), False, id="by-key"),
        pytest.param(Toleration(operator="Exists"), False, id="everything"),
        pytest.param(Toleration("maintenance", "Equal", "now", "NoExecute"), False, id="by-value"),
        pytest.param(Toleration("maintenance", "Equal", "later"), True, id="another-value"),
        pytest.param(Toleration("maintenance", "Exists", effect="NoSchedule"), True, id="another-effect"),
        pytest.param(Toleration("maintenance", "Exists", limited=True), True, id="for-some-time-only"),
        pytest.param(Toleration("maintenance", "Lt", "now"), True, id="an-operator-we-do-not-know"),
    ],
)
def test_a_no_execute_taint_that_the_pod_tolerates_for_good_announces_nothing(
    toleration: Toleration, saved: bool
) -> None:
    pods = (on("node-a", tolerations=(toleration,)),)
    assert bool(asked_by(node_body({**NO_EXECUTE, "value": "now"}), pods=pods)) == saved


def test_behind_a_tolerated_taint_a_cordon_is_noticed() -> None:
    pods = (on("node-a", tolerations=(Toleration(operator="Exists"),)),)
    assert asked_by(node_body(NO_EXECUTE, taint()), pods=pods) == ["Node node-a is cordoned."]


# Which pods it concerns


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param((on("node-b"),), id="on-another-node"),
        pytest.param((on("node-a", phase="Succeeded"),), id="that-has-ended"),
        pytest.param((replace(on("node-a"), uid="stranger"),), id="of-no-attempt"),
        pytest.param((on(""),), id="not-scheduled"),
    ],
)
def test_a_pod_is_not_concerned(pods: tuple[Pod, ...]) -> None:
    assert asked_by(node_body(taint()), pods=pods) == []


def test_each_node_of_a_gang_asks_once() -> None:
    pods = (on("node-a"), on("node-b", rank=1))
    assert asked_by(node_body(taint()), node_body(taint(), name="node-b"), pods=pods) == [
        "Node node-a is cordoned.",
        "Node node-b is cordoned.",
    ]


def test_nothing_is_asked_of_an_attempt_that_knows_of_an_eviction() -> None:
    assert asked_by(node_body(taint()), history=training().evicted()) == []


# Once


def test_one_cordon_asks_once_whatever_follows_on_that_node() -> None:
    nodes = Nodes()
    seen = changed(observed(training()), pods=(on("node-a"),))
    (first,) = saves(changed(seen, nodes=shown(node_body(taint(timeAdded="2026-01-01T00:00:00Z")), nodes=nodes)))
    more = node_body(NO_EXECUTE, taint(timeAdded="2026-01-01T00:00:00Z"))
    assert saves(changed(seen, nodes=shown(more, nodes=nodes))) == (first,)
    asked = changed(observed(training().save_requested(first.request)), pods=seen.cluster.pods)
    assert saves(changed(asked, nodes=shown(more, nodes=nodes))) == ()


def test_an_operator_that_starts_anew_does_not_ask_again() -> None:
    body = node_body(taint(timeAdded="2026-01-01T00:00:00Z"))
    seen = changed(observed(training()), pods=(on("node-a"),))
    assert saves(changed(seen, nodes=shown(body))) == saves(changed(seen, nodes=shown(body)))


@pytest.mark.parametrize(
    "times", [("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"), ("", "")], ids=["told", "not-told"]
)
def test_a_new_cordon_after_an_uncordon_asks_again(times: tuple[str, str]) -> None:
    nodes = Nodes()
    cordons = [node_body(taint(timeAdded=time) if time else taint()) for time in times]
    history = training()
    seen = changed(observed(history), pods=(on("node-a"),))
    (first,) = saves(changed(seen, nodes=shown(cordons[0], nodes=nodes)))
    history.save_requested(first.request).committed(100, save_request=first.request).verified(100)
    seen = changed(observed(history), pods=(on("node-a"),))
    assert saves(changed(seen, nodes=shown(node_body(), nodes=nodes))) == ()
    (second,) = saves(changed(seen, nodes=shown(cordons[1], nodes=nodes)))
    assert second.request != first.request


def test_a_node_of_the_same_name_is_another_node() -> None:
    nodes = Nodes()
    seen = changed(observed(training()), pods=(on("node-a"),))
    (first,) = saves(changed(seen, nodes=shown(node_body(taint(), uid="one"), nodes=nodes)))
    (second,) = saves(changed(seen, nodes=shown(node_body(taint(), uid="two"), nodes=nodes)))
    assert first.request != second.request


def test_requests_of_a_user_and_of_nodes_do_not_take_turns() -> None:
    pods = (on("node-a"), on("node-b", rank=1))
    nodes = shown(node_body(taint()), node_body(taint(), name="node-b"))
    history = training()
    seen = changed(observed(history, save={"request": "now-1"}), pods=pods, nodes=nodes)
    for action in saves(seen):
        history.save_requested(action.request, reason=action.reason)
    asked = changed(observed(history, save={"request": "now-1"}), pods=pods, nodes=nodes)
    assert (len(saves(seen)), saves(asked)) == (3, ())


# Which Checkpoints it wakes


def test_a_new_announcement_of_a_node_wakes_those_with_pods_on_it_and_a_heartbeat_wakes_none() -> None:
    nodes = Nodes()
    nodes.place(KEY, ("node-a",))
    nodes.place(OTHER, ("node-b",))
    assert nodes.show(node_from(node_body())) == frozenset()
    assert nodes.show(node_from(node_body(taint()))) == {KEY}
    assert nodes.show(node_from(node_body(taint(), status={"conditions": ["a heartbeat"]}))) == frozenset()
    assert nodes.show(node_from(node_body(taint("nvidia.com/gpu"), taint()))) == frozenset()
    assert nodes.show(node_from(node_body())) == {KEY}
    nodes.forget(KEY)
    assert nodes.show(node_from(node_body(taint()))) == frozenset()


def test_a_pass_that_comes_after_the_node_finds_what_it_announced() -> None:
    nodes = Nodes()
    nodes.show(node_from(node_body(taint())))
    assert [node.name for node in nodes.place(KEY, ("node-a", "node-b"))] == ["node-a"]
    nodes.remove("node-a")
    assert nodes.place(KEY, ("node-a", "node-b")) == ()


# What is reported


def test_status_and_events_tell_why_a_save_is_asked_for_and_an_eviction_has_the_last_word() -> None:
    history = training().save_requested("node-1", reason="Node node-a is cordoned.")
    assert status_of(observed(history))["attempt"]["notice"] == "Node node-a is cordoned."
    (told,) = for_entries(history.entries[-1:], history.run)
    assert (told.reason, told.message) == ("SaveRequested", "Attempt 1 is asked to save: Node node-a is cordoned.")
    history.evicted("EvictionByEvictionAPI")
    assert status_of(observed(history))["attempt"]["notice"] == "Pod llama-0 is leaving: EvictionByEvictionAPI"


def test_what_the_user_asks_for_is_no_notice_and_no_event() -> None:
    history = training().save_requested("now-1")
    assert "notice" not in status_of(observed(history))["attempt"]
    assert for_entries(history.entries[-1:], history.run) == ()


def test_the_user_is_answered_by_a_save_that_a_node_asked_for_later() -> None:
    history = training().save_requested("now-1").save_requested("node-1", reason="Node node-a is cordoned.")
    assert "lastSaveRequest" not in status_of(observed(history))
    history.committed(100, save_request="node-1")
    assert status_of(observed(history))["lastSaveRequest"] == "now-1"
