"""The rights that the chart gives, and the pod of `helm test` that asks for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.admission import Body
from support.charts import Render, of_kind, operator_container, operator_pod, operator_role, rules

pytestmark = pytest.mark.api


def test_rights_are_per_namespace_where_namespaces_are_named(render: Render) -> None:
    everywhere = operator_role(render(clusterId="c"))
    objects = render(
        clusterId="c",
        watchNamespaces=["team-a", "team-b"],
        rbac={"aggregate": False},
        nodeNotices={"enabled": False},
    )
    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == []
    ours = [role for role in of_kind(objects, "Role") if role["metadata"]["name"] == "ckpt-checkpoint-operator"]
    roles = {role["metadata"]["namespace"]: role for role in ours}
    assert {namespace: rules(role) for namespace, role in roles.items()} == dict.fromkeys(
        ["team-a", "team-b"], rules(everywhere)
    )
    for binding in of_kind(objects, "RoleBinding"):
        (subject,) = binding["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": "ckpt-checkpoint-operator", "namespace": "operators"}


def test_a_user_with_rights_in_namespaces_only_can_install_it(render: Render) -> None:
    off = {"mode": "Off"}
    objects = render(
        clusterId="c",
        watchNamespaces=["team-a"],
        crds={"enabled": False},
        rbac={"aggregate": False},
        nodeNotices={"enabled": False},
        injection=off,
        guardrails=off,
    )
    assert {one["metadata"].get("namespace") for one in objects} == {"operators", "team-a"}


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["everywhere", "per-namespace"])
@pytest.mark.parametrize("enabled", [True, False])
def test_nodes_are_watched_only_with_the_right_to_it(render: Render, enabled: bool, namespaces: list[str]) -> None:
    objects = render(nodeNotices={"enabled": enabled}, watchNamespaces=namespaces)
    found = [role for role in of_kind(objects, "ClusterRole") if role["metadata"]["name"].endswith("-nodes")]
    assert [role["rules"] for role in found] == [
        [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    ] * enabled
    bound = [each["roleRef"]["name"] for each in of_kind(objects, "ClusterRoleBinding")]
    named = "ckpt-checkpoint-operator-operators-nodes" if namespaces else "ckpt-checkpoint-operator-nodes"
    assert (named in bound) == enabled
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert ("--watch-nodes" in container["args"]) == enabled


def test_pods_are_created_deleted_and_evicted_only_when_that_is_switched_on(render: Render) -> None:
    def verbs(**reschedule: bool) -> set[tuple[str, str]]:
        role = operator_role(render(reschedule=reschedule))
        return {(resource, verb) for resource, verb in rules(role) if resource.startswith("pods")}

    read = {("pods", "get"), ("pods", "list"), ("pods", "watch")}
    assert verbs() == read
    assert verbs(recreateBarePods=True) == read | {("pods", "create"), ("pods", "delete")}
    assert verbs(restartGang=True) == read | {("pods/eviction", "create")}


def test_the_operator_reads_the_cluster_id_where_helm_could_not(render: Render) -> None:
    def roles(**values: Any) -> list[Body]:
        return [role for role in of_kind(render(**values), "Role") if role["metadata"]["namespace"] == "kube-system"]

    (role,) = roles()
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]}
    ]
    assert roles(clusterId="c") == []


PLACEMENT = {
    "priorityClassName": "important",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"operator": "Exists"}],
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
}


def test_the_pod_of_helm_test_runs_where_the_operator_runs_and_is_not_taken_for_it(render: Render) -> None:
    objects = render(**PLACEMENT)
    (test,) = of_kind(objects, "Pod")
    (container,) = test["spec"]["containers"]
    for name in ("priorityClassName", "nodeSelector", "tolerations", "imagePullSecrets", "serviceAccountName"):
        assert test["spec"][name] == operator_pod(objects)[name]
    for name in ("image", "env", "securityContext", "resources"):
        assert container[name] == operator_container(objects)[name]
    (deployment,) = of_kind(objects, "Deployment")
    assert not deployment["spec"]["selector"]["matchLabels"].items() <= test["metadata"]["labels"].items()


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a", "team-b"]}, {"nodeNotices": {"enabled": False}}])
def test_helm_test_asks_for_the_rights_that_the_chart_gives(render: Render, values: Body) -> None:
    objects = render(**values)
    (test,) = of_kind(objects, "Pod")
    arguments = test["spec"]["containers"][0]["args"]
    asked = [json.loads(one.removeprefix("--rules=")) for one in arguments if one.startswith("--rules=")]
    everywhere = [one.removeprefix("--cluster-rules=") for one in arguments if one.startswith("--cluster-rules=")]
    roles = {(one["kind"], one["metadata"]["name"]): one for one in objects if one["kind"] in ("Role", "ClusterRole")}
    kind = "Role" if "watchNamespaces" in values else "ClusterRole"
    assert asked == [roles[kind, "ckpt-checkpoint-operator"]["rules"]]
    part = "-operators" if "watchNamespaces" in values else ""
    nodes = roles.get(("ClusterRole", f"ckpt-checkpoint-operator{part}-nodes"), {"rules": None})["rules"]
    assert [json.loads(one) for one in everywhere] == ([nodes] if nodes else [])
    namespaces = [one for one in arguments if one.startswith("--namespace=")]
    assert namespaces == [f"--namespace={name}" for name in values.get("watchNamespaces", [])]


def test_helm_test_brings_no_roles_where_the_chart_may_make_none(render: Render) -> None:
    objects = render(rbac={"create": False})
    assert {one["kind"] for one in objects} & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} == set()
    assert len(of_kind(objects, "Pod")) == 1
