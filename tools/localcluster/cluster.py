"""The whole: control plane, two nodes, object store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster import build, controlplane, images, network, objectstore, requirements
from localcluster.client import ApiServer
from localcluster.nodes import IMAGES, Node
from localcluster.objectstore import ObjectStore
from localcluster.workspace import Workspace

NODE_NAMES = ("node-a", "node-b")
API_PORT = 443
"""The one at which pods look for the API."""
READY_SECONDS = 90.0
DESCRIPTION = "cluster.json"

Stages = Callable[[str, float], None]
"""Told after each stage of `up`: what was done and how many seconds it took."""


class RequirementError(Exception):
    """This machine cannot run the cluster; the message says why."""


class NoClusterError(Exception):
    """There is no running cluster in the directory."""


@dataclass(frozen=True)
class Cluster(ApiServer):
    """A running cluster, as its administrator sees it."""

    object_store: ObjectStore
    node_names: tuple[str, ...]

    def node(self, name: str) -> Node:
        """A node, to be switched off and on."""
        return Node(name, Workspace(self.directory))

    def host_python(self, *folders: Path, scratch: bool = True) -> images.PodPython:
        """What a pod needs to run the Python environment of this process: see `images.host_python`."""
        return images.host_python(*folders, scratch=scratch)


def up(place: Workspace, stages: Stages = lambda *_: None, node_names: Sequence[str] = NODE_NAMES) -> Cluster:
    """Start a cluster in `place`, which is empty or does not exist yet; return when its nodes are ready for pods.

    Raises `RequirementError`, `ProcessError` (with the end of the log) or `OSError`; what was started until then is
    ended by `place.erase()`.
    """
    if problem := requirements.cluster_problem():
        raise RequirementError(problem)
    place.create()
    ports = network.free_ports()
    timed = _stopwatch(stages)
    with timed("object store started"):
        store_daemon, store = objectstore.start(place.daemons, ports)
    with timed("control plane answers"):
        plane = controlplane.start(place, ports, port=API_PORT, node_names=node_names)
    with timed("controllers and nodes started"):
        controlplane.start_controllers(place, plane, ports)
        pause = build.built("pause")
        assert pause is not None
        images.write_archive(place.directory / IMAGES, pause)
        nodes = [Node(name, place) for name in node_names]
        for node in nodes:
            node.configure(plane, ports)
            node.power_on()
    cluster = Cluster(place.directory, plane.api.url, store, tuple(node_names))
    with timed("object store answers"):
        objectstore.wait_ready(store_daemon, store)
    with timed(f"nodes {', '.join(node_names)} are ready"):
        for node in nodes:
            wait_ready(cluster, node.name)
    with timed("service accounts are there"):
        manager = place.daemons.daemon("kube-controller-manager")
        manager.wait_ready(lambda: cluster.answers("/api/v1/namespaces/default/serviceaccounts/default"), READY_SECONDS)
    description = place.directory / DESCRIPTION
    description.touch(mode=0o600)
    description.write_text(json.dumps({"url": cluster.url, "nodes": node_names, "store": asdict(store)}))
    return cluster


def wait_ready(cluster: Cluster, node: str) -> None:
    """Return when the API says that the node is ready for pods. Raises `ProcessError`."""
    cluster.node(node).daemon.wait_ready(lambda: node_is_ready(cluster, node), READY_SECONDS)


def node_is_ready(cluster: Cluster, node: str) -> bool:
    try:
        found = cluster.get(f"/api/v1/nodes/{node}")
    except OSError:
        return False
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in found["status"].get("conditions", []))
    return ready and not found["spec"].get("taints")


def load(directory: Path) -> Cluster:
    """The cluster that was started in `directory`. Raises `NoClusterError`."""
    try:
        found = json.loads((directory / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise NoClusterError(f"no cluster in {directory}: `up` was not run there or did not finish") from None
    return Cluster(directory.resolve(), found["url"], ObjectStore(**found["store"]), tuple(found["nodes"]))


def _stopwatch(stages: Stages) -> Callable[[str], AbstractContextManager[None]]:
    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        stages(stage, time.monotonic() - started)

    return timed
