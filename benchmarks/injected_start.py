"""How much later a pod is ready to train when its library comes from the image that the operator injects.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/injected_start.py --pods 7

Pods are created in turns, with the library in their own Python environment and without it. Each imports the library
with torch and prints a line. Seconds are from the creation of the pod to that line, on the two-node cluster, where an
init container copies the library.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from checkpoint_sidecar.core import environment
from demo import image, installation, manifests
from localcluster import cluster as localcluster
from localcluster import workspace
from localcluster.cluster import Cluster
from support import library_image

NAMESPACE = "training"
PROGRAM = "from checkpoint_sidecar import Checkpointer; print(Checkpointer.__module__, flush=True)"


def main(pods: Annotated[int, typer.Option(help="Of each kind.")] = 7) -> None:
    with workspace.temporary("cluster") as place, tempfile.TemporaryDirectory() as scratch:
        cluster = localcluster.up(place)
        folder = Path(scratch)
        installation.install(cluster, folder, node=cluster.node_names[1], image=image.build())
        store = cluster.object_store
        run = manifests.checkpoint("run", f"s3://{store.bucket()}/run", store)
        cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(manifests.namespace(NAMESPACE)))
        needed = manifests.to_stdin(manifests.secret(store), run)
        cluster.kubectl(f"--namespace={NAMESPACE}", "apply", "-f", "-", stdin=needed)
        (folder / "bare").mkdir()
        folder.chmod(0o755)
        pythons = {"own": "", "injected": str(library_image.bare_python(folder / "bare"))}
        with library_image.injected(cluster, library_image.build(folder)):
            # The first pod of each kind fills the caches of the machine.
            for python in pythons.values():
                _seconds(cluster, python)
            taken: dict[str, list[float]] = {name: [] for name in pythons}
            for _ in range(pods):
                for name, python in pythons.items():
                    taken[name].append(_seconds(cluster, python))
    for name, seconds in taken.items():
        print(f"{name:9} median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f}")
    print(f"later     {statistics.median(taken['injected']) - statistics.median(taken['own']):.2f} s")


def _seconds(cluster: Cluster, bare_python: str) -> float:
    """From creating a pod to its line. With an environment that lacks the library, it is injected."""
    python = cluster.host_python(manifests.REPOSITORY)
    template = manifests.pod_template("run", python=python, command=[bare_python or python.python, "-c", PROGRAM])
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": cluster.node_names[0]}
    if bare_python:
        folder = str(Path(bare_python).parents[1])
        template["spec"]["volumes"].append({"name": "bare", "hostPath": {"path": folder}})
        template["spec"]["containers"][0]["volumeMounts"].append({"name": "bare", "mountPath": folder})
    else:
        template["metadata"]["annotations"] = {environment.LIBRARY_ANNOTATION: "false"}
    flags = (f"--namespace={NAMESPACE}",)
    started = time.time()
    cluster.kubectl(*flags, "create", "-f", "-", stdin=json.dumps(manifests.bare_pod("probe", template)))
    cluster.kubectl(*flags, "wait", "pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    line = cluster.kubectl(*flags, "logs", "probe", "--timestamps", "--container=train").split()
    cluster.kubectl(*flags, "delete", "pod", "probe", "--now")
    assert line[1] == "checkpoint_sidecar.training.checkpointer", line
    return _epoch(line[0]) - started


def _epoch(text: str) -> float:
    whole, _, fraction = text.rstrip("Z").partition(".")
    return time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) - time.timezone + float(f"0.{fraction}")


if __name__ == "__main__":
    typer.run(main)
