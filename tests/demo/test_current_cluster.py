"""`make demo CLUSTER=current`, with the two-node cluster as the current one and a workload in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from demo import manifests
from demo.current import command, facts
from demo.current.context import current
from demo.current.facts import UnreachableError
from demo.manifests import REPOSITORY
from localcluster.client import ApiServer
from localcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

KINDS = (
    "namespaces,nodes,customresourcedefinitions,clusterroles,clusterrolebindings,"
    "mutatingadmissionpolicies,mutatingadmissionpolicybindings,validatingadmissionpolicies,"
    "validatingadmissionpolicybindings,deployments,replicasets,pods,jobs,secrets,configmaps,serviceaccounts,"
    "roles,rolebindings"
)
DEMO_SECONDS = 840.0


@pytest.fixture(scope="module")
def occupied(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, without the operator, while a workload runs on every node."""
    cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(*theirs(cluster)))
    cluster.kubectl("rollout", "status", "deployment/theirs", "--namespace=theirs", "--timeout=60s")
    yield cluster
    cluster.kubectl("delete", "namespace/theirs")


def theirs(cluster: Cluster) -> list[manifests.Manifest]:
    """A Deployment with a pod on each node."""
    python = cluster.host_python()
    apart = {"labelSelector": {"matchLabels": {"app": "theirs"}}, "topologyKey": "kubernetes.io/hostname"}
    container = {
        "name": "sleep",
        "image": python.image,
        "command": ["sleep", "1000000"],
        "volumeMounts": python.volume_mounts,
    }
    pod = {
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": python.volumes,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        **python.pod,
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "theirs", "namespace": "theirs"},
        "spec": {
            "replicas": len(cluster.node_names),
            "selector": {"matchLabels": {"app": "theirs"}},
            "template": {"metadata": {"labels": {"app": "theirs"}}, "spec": pod},
        },
    }
    return [manifests.namespace("theirs"), deployment]


def contents(cluster: ApiServer) -> dict[str, Any]:
    """All that is in the cluster, by kind, namespace, name and UID, with what was asked for."""
    items = json.loads(cluster.kubectl("get", KINDS, "--all-namespaces", "--output=json"))["items"]
    described = {}
    for item in items:
        about = item["metadata"]
        name = f"{item['kind']} {about.get('namespace', '')}/{about['name']} {about['uid']}"
        described[name] = [item.get("spec"), item.get("data"), item.get("rules"), about.get("labels")]
    return described


@contextmanager
def demo(cluster: Cluster, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m demo.current` with pods that run this environment; the cluster is the current one."""
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            # Where tests run in the background of a shell, programs ignore Ctrl-C.
            ["env", "--default-signal=INT", sys.executable, "-m", "demo.on_this_machine", str(folder), *options],
            env={
                **os.environ,
                **cluster.environment,
                **cluster.object_store.environment,
                "PYTHONPATH": "tests:tools",
            },
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def cordoned(cluster: Cluster) -> list[str]:
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    return [node["metadata"]["name"] for node in nodes if node["spec"].get("unschedulable")]


def test_without_a_terminal_and_without_consent_nothing_is_created(occupied: Cluster, tmp_path: Path) -> None:
    before = contents(occupied)
    with demo(occupied, tmp_path) as process:
        assert process.wait(DEMO_SECONDS) == command.REFUSED
    said = (tmp_path / "said").read_text()
    assert "into the cluster of context " in said
    assert "this is no terminal. YES=1 gives it." in said
    assert contents(occupied) == before


def test_a_context_without_rights_is_refused_in_one_line(
    occupied: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(occupied.kubeconfig.read_text())
    config["users"][0]["user"]["as"] = "a-guest"
    limited = tmp_path / "kubeconfig"
    limited.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(limited))
    with pytest.raises(UnreachableError, match=r"ask the cluster of context .*forbidden.*logged in") as refused:
        facts.gather(current())
    assert "\n" not in str(refused.value)


def test_a_cluster_that_has_the_operators_definitions_is_refused_and_keeps_them(
    occupied: Cluster, tmp_path: Path
) -> None:
    folder = f"--filename={REPOSITORY / 'crds'}"
    occupied.kubectl("apply", "--server-side", folder)
    try:
        before = contents(occupied)
        with demo(occupied, tmp_path, "--yes") as process:
            assert process.wait(DEMO_SECONDS) == command.REFUSED
        assert "the cluster already has checkpoints.checkpoint-operator.dev" in (tmp_path / "said").read_text()
        assert contents(occupied) == before
    finally:
        occupied.kubectl("delete", folder)


@pytest.mark.evictions
def test_interrupted_while_a_node_is_cordoned_it_leaves_cluster_and_bucket_as_they_were(
    occupied: Cluster, tmp_path: Path
) -> None:
    bucket = f"s3://{occupied.object_store.bucket('theirs')}"
    files = fsspec.filesystem("s3", **occupied.object_store.storage_options())
    files.pipe_file(f"{bucket}/demos/theirs", b"theirs")
    before = contents(occupied)
    with demo(occupied, tmp_path, "--yes", f"--bucket={bucket}/demos") as process:
        deadline = time.monotonic() + DEMO_SECONDS
        while not cordoned(occupied):
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.2)
        assert len(found(files, bucket)) > 1
        process.send_signal(signal.SIGINT)
        assert process.wait(DEMO_SECONDS) == command.INTERRUPTED, (tmp_path / "said").read_text()
    assert cordoned(occupied) == []
    assert contents(occupied) == before
    assert found(files, bucket) == ["theirs/demos/theirs"]
    assert not (tmp_path / "current.json").exists()


def found(files: Any, url: str) -> list[str]:
    files.invalidate_cache()
    return sorted(files.find(url))


@pytest.mark.evictions
def test_it_tells_the_whole_story_and_leaves_the_cluster_as_it_was(occupied: Cluster, tmp_path: Path) -> None:
    before = contents(occupied)
    with demo(occupied, tmp_path, "--yes") as process:
        status = process.wait(DEMO_SECONDS)
    said = (tmp_path / "said").read_text()
    assert status == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["nodes"]) == sorted(occupied.node_names)
    assert report["bit_identical"] is True
    assert "SnapshotCommitted" in said
    assert contents(occupied) == before
    assert not (tmp_path / "current.json").exists()
