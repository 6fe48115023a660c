"""The two-node cluster with the operator installed, and what every test here trains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from demo import comparison, installation, manifests
from demo.training import TrainingRun
from localcluster.cluster import Cluster

STEPS = 40
PAUSE_SECONDS = 0.3
"""Between steps: long enough to act at a step of one's choice."""
NAMESPACE = "training"


class Start(Protocol):
    def __call__(self, name: str, **spec: Any) -> TrainingRun: ...


@pytest.fixture(scope="session")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with the operator on its second node."""
    installation.install(cluster, tmp_path_factory.mktemp("helm"), node=cluster.node_names[1])
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

    def start(name: str, **spec: Any) -> TrainingRun:
        run = TrainingRun(operator, NAMESPACE, name)
        runs.append(run)
        run.apply(manifests.checkpoint(name, f"s3://{bucket_of_runs}/{name}", operator.object_store, **spec))
        run.wait_condition("Ready")
        job = manifests.job(
            name,
            python=operator.host_python(manifests.REPOSITORY),
            checkpoint_name=name,
            steps=STEPS,
            pause_seconds=PAUSE_SECONDS,
            prefer_node=operator.node_names[0],
        )
        run.apply(job)
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
def final_state(operator: Cluster, bucket_of_runs: str) -> comparison.State:
    """Reads the last step of a run as stock torch sees it."""

    def read(run: TrainingRun) -> comparison.State:
        options = operator.object_store.storage_options()
        return comparison.read_step(f"s3://{bucket_of_runs}/{run.name}", STEPS, **options)

    return read
