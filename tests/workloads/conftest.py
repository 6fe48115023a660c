"""The two-node cluster with the operator, and with the controllers of JobSet and Kubeflow Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster.conftest import NAMESPACE, Start, bucket_of_runs, final_state, operator, start, undisturbed
from demo.training import TrainingRun
from localcluster.cluster import Cluster
from localcluster.fixtures import require
from workloads import build, controllers

__all__ = ["bucket_of_runs", "final_state", "operator", "start", "undisturbed"]  # fixtures


@pytest.fixture(scope="session")
def jobset(operator: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with JobSet's controller."""
    require(build.problem(build.controllers()))
    controllers.install(operator, controllers.jobset(build.controllers()), tmp_path_factory.mktemp("jobset"))
    return operator


@pytest.fixture(scope="session")
def trainer(jobset: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with Kubeflow Trainer's controller, which makes JobSets."""
    controllers.install(jobset, controllers.trainer(build.controllers()), tmp_path_factory.mktemp("trainer"))
    return jobset


@pytest.fixture
def gone(start: Start, operator: Cluster) -> Iterator[Callable[[str, str], None]]:
    """Remembers what else to delete after the test, by kind and name, with its pods."""
    made: list[tuple[str, str]] = []
    yield lambda kind, name: made.append((kind, name))
    for kind, name in made:
        flags = ("--ignore-not-found", "--cascade=foreground", "--timeout=90s")
        operator.kubectl(f"--namespace={NAMESPACE}", "delete", kind, name, *flags)


def described(run: TrainingRun) -> str:
    """What there is of a run, for the message of a failure."""
    return f"{run.describe()}\n{run.kubectl('get', 'events', '--sort-by=.lastTimestamp')[-4000:]}"
