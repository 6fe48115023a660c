"""The two-node cluster with the operator installed, and what every test here trains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from demo import comparison, image, installation, manifests
from demo.training import TrainingRun
from localcluster.cluster import Cluster

STEPS = 40
PAUSE_SECONDS = 0.3
"""Between steps: long enough to act at a step of one's choice."""
NAMESPACE = "training"


Workload = Callable[[str, manifests.Manifest], manifests.Manifest]
"""From a name and a labelled pod template to the object that runs it."""


class Start(Protocol):
    def __call__(self, name: str, workload: Workload = manifests.job_of, **spec: Any) -> TrainingRun: ...


@pytest.fixture(scope="session")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with the operator on its second node."""
    folder = tmp_path_factory.mktemp("helm")
    installation.install(cluster, folder, node=cluster.node_names[1], image=image.build())
    cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(manifests.namespace(NAMESPACE)))
    secret = manifests.to_stdin(manifests.secret(cluster.object_store))
    cluster.kubectl(f"--namespace={NAMESPACE}", "apply", "-f", "-", stdin=secret)
    return cluster


@pytest.fixture(scope="session")
def bucket_of_runs(cluster: Cluster) -> str:
    return cluster.object_store.bucket()


@pytest.fixture
def start(operator: Cluster, bucket_of_runs: str) -> Iterator[Start]:
    """Start a training run under a Checkpoint of its own; returns it with its first pod followed."""
    runs: list[TrainingRun] = []

    def start(name: str, workload: Workload = manifests.job_of, **spec: Any) -> TrainingRun:
        run = TrainingRun(operator, NAMESPACE, name)
        runs.append(run)
        run.apply(manifests.checkpoint(name, f"s3://{bucket_of_runs}/{name}", operator.object_store, **spec))
        run.wait_condition("Ready")
        python = operator.host_python(manifests.REPOSITORY)
        ranks = ["--standalone", "--nproc-per-node=2"]
        template = manifests.pod_template(
            name,
            python=python,
            command=manifests.torchrun(python, ranks, steps=STEPS, pause_seconds=PAUSE_SECONDS),
            prefer_node=operator.node_names[0],
        )
        run.apply(workload(name, template))
        run.follow_next_pod()
        return run

    yield start
    for run in runs:
        run.close()
        run.delete()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> comparison.State:
    """The final state of the same training in one go, outside the cluster: a plain folder and no operator."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(manifests.TRAINING_SCRIPT), f"--steps={STEPS}"]
    variables = {
        "CHECKPOINT_URL": f"file://{folder}",
        "CHECKPOINT_RUN": "local/local/undisturbed",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(command, env=os.environ | variables, check=True, capture_output=True, timeout=240)
    return comparison.read_step(f"file://{folder}", STEPS)


@pytest.fixture(scope="session")
def final_state(operator: Cluster, bucket_of_runs: str) -> Callable[[TrainingRun], comparison.State]:
    """Reads the last step of a run as stock torch sees it."""

    def read(run: TrainingRun) -> comparison.State:
        options = operator.object_store.storage_options()
        return comparison.read_step(f"s3://{bucket_of_runs}/{run.name}", STEPS, **options)

    return read
