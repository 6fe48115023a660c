"""Nodes that announce their end, bare pods and gangs, beside a real API server: what the operator does there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_operator.model.pod_body import RECREATED
from checkpoint_sidecar.core.log import PodIdentity
from support.admission import Namespace, checkpoint, pod
from support.operators import FILES, StartOperator, Watched
from support.trainers import Trainer

pytestmark = pytest.mark.api

CORDON = "node.kubernetes.io/unschedulable"


@pytest.fixture
def node(namespace: Namespace) -> Iterator[str]:
    """A node that no kubelet serves: pods that are bound to it stay as they are until a test changes them."""
    name = f"node-of-{namespace.name}"
    namespace.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    # No controller runs that would take this taint of new nodes away.
    namespace.patch("nodes", name, {"spec": {"taints": []}})
    yield name
    namespace.kubectl("delete", "node", name)


def create(namespace: Namespace, url: str, **spec: Any) -> Watched:
    namespace.create(checkpoint("run", storage={"url": url}, **spec))
    run = Watched(namespace, "run")
    run.becomes("Ready", "True", "Configured")
    return run


def running(namespace: Namespace, name: str, node: str, **spec: Any) -> PodIdentity:
    """A labelled pod whose status says that it runs on a node."""
    body = pod("run", nodeName=node, terminationGracePeriodSeconds=1, **spec)
    body["metadata"]["name"] = name
    uid = namespace.create(body)["metadata"]["uid"]
    namespace.patch("pods", name, {"status": {"phase": "Running"}}, status=True)
    return PodIdentity(name, uid)


def evict(namespace: Namespace, name: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace.name}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{name}/eviction"
    namespace.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(body))


def end(namespace: Namespace, name: str) -> None:
    """What the kubelet does when the containers have ended."""
    namespace.patch("pods", name, {"status": {"phase": "Failed"}}, status=True)
    namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force")


def pods(namespace: Namespace) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in namespace.read("pods")["items"]}


def messages(namespace: Namespace, reason: str) -> list[str]:
    return [event["message"] for event in namespace.read("events")["items"] if event["reason"] == reason]


def cordon(namespace: Namespace, node: str, since: str) -> None:
    taint = {"key": CORDON, "effect": "NoSchedule", "timeAdded": since}
    namespace.patch("nodes", node, {"spec": {"unschedulable": True, "taints": [taint]}})


def uncordon(namespace: Namespace, node: str) -> None:
    namespace.patch("nodes", node, {"spec": {"unschedulable": None, "taints": None}})


# Nodes


@pytest.mark.parametrize("everywhere", [False, True], ids=["in-one-namespace", "in-all-namespaces"])
def test_each_cordon_of_a_node_with_a_pod_on_it_asks_once_for_a_save(
    namespace: Namespace,
    start_operator: StartOperator,
    url: str,
    trainer: Trainer,
    node: str,
    chart_rights: Path,
    everywhere: bool,
) -> None:
    cluster = f"--cluster-id={namespace.api.uid}"
    operator = start_operator(FILES, "--watch-nodes", cluster, kubeconfig=chart_rights, everywhere=everywhere)
    run = create(namespace, url)
    trainer.start(running(namespace, "trainer", node))
    run.eventually(lambda it: it.status.get("attempt", {}).get("pods") == ["trainer"])
    cordon(namespace, node, "2026-01-01T00:00:00Z")
    run.eventually(lambda _: trainer.run.attempts[1].save_requests, within=10)
    run.eventually(lambda it: it.status["attempt"].get("notice") == f"Node {node} is cordoned.")
    run.tells("SaveRequested")
    assert "PodEvicted" not in run.events()

    version = run.body["metadata"]["resourceVersion"]
    for update in range(3):
        heartbeat = {"status": {"nodeInfo": {"kernelVersion": str(update)}}}
        namespace.patch("nodes", node, heartbeat, status=True)
    trainer.commit(10, save_request=trainer.run.attempts[1].save_request)
    run.eventually(lambda it: it.status.get("latest", {}).get("step") == 10)
    assert run.body["metadata"]["resourceVersion"] != version
    assert len(trainer.run.attempts[1].save_requests) == 1
    assert "lastSaveRequest" not in run.status

    uncordon(namespace, node)
    cordon(namespace, node, "2026-01-01T00:01:00Z")
    run.eventually(lambda _: len(trainer.run.attempts[1].save_requests) == 2, within=10)
    assert "answered 403" not in operator.logged
    assert "Forbidden" not in operator.logged


def test_without_the_option_nodes_are_not_watched(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer, node: str
) -> None:
    start_operator(FILES)
    run = create(namespace, url)
    trainer.start(running(namespace, "trainer", node))
    run.eventually(lambda it: it.status.get("attempt", {}).get("pods") == ["trainer"])
    cordon(namespace, node, "2026-01-01T00:00:00Z")
    time.sleep(6)
    assert trainer.run.attempts[1].save_requests == ()


# Bare pods


def test_an_evicted_bare_pod_is_created_again_and_a_deleted_one_is_not(
    namespace: Namespace, start_operator: StartOperator, url: str, node: str
) -> None:
    for _ in range(2):  # two operators, by mistake
        start_operator(FILES)
    run = create(namespace, url, reschedule={"recreateBarePods": True})
    evicted = running(namespace, "evicted", node)
    running(namespace, "deleted", node)
    time.sleep(2)  # the watch may show a pod that comes and goes at once only when it is gone
    evict(namespace, "evicted")
    namespace.kubectl("delete", "pod", "deleted", "--wait=false")
    end(namespace, "evicted")
    end(namespace, "deleted")
    again = run.eventually(lambda _: pods(namespace).get("evicted"), within=15)
    assert again["metadata"]["uid"] != evicted.uid
    assert again["metadata"]["annotations"][RECREATED] == "1"
    assert "nodeName" not in again["spec"]
    assert again["spec"]["containers"][0]["image"] == "i"
    time.sleep(5)
    assert list(pods(namespace)) == ["evicted"]
    assert messages(namespace, "PodRecreated") == ["Pod evicted is created again: EvictionByEvictionAPI."]


def test_what_is_left_of_a_pod_that_the_kubelet_evicted_gives_way_to_the_new_one(
    namespace: Namespace, start_operator: StartOperator, url: str, node: str
) -> None:
    start_operator(FILES)
    run = create(namespace, url, reschedule={"recreateBarePods": True})
    evicted = running(namespace, "trainer", node)
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    status = {"phase": "Failed", "reason": "Evicted", "conditions": [disruption]}
    namespace.patch("pods", "trainer", {"status": status}, status=True)

    def there() -> dict[str, Any] | None:
        found = pods(namespace).get("trainer")
        return found if found is not None and found["metadata"]["uid"] != evicted.uid else None

    again = run.eventually(lambda _: there(), within=15)
    assert again["status"]["phase"] == "Pending"
    (told,) = run.eventually(lambda _: messages(namespace, "PodRecreated"))
    assert told == "Pod trainer is created again: TerminationByKubelet."


@pytest.mark.parametrize("everywhere", [False])
def test_without_the_right_to_it_an_event_says_what_to_do(
    namespace: Namespace, start_operator: StartOperator, url: str, node: str, chart_rights: Path, everywhere: bool
) -> None:
    start_operator(FILES, f"--cluster-id={namespace.api.uid}", kubeconfig=chart_rights)
    run = create(namespace, url, reschedule={"recreateBarePods": True})
    running(namespace, "trainer", node)
    time.sleep(2)
    evict(namespace, "trainer")
    end(namespace, "trainer")
    (told,) = run.eventually(lambda _: messages(namespace, "PodNotRecreated"), within=15)
    assert "reschedule.recreateBarePods" in told
    time.sleep(12)  # the second try
    assert messages(namespace, "PodNotRecreated") == [told]
    assert pods(namespace) == {}
    assert run.condition("Ready")["status"] == "True", "nothing else suffers"


# Gangs


def test_the_peers_of_an_evicted_pod_are_evicted_when_they_hang_as_budgets_allow(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer, node: str
) -> None:
    start_operator(FILES)
    run = create(namespace, url, reschedule={"restartGang": True})
    gang = [running(namespace, name, node) for name in ("rank-0", "rank-1")]
    running(namespace, "stranger", node)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "budget"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"checkpoint-operator.dev/checkpoint": "run"}}},
    }
    trainer.start(*gang)
    run.eventually(lambda it: it.status.get("attempt", {}).get("podCount") == 2)
    evict(namespace, "rank-0")
    end(namespace, "rank-0")
    namespace.create(budget)
    run.eventually(lambda it: "PodEvicted" in it.events(), within=10)
    assert "deletionTimestamp" not in pods(namespace)["rank-1"]["metadata"], "it has its grace period to save"
    (told,) = run.eventually(lambda _: messages(namespace, "GangNotRestarted"), within=40)
    assert "PodDisruptionBudget" in told
    assert "deletionTimestamp" not in pods(namespace)["rank-1"]["metadata"]
    namespace.kubectl("delete", "pdb", "budget")
    (told,) = run.eventually(lambda _: messages(namespace, "GangRestarted"), within=60)
    assert "rank-1" in told
    evicted = pods(namespace)["rank-1"]
    assert "deletionTimestamp" in evicted["metadata"]
    assert [c["reason"] for c in evicted["status"]["conditions"] if c["type"] == "DisruptionTarget"] == [
        "EvictionByEvictionAPI"
    ]
    end(namespace, "rank-1")
    time.sleep(5)
    assert list(pods(namespace)) == ["stranger"]
    assert "deletionTimestamp" not in pods(namespace)["stranger"]["metadata"]
    run.tells("GangRestarted")
