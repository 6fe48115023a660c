"""The image and the chart of a release on the two-node cluster, installed as a user installs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import installation
from localcluster.cluster import Cluster
from localcluster.imagebuild import Image
from release.facts import Release
from support.releases import only

pytestmark = [pytest.mark.release, pytest.mark.cluster, pytest.mark.timeout(900)]


def test_the_package_installs_the_image_and_helm_test_finds_it_well(
    cluster: Cluster, whole: Path, made_from: Release, tmp_path: Path
) -> None:
    node = cluster.node_names[1]
    built = Image(made_from.image, made_from.semantic, only(whole, "*-image.oci.tar"))
    cluster.node(node).load_images(built.archive)
    values = installation.values(cluster, node, built)
    # The package knows its image.
    values["image"] = {"pullPolicy": "Never"}
    (tmp_path / "values.json").write_text(json.dumps(values))
    namespace = f"--namespace={installation.NAMESPACE}"
    flags = (namespace, "--create-namespace", f"--values={tmp_path / 'values.json'}", "--wait", "--timeout=120s")
    cluster.helm("install", installation.RELEASE, str(only(whole, "*.tgz")), *flags)
    said = cluster.helm("test", installation.RELEASE, namespace, "--logs", "--timeout=60s")
    assert "ok: 1 ready, " in said
    assert "Phase:          Succeeded" in said
    pods = json.loads(cluster.kubectl(namespace, "get", "pods", "--output=json"))["items"]
    (running,) = (status for pod in pods for status in pod["status"]["containerStatuses"])
    assert running["image"] == built.reference
    assert running["restartCount"] == 0
