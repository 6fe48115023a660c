"""A training image without the library trains with that of the operator's image, and resumes with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from checkpoint_sidecar.core import environment
from cluster.conftest import NAMESPACE, Start
from cluster.interrupting import evicted_without_loss, reasons
from demo import comparison, manifests
from demo.training import TrainingRun
from localcluster.client import CommandError
from localcluster.cluster import Cluster
from support import library_image

pytestmark = [pytest.mark.cluster, pytest.mark.evictions, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def supplying(operator: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, with the library in all labelled pods that do not refuse it."""
    with library_image.injected(operator, library_image.build(tmp_path_factory.mktemp("library"))):
        yield operator


def inside(run: TrainingRun, pod: str, *command: str) -> str:
    return run.kubectl("exec", pod, "--container=train", "--", *command).strip()


def test_a_training_image_without_the_library_loses_nothing_in_an_eviction(
    supplying: Cluster,
    start: Start,
    tmp_path: Path,
    undisturbed: comparison.State,
    final_state: Callable[[TrainingRun], comparison.State],
) -> None:
    python = str(library_image.bare_python(tmp_path))

    def bare(name: str, template: manifests.Manifest) -> manifests.Manifest:
        (container,) = template["spec"]["containers"]
        container["command"] = [python, *container["command"][1:]]
        container["volumeMounts"].append({"name": "bare", "mountPath": str(tmp_path), "readOnly": True})
        template["spec"]["volumes"].append({"name": "bare", "hostPath": {"path": str(tmp_path)}})
        return manifests.job_of(name, template)

    run = start("supplied", bare)
    run.wait_step(2)
    pod = run.followers[-1].pod
    which = (python, "-c", "import checkpoint_sidecar, fsspec; print(checkpoint_sidecar.__file__, fsspec.__file__)")
    ours, theirs = inside(run, pod, *which).split()
    assert ours == f"{environment.LIBRARY_MOUNT}/packages/any/checkpoint_sidecar/__init__.py"
    assert theirs.startswith(str(tmp_path)), "packages of the image win"
    with pytest.raises(CommandError, match="No module named 'checkpoint_sidecar'"):
        inside(run, pod, "env", "--unset=PYTHONPATH", *which)
    evicted_without_loss(run)
    run.wait_finished()
    compared = comparison.compare(final_state(run), undisturbed)
    assert compared.identical, compared.differing
    assert "RestoreFailed" not in reasons(run)


def test_an_image_with_a_library_of_its_own_uses_that_one(supplying: Cluster, start: Start) -> None:
    run = start("own-library")
    run.wait_step(2)
    pod = run.followers[-1].pod
    python = supplying.host_python(manifests.REPOSITORY).python
    assert "initContainers" in run.get("pod", pod)["spec"]
    used = inside(run, pod, python, "-c", "import checkpoint_sidecar; print(checkpoint_sidecar.__file__)")
    assert used == str(manifests.REPOSITORY / "sidecar" / "checkpoint_sidecar" / "__init__.py")
    assert metadata.version("checkpoint-operator") in inside(
        run, pod, python, "-c", "from importlib.metadata import version; print(version('checkpoint-operator'))"
    )


def test_nothing_is_injected_into_pods_that_are_not_labelled(supplying: Cluster) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}}
    body["spec"] = {"containers": [{"name": "main", "image": "i"}]}
    create = ("create", "--filename=-", "--dry-run=server", "--output=json")
    made = supplying.kubectl(f"--namespace={NAMESPACE}", *create, stdin=json.dumps(body))
    assert "checkpoint-operator" not in made
