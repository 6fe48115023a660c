"""JobSet and TrainJob with their real controllers: two pods, one is evicted, and nothing is lost.

Both restart the whole group when a pod fails. The one that is evicted saves together with the other, which then ends
with an error; its Job fails, and JobSet's failure policy makes the Jobs anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import NAMESPACE, STEPS, Start, Workload
from cluster.interrupting import evict, reasons, reported_eviction
from demo import comparison, manifests
from demo.manifests import Manifest
from demo.training import Follower, TrainingRun, wait_for
from localcluster import network
from localcluster.cluster import Cluster
from workloads.conftest import described

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Gone = Callable[[str, str], None]
ReadState = Callable[[TrainingRun], comparison.State]

REPORTING = Path(__file__).with_name("reporting.py")
RESTARTS = {"maxRestarts": 5}


def train(cluster: Cluster, *ranks: str, script: str = str(manifests.TRAINING_SCRIPT)) -> list[str]:
    """The command of one of two pods, with one rank."""
    python = cluster.host_python(manifests.REPOSITORY)
    port = next(network.free_ports())
    return manifests.torchrun(python, [*ranks, f"--master-port={port}"], steps=STEPS, pause_seconds=0.3, script=script)


def one_of_two_pods_evicted(run: TrainingRun, second: Follower) -> tuple[Follower, int]:
    """Evict the pod that does not print. Returns what the other one printed, and the first step after the restart."""
    talking = wait_for(
        "rank 0 to make 15 steps",
        lambda: next((each for each in run.followers if each.last_step >= 15), None),
        timeout=120,
        context=lambda: f"{described(run)}\n{second.tail()}",
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
        context=lambda: described(run),
    )
    assert first.step is not None
    return talking, first.step


def assert_resumed_like(undisturbed: comparison.State, run: TrainingRun, final_state: ReadState, restored: int) -> None:
    compared = comparison.compare(final_state(run), undisturbed)
    assert compared.identical, compared.differing
    status = run.wait_status("reflects the last step", lambda s: s.get("latest", {}).get("step") == STEPS, timeout=60)
    assert (status["lastRestore"]["step"], status["lastRestore"]["lostSteps"]) == (restored, 0)
    assert status["attempt"]["number"] == 2
    assert status["attempt"]["podCount"] == 2
    assert "EvictionByEvictionAPI" in reported_eviction(run)
    assert "RestoreFailed" not in reasons(run)


def job_set(cluster: Cluster, backoff_limit: int, gone: Gone) -> Workload:
    """A JobSet of one Job with two pods; its Job begins anew so often before the JobSet does."""

    def workload(name: str, template: Manifest) -> Manifest:
        ranks = ("--nnodes=2", "--nproc-per-node=1", "--node-rank=$(JOB_COMPLETION_INDEX)", "--master-addr=127.0.0.1")
        template["spec"]["containers"][0]["command"] = train(cluster, *ranks)
        pods = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": backoff_limit}
        workers = {"name": "workers", "template": {"spec": {**pods, "template": template}}}
        gone("jobset", name)
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": name},
            "spec": {"failurePolicy": RESTARTS, "replicatedJobs": [workers]},
        }

    return workload


@pytest.mark.parametrize("backoff_limit", [0, 20], ids=["by-the-jobset", "by-its-job"])
def test_one_evicted_pod_of_a_jobset_stops_all_at_one_step_and_all_continue_at_the_next(
    jobset: Cluster,
    start: Start,
    gone: Gone,
    undisturbed: comparison.State,
    final_state: ReadState,
    backoff_limit: int,
) -> None:
    run = start(f"jobset-{backoff_limit}", job_set(jobset, backoff_limit, gone))
    talking, first = one_of_two_pods_evicted(run, run.follow_next_pod())
    assert first == talking.last_step + 1
    run.kubectl("wait", "--for=condition=Completed", f"jobset/{run.name}", "--timeout=180s")
    assert_resumed_like(undisturbed, run, final_state, talking.last_step)
    restarts = run.get("jobset", run.name)["status"].get("restarts", 0)
    assert restarts == (1 if backoff_limit == 0 else 0)


def training_runtime(name: str, template: Manifest) -> Manifest:
    """What an administrator offers to users: the pods of a TrainJob, without the run they belong to."""
    (container,) = template["spec"]["containers"]
    hosts = [f"{name}-node-0-{index}.{name}" for index in range(2)]
    hosts.append("kubeflow-trainer-controller-manager.kubeflow-system.svc")
    pods: dict[str, Any] = {
        "backoffLimit": 0,
        "template": {
            "spec": template["spec"]
            # This cluster has no DNS.
            | {"containers": [{**container, "name": "node"}], "hostAliases": [{"ip": "127.0.0.1", "hostnames": hosts}]}
        },
    }
    trainer = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    node = {"name": "node", "template": {"metadata": {"labels": trainer}, "spec": pods}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": name, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": 2, "torch": {}},
            "template": {"spec": {"failurePolicy": RESTARTS, "replicatedJobs": [node]}},
        },
    }


def train_job(cluster: Cluster, gone: Gone) -> Workload:
    """A TrainJob of two nodes, labelled as docs/workloads.md says; the runtime that it refers to is created."""

    def workload(name: str, template: Manifest) -> Manifest:
        label = template["metadata"]["labels"]
        gone("trainjob", name)
        gone("trainingruntime", name)
        runtime = manifests.to_stdin(training_runtime(name, template))
        cluster.kubectl(f"--namespace={NAMESPACE}", "apply", "-f", "-", stdin=runtime)
        labelled = {"name": "node", "template": {"spec": {"template": {"metadata": {"labels": label}}}}}
        patch = {"template": {"spec": {"replicatedJobs": [labelled]}}}
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name},
            "spec": {
                "runtimeRef": {"name": name, "kind": "TrainingRuntime"},
                # Kubeflow Trainer tells torchrun how many nodes there are, and where the first one is.
                "trainer": {"command": train(cluster, script=str(REPORTING)), "numNodes": 2, "numProcPerNode": 1},
                "runtimePatches": [{"manager": "example.com/checkpoints", "trainingRuntimeSpec": patch}],
            },
        }

    return workload


def test_one_evicted_pod_of_a_trainjob_stops_all_at_one_step_and_all_continue_at_the_next(
    trainer: Cluster, start: Start, gone: Gone, undisturbed: comparison.State, final_state: ReadState
) -> None:
    run = start("trainjob", train_job(trainer, gone))
    talking, first = one_of_two_pods_evicted(run, run.follow_next_pod())
    assert first == talking.last_step + 1
    run.kubectl("wait", "--for=condition=Complete", f"trainjob/{run.name}", "--timeout=180s")
    assert_resumed_like(undisturbed, run, final_state, talking.last_step)
    assert run.get("jobset", run.name)["status"]["restarts"] == 1
    reported = run.get("trainjob", run.name)["status"]["trainerStatus"]
    assert reported["progressPercentage"] == 100
    figures = {one["name"]: one["value"] for one in reported["metrics"]}
    assert figures["checkpoint_step"] == str(STEPS)
    assert figures["checkpoint_snapshot"] == run.status["latest"]["snapshot"]
    assert float(figures["loss"]) > 0
