"""Install the operator with Helm as a user does; the values say what this cluster lacks: a registry and a network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from demo.manifests import REPOSITORY
from localcluster import network
from localcluster.client import Client
from localcluster.cluster import Cluster
from localcluster.imagebuild import Image

CHART = REPOSITORY / "charts" / "checkpoint-operator"
RELEASE = "checkpoint-operator"
NAMESPACE = "checkpoint-operator"


def values(cluster: Cluster, node: str, image: Image | None) -> dict[str, Any]:
    """Chart values that run the operator on one node, from its image or else from this machine's Python environment."""
    ports = network.free_ports()
    return {
        **(_from_image(image) if image else _from_this_environment(cluster)),
        "hostNetwork": True,
        "storageEndpoints": {"allow": [urlsplit(cluster.object_store.endpoint).hostname]},
        "nodeSelector": {"kubernetes.io/hostname": node},
        "reschedule": {"recreateBarePods": True, "restartGang": True},
        # Pods share the machine's ports here.
        "metrics": {"port": next(ports)},
        "health": {"port": next(ports)},
    }


def _from_image(image: Image) -> dict[str, Any]:
    return {"image": {"repository": image.repository, "tag": image.tag, "pullPolicy": "Never"}}


def _from_this_environment(cluster: Cluster) -> dict[str, Any]:
    python = cluster.host_python(scratch=False)
    repository, _, tag = python.image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "command": [python.python, "-m", "checkpoint_operator"],
        "extraEnv": python.environment,
        "extraVolumes": python.volumes,
        "extraVolumeMounts": python.volume_mounts,
    }


def install(cluster: Cluster, folder: Path, *, node: str, image: Image | None) -> None:
    """`helm install` and wait until the operator is ready. `folder` is where the values file goes."""
    if image is not None:
        cluster.node(node).load_images(image.archive)
    install_chart(cluster, folder, RELEASE, NAMESPACE, values(cluster, node, image))


def install_chart(cluster: Client, folder: Path, release: str, namespace: str, chart_values: dict[str, Any]) -> None:
    """`helm install` and wait until the operator is ready. Raises `CommandError`."""
    file = folder / "operator-values.json"
    file.write_text(json.dumps(chart_values))
    cluster.helm(
        "install",
        release,
        str(CHART),
        f"--namespace={namespace}",
        "--create-namespace",
        f"--values={file}",
        "--wait",
        "--timeout=120s",
    )


def upgrade(cluster: Cluster, **changed: Any) -> None:
    """`helm upgrade` with these values beside those it was installed with; wait until all is ready."""
    options = [f"--set-json={name}={json.dumps(value)}" for name, value in changed.items()]
    release = (RELEASE, str(CHART), f"--namespace={NAMESPACE}")
    cluster.helm("upgrade", *release, "--reuse-values", *options, "--wait", "--timeout=120s")


def scale(cluster: Cluster, replicas: int) -> None:
    """Stop (0) or start (1) the operator and wait until that is done."""
    deployment = f"deployment/{RELEASE}"
    cluster.kubectl(f"--namespace={NAMESPACE}", "scale", deployment, f"--replicas={replicas}")
    cluster.kubectl(f"--namespace={NAMESPACE}", "rollout", "status", deployment, "--timeout=60s")
    if replicas == 0:
        cluster.kubectl(
            f"--namespace={NAMESPACE}",
            "wait",
            "--for=delete",
            "pod",
            f"-lapp.kubernetes.io/instance={RELEASE}",
            "--timeout=60s",
        )


@contextlib.contextmanager
def stopped(cluster: Cluster) -> Iterator[None]:
    """The operator is down inside this block."""
    scale(cluster, 0)
    try:
        yield
    finally:
        scale(cluster, 1)


def logs(cluster: Client, lines: int = 60, namespace: str = NAMESPACE) -> str:
    """The end of the operator's log, or why there is none."""
    selector = "--selector=app.kubernetes.io/name=checkpoint-operator"
    return cluster.kubectl(f"--namespace={namespace}", "logs", selector, f"--tail={lines}", check=False)
