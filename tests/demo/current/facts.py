"""Ask a cluster for the facts that the demo depends on. Creates nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.current.context import Context, last_line
from localcluster.client import CommandError

GROUP = "checkpoint-operator.dev"
INJECTION = "mutatingadmissionpolicies.admissionregistration.k8s.io"
GUARDRAILS = "validatingadmissionpolicies.admissionregistration.k8s.io"
CLUSTER_WIDE = (
    "namespaces",
    "customresourcedefinitions.apiextensions.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
)
"""What the demo creates outside a namespace, besides the admission policies."""
NAMESPACED = (
    "pods",
    "pods/exec",
    "jobs.batch",
    "deployments.apps",
    "secrets",
    "configmaps",
    "roles.rbac.authorization.k8s.io",
)


class UnreachableError(Exception):
    """The cluster does not answer; the message says what to do."""


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        open: Whether a pod without tolerations can be scheduled on it.
        provider: Its `spec.providerID`.
    """

    name: str
    open: bool
    provider: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Facts:
    """A cluster as it is before the demo.

    Attributes:
        uid: UID of its namespace kube-system.
        nodes: Empty also where they may not be listed.
        definitions: Definitions of the operator's resources that are there already.
        forbidden: What the context may not do and the demo must.
        may_drain: Whether the context may cordon nodes and evict pods.
        injects: Whether the cluster offers what injection needs.
    """

    uid: str
    nodes: tuple[Node, ...]
    definitions: tuple[str, ...]
    forbidden: tuple[str, ...]
    may_drain: bool
    may_evict: bool
    injects: bool


def gather(cluster: Context) -> Facts:
    """Ask the cluster. Raises `UnreachableError`."""
    try:
        kube_system = json.loads(
            cluster.kubectl("get", "namespace", "kube-system", "--output=json", "--request-timeout=15s")
        )
        served = cluster.kubectl("api-resources", "--output=name", "--request-timeout=15s", check=False).split()
    except CommandError as error:
        raise UnreachableError(
            f"ask the cluster of context {cluster.name}: {last_line(error)}. Check that it runs and that you are "
            "logged in."
        ) from None
    policies = [name for name in (INJECTION, GUARDRAILS) if name in served]
    wanted = [(verb, name) for name in (*CLUSTER_WIDE, *policies) for verb in ("create", "delete")]
    wanted += [("create", name) for name in NAMESPACED]
    may_evict = _may(cluster, "create", "pods/eviction")
    return Facts(
        uid=kube_system["metadata"]["uid"],
        nodes=_nodes(cluster),
        definitions=tuple(name for name in served if name.endswith(f".{GROUP}")),
        forbidden=tuple(f"{verb} {name}" for verb, name in wanted if not _may(cluster, verb, name)),
        may_drain=may_evict and _may(cluster, "patch", "nodes"),
        may_evict=may_evict,
        injects=INJECTION in served,
    )


def _may(cluster: Context, verb: str, resource: str) -> bool:
    name, _, part = resource.partition("/")
    subresource = [f"--subresource={part}"] if part else []
    # "kube-system" stands for any namespace: the demo's own does not exist yet.
    answer = cluster.kubectl("auth", "can-i", verb, name, *subresource, "--namespace=kube-system", check=False)
    return re.search(r"^yes$", answer, re.MULTILINE) is not None


def _nodes(cluster: Context) -> tuple[Node, ...]:
    try:
        items = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    except CommandError:
        return ()
    return tuple(node(item) for item in items)


def node(item: dict[str, Any]) -> Node:
    """A node as the API describes it."""
    spec, metadata = item["spec"], item["metadata"]
    repelling = [taint for taint in spec.get("taints", []) if taint["effect"] != "PreferNoSchedule"]
    is_open = not spec.get("unschedulable") and not repelling and _ready(item["status"].get("conditions", []))
    labels = tuple(sorted(metadata.get("labels", {}).items()))
    return Node(metadata["name"], is_open, spec.get("providerID", ""), labels)


def _ready(conditions: Sequence[dict[str, Any]]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
