"""What a user writes, as plain dicts. Everything that only this cluster needs comes in through `HostPython`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localcluster.images import HostPython
from localcluster.objectstore import REGION, ObjectStore

Manifest = dict[str, Any]

LABEL = "checkpoint-operator.dev/checkpoint"
SECRET = "s3-keys"
REPOSITORY = Path(__file__).parents[2]
TRAINING_SCRIPT = REPOSITORY / "examples" / "train.py"


def namespace(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def secret(store: ObjectStore) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key},
    }


def checkpoint(name: str, url: str, store: ObjectStore, **spec: Any) -> Manifest:
    """A Checkpoint that saves often enough to watch; `spec` overrides whole fields."""
    storage = {"url": url, "endpoint": store.endpoint, "region": REGION, "credentialsSecret": {"name": SECRET}}
    return {
        "apiVersion": "checkpoint-operator.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "storage": storage,
            "save": {"everySteps": 10},
            "retention": {"keepLast": 3, "gracePeriod": "10s"},
            **spec,
        },
    }


def job(
    name: str,
    *,
    python: HostPython,
    checkpoint_name: str,
    steps: int,
    pause_seconds: float = 0.0,
    prefer_node: str = "",
    grace_seconds: int = 60,
) -> Manifest:
    """A Job of one pod with two ranks that trains `examples/train.py`."""
    command = [python.python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TRAINING_SCRIPT), f"--steps={steps}", f"--pause={pause_seconds}"]
    container = {
        "name": "train",
        "image": python.image,
        "command": command,
        # Ranks share two cores here: more threads would only get in each other's way.
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, *python.environment],
        "volumeMounts": python.volume_mounts,
    }
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds,
        "hostNetwork": True,  # this cluster has no pod network; nothing in the product needs it
        "containers": [container],
        "volumes": python.volumes,
    }
    if prefer_node:
        preference = {
            "matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [prefer_node]}]
        }
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preference}]}
        pod["affinity"] = {"nodeAffinity": rule}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 3,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
            "template": {"metadata": {"labels": {LABEL: checkpoint_name}}, "spec": pod},
        },
    }


def to_stdin(*manifests: Manifest) -> str:
    """What `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
