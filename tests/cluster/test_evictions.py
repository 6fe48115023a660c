"""Every way to lose a pod, by every kind of workload that this cluster can run: nothing is lost that need not be.

The long tail beside ``test_interruptions``: run it with `pytest -m evictions`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import STEPS, Start, Workload
from cluster.hungry import TRIGGER
from cluster.interrupting import (
    continued,
    cordoned,
    drain,
    evict,
    evicted_without_loss,
    freeze,
    kill_rank,
    reasons,
    reported_eviction,
    requested_save,
    tainted,
)
from demo import manifests
from demo.training import TrainingRun, wait_for
from localcluster import cluster as localcluster
from localcluster import network
from localcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.evictions, pytest.mark.timeout(420)]

HUNGRY = Path(__file__).with_name("hungry.py")


def one_pod_stateful_set(name: str, template: manifests.Manifest) -> manifests.Manifest:
    return manifests.stateful_set(name, template, pods=1)


def assert_nothing_lost(run: TrainingRun, *, restored: int) -> None:
    """The run reaches its end, and says that it went on at the very step it was stopped at."""
    status = run.wait_status("reflects the last step", lambda s: s.get("latest", {}).get("step") == STEPS, timeout=120)
    assert "RestoreFailed" not in reasons(run)
    assert status["lastRestore"]["reason"] == "Latest"
    if status["attempt"]["number"] == 2:  # a StatefulSet starts its pods again when they are done
        assert (status["lastRestore"]["step"], status["lastRestore"]["lostSteps"]) == (restored, 0)


def assert_restored_a_scheduled_save(run: TrainingRun, first_step: int, *, stopped_at: int) -> None:
    """Without a SIGTERM, what was saved by schedule is what there is."""
    restored = first_step - 1
    assert 0 < restored <= stopped_at
    assert restored % 10 == 0
    status = run.wait_status("reflects the last step", lambda s: s.get("latest", {}).get("step") == STEPS, timeout=120)
    assert status["lastRestore"]["step"] == restored
    assert status["attempt"]["number"] == 2
    assert "RestoreFailed" not in reasons(run)


@pytest.mark.parametrize("workload", [manifests.job_of, one_pod_stateful_set], ids=["job", "stateful-set"])
def test_a_pod_evicted_through_the_api_is_replaced_and_loses_nothing(start: Start, workload: Workload) -> None:
    run = start(f"evicted-{workload.__name__.replace('_', '-')}", workload)
    evicted = evicted_without_loss(run)
    assert "EvictionByEvictionAPI" in reported_eviction(run)
    assert_nothing_lost(run, restored=evicted.last_step)


def test_a_pod_of_a_node_that_is_tainted_moves_to_the_other_node_and_loses_nothing(
    operator: Cluster, start: Start
) -> None:
    run = start("tainted")
    run.wait_step(15)
    evicted = run.followers[-1]
    node = run.node_of(evicted.pod)
    with tainted(operator, node):
        evicted.finish(timeout=60)
        replacement, first = continued(run)
        assert run.node_of(replacement.pod) != node
    assert first == evicted.last_step + 1
    assert "DeletionByTaintManager" in reported_eviction(run)
    assert_nothing_lost(run, restored=evicted.last_step)


def test_a_drain_without_a_grace_period_costs_nothing_that_the_cordon_saved(operator: Cluster, start: Start) -> None:
    run = start("hurried", save={"everySteps": 1000})
    run.wait_step(5)
    evicted = run.followers[-1]
    node = run.node_of(evicted.pod)
    with cordoned(operator, node):
        saved = requested_save(run)
        drain(operator, node, "--grace-period=1")
        evicted.finish(timeout=60)
        _, first = continued(run)
    assert saved < first <= evicted.last_step + 1
    status = run.wait_status("reflects the last step", lambda s: s.get("latest", {}).get("step") == STEPS, timeout=120)
    assert status["lastRestore"]["step"] == first - 1
    assert status["lastRestore"]["reason"] == "Latest"
    assert "SaveRequested" in reasons(run)
    assert "RestoreFailed" not in reasons(run)


def test_a_pod_that_bears_a_taint_for_some_time_saves_at_once_and_again_when_it_has_to_go(
    operator: Cluster, start: Start
) -> None:
    def patient(name: str, template: manifests.Manifest) -> manifests.Manifest:
        some_time = {"key": "maintenance", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
        template["spec"]["tolerations"] = [some_time]
        return manifests.job_of(name, template)

    run = start("patient", patient, save={"everySteps": 1000})
    run.wait_step(5)
    evicted = run.followers[-1]
    with tainted(operator, run.node_of(evicted.pod)):
        saved = requested_save(run)
        evicted.finish(timeout=60)
    # Perhaps on the same node: the scheduler does not mind a taint that the pod tolerates for some time.
    _, first = continued(run)
    assert 5 <= saved < evicted.last_step
    assert first == evicted.last_step + 1
    assert "DeletionByTaintManager" in reported_eviction(run)
    assert "SaveRequested" in reasons(run)
    assert_nothing_lost(run, restored=evicted.last_step)


def test_a_suspended_job_that_is_resumed_continues_at_the_step_it_was_suspended_at(start: Start) -> None:
    run = start("suspended")
    run.wait_step(15)
    stopped = run.followers[-1]
    run.kubectl("patch", "job", run.name, "--type=merge", '--patch={"spec": {"suspend": true}}')
    stopped.finish(timeout=60)
    wait_for("its pod to be gone", lambda: not run.pods(), timeout=60, context=run.describe)
    run.kubectl("patch", "job", run.name, "--type=merge", '--patch={"spec": {"suspend": false}}')
    _, first = continued(run)
    assert first == stopped.last_step + 1
    assert_nothing_lost(run, restored=stopped.last_step)


def restarting(name: str, template: manifests.Manifest) -> manifests.Manifest:
    """A Job whose containers are restarted in their pod."""
    body = manifests.job_of(name, template)
    template["spec"]["restartPolicy"] = "OnFailure"
    del body["spec"]["podFailurePolicy"]  # only for pods that are never restarted
    return body


def test_a_container_that_ran_out_of_memory_continues_from_the_last_scheduled_save(
    start: Start,
) -> None:
    def hungry(name: str, template: manifests.Manifest) -> manifests.Manifest:
        (container,) = template["spec"]["containers"]
        container["command"] = [
            str(HUNGRY) if part == str(manifests.TRAINING_SCRIPT) else part for part in container["command"]
        ]
        container["resources"] = {"requests": {"memory": "64Mi"}, "limits": {"memory": "3Gi"}}
        return restarting(name, template)

    run = start("hungry", hungry)
    run.wait_step(15)
    run.wait_status("has seen step 10", lambda s: s.get("latest", {}).get("step", 0) >= 10)
    killed = run.followers[-1]
    run.kubectl("exec", killed.pod, "--", "touch", TRIGGER)
    killed.finish(timeout=90)
    replacement, first = continued(run)
    assert replacement.pod == killed.pod, "it is the same pod"
    (container,) = run.get("pod", killed.pod)["status"]["containerStatuses"]
    assert container["lastState"]["terminated"]["reason"] == "OOMKilled"
    assert "PodEvicted" not in reasons(run), "it keeps its pod"
    assert_restored_a_scheduled_save(run, first, stopped_at=killed.last_step)


def test_a_container_that_is_restarted_in_its_pod_continues_from_the_last_scheduled_save(start: Start) -> None:
    run = start("restarted", restarting)
    run.wait_step(15)
    run.wait_status("has seen step 10", lambda s: s.get("latest", {}).get("step", 0) >= 10)
    kill_rank(run)
    killed = run.followers[-1]
    killed.finish(timeout=60)
    replacement, first = continued(run)
    assert replacement.pod == killed.pod, "it is the same pod"
    assert_restored_a_scheduled_save(run, first, stopped_at=killed.last_step)


def test_a_job_whose_node_is_lost_continues_elsewhere_from_the_last_scheduled_save(
    operator: Cluster, start: Start
) -> None:
    run = start("lost")
    run.wait_step(15)
    run.wait_status("has seen step 10", lambda s: s.get("latest", {}).get("step", 0) >= 10)
    lost = run.followers[-1]
    node = run.node_of(lost.pod)
    operator.node(node).power_off()
    try:
        lost.close()
        # Only an administrator knows that the node is gone and not just silent.
        operator.kubectl("delete", "node", node)
        replacement, first = continued(run)
        assert run.node_of(replacement.pod) != node
    finally:
        operator.node(node).power_on()
        localcluster.wait_ready(operator, node)
    assert_restored_a_scheduled_save(run, first, stopped_at=lost.last_step)


@contextmanager
def urgent_pod(run: TrainingRun, template: manifests.Manifest) -> Iterator[None]:
    """Something more important needs the place of the training inside this block."""
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "urgent"},
        "value": 1_000_000,
    }
    body = manifests.bare_pod("urgent", {"metadata": {}, "spec": template})
    run.apply(priority, body)
    try:
        yield
    finally:
        run.kubectl("delete", "pod", "urgent", "--now")
        run.kubectl("delete", "priorityclass", "urgent")


def test_a_preempted_job_waits_for_its_place_and_continues_at_the_step_it_was_preempted_at(
    operator: Cluster, start: Start
) -> None:
    node = operator.node_names[0]
    cores = json.loads(operator.kubectl("get", "node", node, "--output=json"))["status"]["allocatable"]["cpu"]
    most = {"requests": {"cpu": f"{int(cores) * 1000 - 400}m"}}
    place: dict[str, Any] = {"nodeSelector": {"kubernetes.io/hostname": node}}

    def large(name: str, template: manifests.Manifest) -> manifests.Manifest:
        template["spec"] |= place
        template["spec"]["containers"][0]["resources"] = most
        return manifests.job_of(name, template)

    run = start("preempted", large)
    run.wait_step(15)
    preempted = run.followers[-1]
    python = operator.host_python()
    container = {
        "name": "work",
        "image": python.image,
        "command": ["sleep", "600"],
        "volumeMounts": python.volume_mounts,
        "resources": most,
    }
    urgent = {
        "priorityClassName": "urgent",
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": python.volumes,
        **place,
    }
    with urgent_pod(run, urgent):
        preempted.finish(timeout=60)
        run.kubectl("wait", "--for=condition=Ready", "pod/urgent", "--timeout=60s")
    _, first = continued(run)
    assert first == preempted.last_step + 1
    assert "PreemptionByScheduler" in reported_eviction(run)
    assert_nothing_lost(run, restored=preempted.last_step)


def two_pods(cluster: Cluster, **spec: Any) -> Workload:
    """An indexed Job with one rank in each of two pods; `spec` overrides fields of the pods'."""
    port = next(network.free_ports())

    def workload(name: str, template: manifests.Manifest) -> manifests.Manifest:
        python = cluster.host_python(manifests.REPOSITORY)
        ranks = ["--nnodes=2", "--nproc-per-node=1", "--node-rank=$(JOB_COMPLETION_INDEX)"]
        ranks += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        template["spec"] |= spec
        template["spec"]["containers"][0]["command"] = manifests.torchrun(python, ranks, steps=STEPS, pause_seconds=0.3)
        return manifests.indexed_job(name, template, pods=2)

    return workload


