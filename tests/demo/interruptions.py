"""Two ways to make a pod leave its node: drain the node, or evict the pod alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from localcluster.client import Client

TIMEOUT = "--timeout=90s"


@dataclass(frozen=True)
class Target:
    """The pod to interrupt, and where it runs."""

    namespace: str
    pod: str
    node: str


class Interruption(Protocol):
    """One way to interrupt a pod."""

    @property
    def moves(self) -> bool:
        """Whether the replacement must run on another node."""

    def title(self, target: Target) -> str:
        """The command, for people."""

    def interrupt(self, cluster: Client, target: Target) -> None:
        """Make the pod leave. Raises `CommandError`."""

    def undo(self, cluster: Client, target: Target) -> None:
        """Let pods run on the node again. Raises `CommandError`."""


@dataclass(frozen=True)
class Drain:
    """`kubectl drain`: cordons the node and evicts its pods.

    Attributes:
        selector: Evict only pods with this label; empty: all.
        beforehand: Called with the node's name before it is cordoned.
    """

    selector: str = ""
    beforehand: Callable[[str], None] = lambda _: None
    moves: bool = True

    def title(self, target: Target) -> str:
        return " ".join(["kubectl drain", target.node, *self._options])

    def interrupt(self, cluster: Client, target: Target) -> None:
        self.beforehand(target.node)
        flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", TIMEOUT)
        cluster.kubectl("drain", target.node, *flags, *self._options)

    def undo(self, cluster: Client, target: Target) -> None:
        cluster.kubectl("uncordon", target.node)

    @property
    def _options(self) -> list[str]:
        return [f"--pod-selector={self.selector}"] if self.selector else []


@dataclass(frozen=True)
class Evict:
    """The Eviction API, which `kubectl drain`, the cluster autoscaler and the descheduler use."""

    moves: bool = False

    def title(self, target: Target) -> str:
        return f"Eviction of pod {target.pod}"

    def interrupt(self, cluster: Client, target: Target) -> None:
        evict(cluster, target.namespace, target.pod)
        cluster.kubectl(f"--namespace={target.namespace}", "wait", "--for=delete", f"pod/{target.pod}", TIMEOUT)

    def undo(self, cluster: Client, target: Target) -> None:
        """Nothing to undo: the node was never cordoned."""


def evict(cluster: Client, namespace: str, pod: str) -> None:
    """Evict one pod. Raises `CommandError`."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
