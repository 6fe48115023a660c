"""What the two-node cluster must do for the tests that are built on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localcluster.cluster import Cluster, wait_ready
from localcluster.images import NOBODY

pytestmark = pytest.mark.cluster


def pod(cluster: Cluster, program: str, **spec: Any) -> dict[str, Any]:
    """The specification of a pod that runs `program` with this Python environment, as a user that is not root."""
    python = cluster.host_python()
    container = {
        "name": "main",
        "image": python.image,
        "command": [python.python, "-c", program],
        "env": python.environment,
        "volumeMounts": python.volume_mounts,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    base = {"hostNetwork": True, "restartPolicy": "Never", "volumes": python.volumes, "containers": [container]}
    return {**base, **spec}


def create(cluster: Cluster, kind: str, name: str, spec: dict[str, Any], version: str = "v1") -> None:
    manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest))


def run_to_completion(cluster: Cluster, name: str, spec: dict[str, Any]) -> str:
    """What the pod printed."""
    create(cluster, "Pod", name, spec)
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    return cluster.kubectl("logs", name)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
    return found


@pytest.fixture
def job(cluster: Cluster) -> Iterator[str]:
    """A Job whose pods, told to end, count the seconds that they are given."""
    program = """if True:
        import signal, sys, time
        def count(*_):
            started = time.monotonic()
            while True:
                print(f"after SIGTERM: {time.monotonic() - started:.0f} s", flush=True)
                if time.monotonic() - started > 4:
                    sys.exit(1)
                time.sleep(1)
        signal.signal(signal.SIGTERM, count)
        print("ready", flush=True)
        while True:
            time.sleep(1)
    """
    template = {"metadata": {"labels": {"app": "counter"}}, "spec": pod(cluster, program)}
    create(cluster, "Job", "counter", {"backoffLimit": 5, "template": template}, "batch/v1")
    yield "counter"
    cluster.kubectl("delete", "job", "counter", "--grace-period=1", "--wait=false")
    cluster.kubectl("delete", "pod", "-l", "app=counter", "--force", "--grace-period=0")


def ready_pod_of_job(cluster: Cluster) -> tuple[str, str] | None:
    """Name and node of the Job's pod, once it handles signals."""
    template = "{range .items[*]}{.metadata.name} {.spec.nodeName} {.status.phase}{'\\n'}{end}"
    selector = ["-l", "app=counter", "--field-selector=status.phase=Running", "-o", f"jsonpath={template}"]
    for line in cluster.kubectl("get", "pod", *selector).splitlines():
        name, node, _ = line.split()
        if "ready" in cluster.kubectl("logs", name, check=False):
            return name, node
    return None


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_a_pod_without_privileges_runs_the_library_on_each_node(cluster: Cluster, node: str) -> None:
    program = """if True:
        import os, tempfile, torch, checkpoint_sidecar
        tempfile.mkstemp()
        print(os.getuid(), torch.ones(2).sum())
    """
    printed = run_to_completion(cluster, f"python-{node}", pod(cluster, program, nodeName=node))
    assert printed.split() == [str(NOBODY), "tensor(2.)"]


def test_a_pod_finds_the_api_and_is_known_there_by_its_service_account(cluster: Cluster) -> None:
    program = """if True:
        from kubernetes import client, config
        config.load_incluster_config()
        print(client.AuthenticationV1Api().create_self_subject_review({}).status.user_info.username)
    """
    printed = run_to_completion(cluster, "api-user", pod(cluster, program))
    assert printed.strip() == "system:serviceaccount:default:default"


def test_a_pod_reaches_the_object_store(cluster: Cluster) -> None:
    key = f"{cluster.object_store.bucket()}/key"
    options = cluster.object_store.storage_options()
    program = f"import fsspec; fsspec.filesystem('s3', **{options!r}).pipe_file({key!r}, b'x'); print('stored')"
    assert run_to_completion(cluster, "store-user", pod(cluster, program)).strip() == "stored"


def test_draining_gives_a_pod_its_grace_and_moves_its_job_to_the_other_node(cluster: Cluster, job: str) -> None:
    first, node = until(lambda: ready_pod_of_job(cluster))
    follower = cluster.kubectl_process("logs", "--follow", first)
    try:
        cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
        printed, _ = follower.communicate(timeout=10)
        assert "after SIGTERM: 4 s" in printed
        second, other = until(lambda: ready_pod_of_job(cluster))
        assert second != first
        assert other != node
    finally:
        cluster.kubectl("uncordon", node)
        follower.kill()


def test_a_node_that_loses_power_is_noticed_and_comes_back(cluster: Cluster, job: str) -> None:
    first, lost = until(lambda: ready_pod_of_job(cluster))
    node = cluster.node(lost)
    node.power_off()
    try:
        until(lambda: "True" not in node_readiness(cluster, lost))
        # The API server holds on to the lost pod until the node is back to confirm its end.
        until(lambda: cluster.kubectl("get", "pod", first, "-o", "jsonpath={.metadata.deletionTimestamp}"))
    finally:
        node.power_on()
    wait_ready(cluster, lost)
    cluster.kubectl("wait", "--for=delete", f"pod/{first}", "--timeout=60s")


def node_readiness(cluster: Cluster, node: str) -> str:
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return cluster.kubectl("get", "node", node, "-o", path)


def test_helm_installs_a_chart(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 0.1.0\n")
    (tmp_path / "templates" / "map.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: tiny}\n")
    assert "STATUS: deployed" in cluster.helm("install", "tiny", str(tmp_path))
    assert cluster.kubectl("get", "configmap", "tiny", "-o", "name").strip() == "configmap/tiny"
