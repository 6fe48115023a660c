"""What the operator may do, and what the roles for people give: asked of the API server's own authorizer."""

from __future__ import annotations

import pytest

from admission import Namespace
from localcluster.client import ApiServer

pytestmark = pytest.mark.api

OPERATOR = "system:serviceaccount:operators:ckpt-checkpoint-operator"

OPERATOR_MAY = [
    "get checkpoints",
    "list checkpoints",
    "watch checkpoints",
    "patch checkpoints/status",
    "list checkpointsnapshots",
    "watch checkpointsnapshots",
    "create checkpointsnapshots",
    "delete checkpointsnapshots",
    "patch checkpointsnapshots/status",
    "list pods",
    "watch pods",
    "get secrets",
    "create events",
    "list nodes",
    "watch nodes",
]
OPERATOR_MAY_NOT = [
    "create checkpoints",
    "update checkpoints",
    "patch checkpoints",
    "delete checkpoints",
    "patch checkpointsnapshots",
    "update checkpointsnapshots",
    "deletecollection checkpointsnapshots",
    "list secrets",
    "watch secrets",
    "create secrets",
    "update secrets",
    "create pods",
    "delete pods",
    "create pods/eviction",
    "create pods/exec",
    "patch pods",
    "list configmaps",
    "get configmaps",
    "list namespaces",
    "patch nodes",
    "get nodes/proxy",
    "delete persistentvolumeclaims",
    "create serviceaccounts/token",
    "list customresourcedefinitions",
    "patch mutatingadmissionpolicies",
    "escalate clusterroles",
    "impersonate users",
]
VIEWER_MAY = ["get checkpoints", "list checkpointsnapshots", "get checkpoints/status"]
EDITOR_MAY = ["create checkpoints", "update checkpoints", "delete checkpoints", "patch checkpointsnapshots"]
NOBODY_MAY = [
    "create checkpointsnapshots",
    "delete checkpointsnapshots",
    "patch checkpoints/status",
    "patch checkpointsnapshots/status",
]


def may(namespace: Namespace, who: str, what: str) -> bool:
    verb, _, resource = what.partition(" ")
    resource, _, subresource = resource.partition("/")
    question = ["auth", "can-i", verb, resource, f"--subresource={subresource}", f"--as={who}"]
    answer = namespace.api.kubectl(*question, f"--namespace={namespace.name}", check=False)
    return "yes" in answer.splitlines()  # among warnings, of what belongs to no namespace


@pytest.mark.parametrize("what", OPERATOR_MAY)
def test_the_operator_may(chart: ApiServer, anywhere: Namespace, what: str) -> None:
    assert may(anywhere, OPERATOR, what)


@pytest.mark.parametrize("what", OPERATOR_MAY_NOT)
def test_the_operator_may_not(chart: ApiServer, anywhere: Namespace, what: str) -> None:
    assert not may(anywhere, OPERATOR, what)


@pytest.fixture(scope="module")
def people(chart: ApiServer) -> Namespace:
    """A namespace where `viewer` and `editor` have our roles, as aggregation gives them to view and edit."""
    namespace = Namespace.fresh(chart)
    bind = ("create", "rolebinding", "--user")
    namespace.kubectl(*bind, "viewer", "viewer", "--clusterrole=ckpt-checkpoint-operator-view")
    namespace.kubectl(*bind, "editor", "editor", "--clusterrole=ckpt-checkpoint-operator-edit")
    return namespace


@pytest.mark.parametrize("what", VIEWER_MAY)
def test_a_viewer_may(people: Namespace, what: str) -> None:
    assert may(people, "viewer", what)


@pytest.mark.parametrize("what", EDITOR_MAY)
def test_an_editor_may_and_a_viewer_may_not(people: Namespace, what: str) -> None:
    assert may(people, "editor", what)
    assert not may(people, "viewer", what)


@pytest.mark.parametrize("what", NOBODY_MAY)
def test_only_the_operator_writes_status_and_snapshots(people: Namespace, what: str) -> None:
    assert not may(people, "viewer", what)
    assert not may(people, "editor", what)


@pytest.mark.parametrize(("role", "aggregated"), [("view", ["view", "edit", "admin"]), ("edit", ["edit", "admin"])])
def test_roles_are_added_to_those_of_the_cluster(chart: ApiServer, role: str, aggregated: list[str]) -> None:
    for target in ("view", "edit", "admin"):
        label = f"rbac.authorization.k8s.io/aggregate-to-{target}=true"
        found = chart.kubectl("get", "clusterroles", f"--selector={label}", "--output=name").split()
        assert (f"clusterrole.rbac.authorization.k8s.io/ckpt-checkpoint-operator-{role}" in found) == (
            target in aggregated
        )
