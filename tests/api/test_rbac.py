"""What the operator may do, and what the roles for people give: asked of the API server's own authorizer."""

from __future__ import annotations

import json

import pytest

from localcluster.client import ApiServer
from support.admission import Namespace

pytestmark = pytest.mark.api

OPERATOR = "system:serviceaccount:operators:ckpt-checkpoint-operator"

OPERATOR_MAY = [
    "get checkpoints",
    "list checkpoints",
    "watch checkpoints",
    "patch checkpoints",
    "patch checkpoints/status",
    "get checkpointsnapshots",
    "list checkpointsnapshots",
    "watch checkpointsnapshots",
    "create checkpointsnapshots",
    "delete checkpointsnapshots",
    "patch checkpointsnapshots/status",
    "get pods",
    "list pods",
    "watch pods",
    "get secrets",
    "get namespaces",
    "create events",
    "get nodes",
    "list nodes",
    "watch nodes",
]
OPERATOR_MAY_NOT = [
    "create checkpoints",
    "update checkpoints",
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
EDITOR_MAY = [
    "create checkpoints",
    "update checkpoints",
    "patch checkpoints",
    "delete checkpoints",
    "deletecollection checkpoints",
    "rollback checkpoints",
    "patch checkpointsnapshots",
]
ADMIN_MAY = ["takeover checkpoints", "divert checkpoints", "purge checkpoints"]
OUR_RESOURCES = ["checkpoints", "checkpoints/status", "checkpointsnapshots", "checkpointsnapshots/status"]
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
    return "yes" in answer.splitlines()  # kubectl also prints warnings about cluster-scoped resources


@pytest.mark.parametrize("what", OPERATOR_MAY)
def test_the_operator_may(chart: ApiServer, anywhere: Namespace, what: str) -> None:
    assert may(anywhere, OPERATOR, what)


@pytest.mark.parametrize("what", OPERATOR_MAY_NOT)
def test_the_operator_may_not(chart: ApiServer, anywhere: Namespace, what: str) -> None:
    assert not may(anywhere, OPERATOR, what)


@pytest.fixture(scope="module")
def people(chart: ApiServer) -> Namespace:
    """A namespace where `viewer`, `editor` and `admin` have our roles of these names."""
    namespace = Namespace.fresh(chart)
    for user, role in {"viewer": "view", "editor": "edit", "admin": "admin"}.items():
        name = f"ckpt-checkpoint-operator-{role}"
        namespace.kubectl("create", "rolebinding", user, f"--user={user}", f"--clusterrole={name}")
    return namespace


@pytest.mark.parametrize("what", VIEWER_MAY)
def test_a_viewer_may(people: Namespace, what: str) -> None:
    assert may(people, "viewer", what)


@pytest.mark.parametrize("what", EDITOR_MAY)
def test_an_editor_may_and_a_viewer_may_not(people: Namespace, what: str) -> None:
    assert may(people, "editor", what)
    assert not may(people, "viewer", what)


@pytest.mark.parametrize("what", ADMIN_MAY)
def test_an_admin_may_and_an_editor_may_not(people: Namespace, what: str) -> None:
    assert may(people, "admin", what)
    assert not may(people, "editor", what)


@pytest.mark.parametrize("what", NOBODY_MAY)
def test_only_the_operator_writes_status_and_snapshots(people: Namespace, what: str) -> None:
    for who in ("viewer", "editor", "admin"):
        assert not may(people, who, what)


def given_by(api: ApiServer, role: str) -> list[str]:
    rules = json.loads(api.kubectl("get", "clusterrole", role, "--output=json"))["rules"]
    assert all("resourceNames" not in rule and "nonResourceURLs" not in rule for rule in rules)
    return [f"{verb} {resource}" for rule in rules for resource in rule["resources"] for verb in rule["verbs"]]


def test_the_operator_may_what_is_listed_here_and_nothing_else(chart: ApiServer) -> None:
    bindings = json.loads(chart.kubectl("get", "clusterrolebindings", "--output=json"))["items"]
    subject = {"kind": "ServiceAccount", "name": "ckpt-checkpoint-operator", "namespace": "operators"}
    mine = [one for one in bindings if subject in one.get("subjects", ())]
    assert sorted(given for one in mine for given in given_by(chart, one["roleRef"]["name"])) == sorted(OPERATOR_MAY)


@pytest.mark.parametrize(
    ("role", "listed"),
    [
        ("view", [f"{verb} {resource}" for verb in ("get", "list", "watch") for resource in OUR_RESOURCES]),
        ("edit", [*EDITOR_MAY, "update checkpointsnapshots"]),
        ("admin", ADMIN_MAY),
    ],
    ids=["view", "edit", "admin"],
)
def test_a_role_for_people_gives_what_is_listed_here_and_nothing_else(
    chart: ApiServer, role: str, listed: list[str]
) -> None:
    assert sorted(given_by(chart, f"ckpt-checkpoint-operator-{role}")) == sorted(listed)


@pytest.mark.parametrize(
    ("role", "aggregated"),
    [("view", ["view", "edit", "admin"]), ("edit", ["edit", "admin"]), ("admin", ["admin"])],
)
def test_roles_are_added_to_those_of_the_cluster(chart: ApiServer, role: str, aggregated: list[str]) -> None:
    for target in ("view", "edit", "admin"):
        label = f"rbac.authorization.k8s.io/aggregate-to-{target}=true"
        found = chart.kubectl("get", "clusterroles", f"--selector={label}", "--output=name").split()
        assert (f"clusterrole.rbac.authorization.k8s.io/ckpt-checkpoint-operator-{role}" in found) == (
            target in aggregated
        )