def test_a_gang_whose_pod_is_evicted_while_the_other_hangs_is_restarted_as_a_whole(
    operator: Cluster, start: Start
) -> None:
    run = start("gang", two_pods(operator, terminationGracePeriodSeconds=10), reschedule={"restartGang": True})
    second = run.follow_next_pod()
    talking = wait_for(
        "rank 0 to make 15 steps",
        lambda: next((each for each in run.followers if each.last_step >= 15), None),
        timeout=120,
        context=lambda: f"{run.describe()}\n{second.tail()}",
    )
    run.wait_status("has seen step 10", lambda s: s.get("latest", {}).get("step", 0) >= 10)
    hanging = next(each for each in run.followers if each is not talking)
    freeze(run, hanging.pod)
    evict(run, talking.pod)
    talking.finish(timeout=60)
    hanging.finish(timeout=90)
    assert "EvictionByEvictionAPI" in reported_eviction(run)
    for _ in range(2):
        run.follow_next_pod(timeout=150)
    first = wait_for(
        "a step of the new pods",
        lambda: next((line for each in run.followers[2:] if (line := each.first_step())), None),
        timeout=150,
        context=run.describe,
    )
    assert first.step is not None
    assert_restored_a_scheduled_save(run, first.step, stopped_at=talking.last_step)
    assert reasons(run).count("GangRestarted") == 1
    assert run.get("job", run.name)["status"].get("failed", 0) == 0, "no pod is blamed for an eviction"


