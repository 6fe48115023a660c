"""The library comes into a pod as a volume that is its image, on nodes whose containerd mounts images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_sidecar.core import environment
from demo import manifests
from demo.training import wait_for
from localcluster import cluster as localcluster
from localcluster import requirements, workspace
from localcluster.client import CommandError
from localcluster.cluster import Cluster
from localcluster.fixtures import require
from support import library_image
from support.charts import CHART
from workloads import build

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PROGRAM = """
import checkpoint_sidecar, crc32c, msgspec
from checkpoint_sidecar.store.s3 import identity
print(checkpoint_sidecar.__file__, msgspec.__file__)
"""


@pytest.fixture
def modern_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of its own, with a containerd that is newer than that of the distribution."""
    require(requirements.cluster_problem() or build.problem(build.runtime()))
    monkeypatch.setenv("PATH", f"{build.runtime()}:{os.environ['PATH']}")
    with workspace.temporary("modern") as place:
        yield localcluster.up(place)


def test_a_pod_without_the_library_has_it_from_a_volume_that_is_the_image(
    modern_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = modern_cluster
    image = library_image.build(tmp_path)
    for node in cluster.node_names:
        cluster.node(node).load_images(image.archive)
    library = {
        "enabled": True,
        "image": {"repository": image.repository, "tag": image.tag, "pullPolicy": "Never"},
    }
    install = ("install", "ckpt", str(CHART), "--namespace=operators", "--create-namespace")
    cluster.helm(*install, f"--set-json=injection.library={json.dumps(library)}")
    run = manifests.checkpoint("run", "s3://bucket/run", cluster.object_store)
    del run["spec"]["storage"]["credentialsSecret"]  # the pod does not get as far as that
    cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(run))
    (tmp_path / "bare").mkdir()
    folder = str(tmp_path / "bare")
    python = library_image.bare_python(tmp_path / "bare")
    command = [str(python), "-c", PROGRAM]
    template = manifests.pod_template("run", python=cluster.host_python(manifests.REPOSITORY), command=command)
    template["spec"]["volumes"].append({"name": "bare", "hostPath": {"path": folder}})
    template["spec"]["containers"][0]["volumeMounts"].append({"name": "bare", "mountPath": folder})

    def created() -> bool:
        try:
            cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifests.bare_pod("probe", template)))
        except CommandError:  # the policy is not there yet, or has not seen the Checkpoint
            return False
        return True

    wait_for("the pod to be admitted", created, timeout=60)
    cluster.kubectl("wait", "pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    spec = json.loads(cluster.kubectl("get", "pod", "probe", "--output=json"))["spec"]
    assert "initContainers" not in spec
    (volume,) = (one for one in spec["volumes"] if "image" in one)
    assert volume["image"]["reference"] == image.reference
    ours, compiled = cluster.kubectl("logs", "probe").split()
    assert ours == f"{environment.LIBRARY_MOUNT}/packages/any/checkpoint_sidecar/__init__.py"
    assert compiled.startswith(f"{environment.LIBRARY_MOUNT}/packages/python3.")
