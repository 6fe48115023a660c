"""The ways in which training is interrupted, and what an interrupted run must look like afterwards."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.training import Follower, TrainingRun, wait_for
from localcluster.cluster import Cluster


def reasons(run: TrainingRun) -> list[str]:
    return [event["reason"] for event in run.events()]


def drain(cluster: Cluster, node: str) -> None:
    cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")


def kill_rank(run: TrainingRun) -> None:
    """SIGKILL to one rank of the run's pod, found by the environment its admission gave it."""
    uid = run.get("pod", run.followers[-1].pod)["metadata"]["uid"]
    for process in Path("/proc").iterdir():
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if f"CHECKPOINT_POD_UID={uid}".encode() in variables and b"RANK=1" in variables:
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise LookupError(f"no process of rank 1 of {run.name}")


def evict(run: TrainingRun, pod: str) -> None:
    """What `kubectl drain`, the cluster autoscaler and the descheduler do to a pod."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": run.namespace}}
    path = f"/api/v1/namespaces/{run.namespace}/pods/{pod}/eviction"
    run.cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))


@contextmanager
def tainted(cluster: Cluster, node: str) -> Iterator[None]:
    """The node does not bear pods inside this block."""
    cluster.kubectl("taint", "node", node, "maintenance=now:NoExecute")
    try:
        yield
    finally:
        cluster.kubectl("taint", "node", node, "maintenance-")


def continued(run: TrainingRun) -> tuple[Follower, int]:
    """The next start of the run's container, and the first step that it finished."""
    replacement = run.follow_next_pod(timeout=150)
    first = wait_for("a step", replacement.first_step, timeout=150, context=replacement.tail)
    assert first.step is not None
    return replacement, first.step


def eviction_told(run: TrainingRun) -> str:
    """Message of the Event that tells why the pod had to go."""

    def told() -> str | None:
        return next((event["message"] for event in run.events() if event["reason"] == "PodEvicted"), None)

    return wait_for(f"an Event PodEvicted of {run.name}", told, timeout=30, context=lambda: str(reasons(run)))