def test_one_evicted_pod_of_an_indexed_job_stops_all_at_one_step_and_all_continue_at_the_next(
    operator: Cluster, start: Start
) -> None:
    run = start("indexed", two_pods(operator))
    second = run.follow_next_pod()
    talking = wait_for(
        "rank 0 to make 15 steps",
        lambda: next((each for each in run.followers if each.last_step >= 15), None),
        timeout=120,
        context=lambda: f"{run.describe()}\n{second.tail()}",
    )
    silent = next(each for each in run.followers if each is not talking)
    evict(run, silent.pod)
    for each in (silent, talking):
        each.finish(timeout=60)
    for _ in run.followers[:]:
        run.follow_next_pod(timeout=150)
    first = wait_for(
        "a step of the new pods",
        lambda: next((line for each in run.followers[2:] if (line := each.first_step())), None),
        timeout=150,
        context=run.describe,
    )
    assert first.step == talking.last_step + 1
    assert "EvictionByEvictionAPI" in reported_eviction(run)
    assert_nothing_lost(run, restored=talking.last_step)
    assert run.status["attempt"]["podCount"] == 2


def test_a_bare_pod_is_gone_when_evicted_and_continues_when_a_user_applies_it_again(start: Start) -> None:
    applied: list[manifests.Manifest] = []

    def bare(name: str, template: manifests.Manifest) -> manifests.Manifest:
        applied.append(manifests.bare_pod(name, template))
        return applied[-1]

    run = start("bare", bare)
    run.wait_step(15)
    evicted = run.followers[-1]
    evict(run, evicted.pod)
    evicted.finish(timeout=60)
    wait_for("the pod to be gone", lambda: not run.pods(), timeout=60, context=run.describe)
    assert "EvictionByEvictionAPI" in reported_eviction(run)
    run.apply(*applied)
    _, first = continued(run)
    assert first == evicted.last_step + 1
    assert_nothing_lost(run, restored=evicted.last_step)


def test_a_bare_pod_of_a_drained_node_is_created_again_and_continues_on_the_other_node(
    operator: Cluster, start: Start
) -> None:
    run = start("recreated", manifests.bare_pod, reschedule={"recreateBarePods": True})
    run.wait_step(15)
    evicted = run.followers[-1]
    node = run.node_of(evicted.pod)
    drain(operator, node)
    try:
        evicted.finish(timeout=60)
        replacement, first = continued(run)
        assert replacement.pod == evicted.pod, "it has its name"
        assert run.node_of(replacement.pod) != node
    finally:
        operator.kubectl("uncordon", node)
    assert first == evicted.last_step + 1
    assert "EvictionByEvictionAPI" in reported_eviction(run)
    assert_nothing_lost(run, restored=evicted.last_step)
    assert reasons(run).count("PodRecreated") == 1
    assert len(run.pods()) == 1
    run.kubectl("delete", "pod", evicted.pod, "--wait")
    time.sleep(5)
    assert run.pods() == [], "a pod that a user deletes stays deleted"
