"""The image that the demo's pods run on a cluster other than this machine: loaded into it, or pulled by it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.current.facts import Node
from demo.manifests import REPOSITORY
from localcluster.client import CommandError, run_command
from localcluster.images import NOBODY, PodPython

DOCKERFILE = "tests/demo/Dockerfile"
LOADED = "localhost/checkpoint-demo:current"
BUILDERS = ("docker", "podman")
ADVICE = (
    "Push one that the cluster can pull, then name it:\n"
    f"  docker build --file {DOCKERFILE} --tag <registry>/checkpoint-demo:1 .\n"
    "  docker push <registry>/checkpoint-demo:1\n"
    "  make demo CLUSTER=current IMAGE=<registry>/checkpoint-demo:1"
)


@dataclass(frozen=True)
class Programs:
    """What the pods of the demo run.

    Attributes:
        training: For the training and for the workbench.
        operator: Chart values that run the operator in the same way.
        address: Where the object store in the workbench listens; empty: at the address of its pod.
    """

    training: PodPython
    operator: dict[str, Any]
    address: str = ""


class ImageError(Exception):
    """The cluster cannot run any image at hand; the message gives the next step."""


def from_image(reference: str) -> Programs:
    """What pods run from an image of `DOCKERFILE`, as a user that is not root."""
    name, at, digest = reference.partition("@")
    repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    image = {"repository": repository, **({"digest": digest} if at else {"tag": tag})}
    folders = {"tmp": "/tmp", "shm": "/dev/shm"}
    user = {"runAsNonRoot": True, "runAsUser": NOBODY, "runAsGroup": NOBODY, "fsGroup": NOBODY}
    training = PodPython(
        image=reference,
        python="/training/bin/python",
        volumes=[{"name": folder, "emptyDir": {}} for folder in folders],
        volume_mounts=[{"name": folder, "mountPath": path} for folder, path in folders.items()],
        pod={"securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}}},
        container={"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}},
    )
    return Programs(training, {"image": image, "command": ["/app/bin/checkpoint-operator"]})


def check(nodes: Sequence[Node]) -> None:
    """Raise `ImageError` unless an image can be built here and loaded into the cluster of these nodes."""
    load = _loader(nodes)
    if load is None:
        raise ImageError(f"load an image into this cluster: it is neither kind nor minikube. {ADVICE}")
    missing = [] if _builder() else [" or ".join(BUILDERS)]
    missing += [] if shutil.which(load[0]) else [load[0]]
    if missing:
        raise ImageError(f"build an image and load it: {' and '.join(missing)} not found on PATH. {ADVICE}")


def provide(reference: str, nodes: Sequence[Node], timed: Callable[[str], AbstractContextManager[None]]) -> str:
    """The image to run: `reference`, or if that is empty one that is built here and loaded into the cluster.

    `timed` is the context of each step. Raises `ImageError`.
    """
    if reference:
        return reference
    check(nodes)
    builder, load = _builder() or "", _loader(nodes) or []
    archive = REPOSITORY / "build" / "demo" / "image.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.unlink(missing_ok=True)
    try:
        with timed(f"{builder} build --file {DOCKERFILE}: the demo's image"):
            _show([builder, "build", f"--file={DOCKERFILE}", f"--tag={LOADED}", "."])
        with timed(f"{load[0]}: the image loaded into the cluster"):
            run_command([builder, "save", f"--output={archive}", LOADED], stdin=None, environment={}, check=True)
            run_command([*load, str(archive)], stdin=None, environment={}, check=True)
    except CommandError as error:
        raise ImageError(str(error)) from None
    finally:
        archive.unlink(missing_ok=True)
    return LOADED


def _loader(nodes: Sequence[Node]) -> list[str] | None:
    """The command, less the archive, that loads an image into the cluster of these nodes; None if there is none."""
    for node in nodes:
        if node.provider.startswith("kind://"):  # kind://<engine>/<cluster>/<node>
            return ["kind", "load", "image-archive", f"--name={node.provider.split('/')[3]}"]
        if profile := dict(node.labels).get("minikube.k8s.io/name"):
            return ["minikube", "image", "load", f"--profile={profile}"]
    return None


def _builder() -> str | None:
    return next((name for name in BUILDERS if shutil.which(name)), None)


def _show(command: list[str], folder: Path = REPOSITORY) -> None:
    """Run a long command with its output on the terminal. Raises `CommandError`."""
    if status := subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, check=False).returncode:
        raise CommandError(f"`{' '.join(command)}` failed (exit status {status}); the lines above say why")
