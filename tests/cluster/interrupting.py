"""The ways in which training is interrupted, and what an interrupted run must look like afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo import interruptions
from demo.training import Follower, TrainingRun, wait_for
from localcluster.cluster import Cluster


def reasons(run: TrainingRun) -> list[str]:
    return [event["reason"] for event in run.events()]


def drain(cluster: Cluster, node: str, *options: str) -> None:
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s", *options)
    cluster.kubectl("drain", node, *flags)


def kill_rank(run: TrainingRun) -> None:
    """SIGKILL to one rank of the run's pod."""
    _signal(run, run.followers[-1].pod, signal.SIGKILL, b"RANK=1")


def freeze(run: TrainingRun, pod: str) -> None:
    """Let a pod hang: its processes are there, and do nothing any more, not even on SIGTERM."""
    _signal(run, pod, signal.SIGSTOP)


def _signal(run: TrainingRun, pod: str, number: signal.Signals, *variables: bytes) -> None:
    """To the processes of a pod that have these variables; they are found by what its admission gave them."""
    uid = run.get("pod", pod)["metadata"]["uid"]
    wanted = {f"CHECKPOINT_POD_UID={uid}".encode(), *variables}
    found = [process for process in Path("/proc").iterdir() if wanted <= _environment(process)]
    if not found:
        raise LookupError(f"no process of {pod} with {variables}")
    for process in found:
        os.kill(int(process.name), number)


def _environment(process: Path) -> set[bytes]:
    try:
        return set((process / "environ").read_bytes().split(b"\0")) if process.name.isdecimal() else set()
    except OSError:
        return set()


def evict(run: TrainingRun, pod: str) -> None:
    """What `kubectl drain`, the cluster autoscaler and the descheduler do to a pod."""
    interruptions.evict(run.cluster, run.namespace, pod)


@contextmanager
def cordoned(cluster: Cluster, node: str) -> Iterator[None]:
    """The node gets no new pods inside this block."""
    cluster.kubectl("cordon", node)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", node)


@contextmanager
def tainted(cluster: Cluster, node: str) -> Iterator[None]:
    """The node does not bear pods inside this block."""
    cluster.kubectl("taint", "node", node, "maintenance=now:NoExecute")
    try:
        yield
    finally:
        cluster.kubectl("taint", "node", node, "maintenance-")


def requested_save(run: TrainingRun) -> int:
    """Step of the snapshot that was saved because the operator asked for it."""

    def saved() -> int | None:
        found = (each for each in run.snapshots if each.get("status", {}).get("trigger") == "Request")
        return next((each["spec"]["step"] for each in found), None)

    return wait_for("a save on request", saved, timeout=40, context=lambda: f"{run.describe()}\n{reasons(run)}")


def continued(run: TrainingRun) -> tuple[Follower, int]:
    """The next start of the run's container, and the first step that it finished."""
    replacement = run.follow_next_pod(timeout=150)
    first = wait_for("a step", replacement.first_step, timeout=150, context=replacement.tail)
    assert first.step is not None
    return replacement, first.step


def evicted_without_loss(run: TrainingRun) -> Follower:
    """Evict the run's pod after some steps; returns it, once its successor has begun at the very next step."""
    run.wait_step(15)
    evicted = run.followers[-1]
    evict(run, evicted.pod)
    evicted.finish(timeout=60)
    _, first = continued(run)
    assert first == evicted.last_step + 1
    return evicted


def reported_eviction(run: TrainingRun) -> str:
    """Message of the Event that tells why the pod had to go."""

    def told() -> str | None:
        return next((event["message"] for event in run.events() if event["reason"] == "PodEvicted"), None)

    return wait_for(f"an Event PodEvicted of {run.name}", told, timeout=30, context=lambda: str(reasons(run)))
