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
    ranks = ["--standalone", "--nproc-per-node=2"]
    pod = pod_template(
        checkpoint_name,
        python=python,
        command=torchrun(python, ranks, steps=steps, pause_seconds=pause_seconds),
        prefer_node=prefer_node,
        grace_seconds=grace_seconds,
    )
    return job_of(name, pod)


def job_of(name: str, template: Manifest, **spec: Any) -> Manifest:
    """A Job that does not count evictions as failures and replaces a pod only when it is gone."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 3,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
            "template": template,
            **spec,
        },
    }


def indexed_job(name: str, template: Manifest, *, pods: int) -> Manifest:
    """A Job of several pods that train together: each knows its number by JOB_COMPLETION_INDEX."""
    # All pods of a gang end when one is evicted; the others' exits are failures to the Job.
    return job_of(name, template, completionMode="Indexed", completions=pods, parallelism=pods, backoffLimit=6 * pods)


def stateful_set(name: str, template: Manifest, *, pods: int) -> Manifest:
    """A StatefulSet, whose pods keep their names."""
    labels = {"app": name}
    metadata = {"labels": {**template["metadata"]["labels"], **labels}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": pods,
            "serviceName": name,
            "podManagementPolicy": "Parallel",  # ranks wait for each other, so they must start together
            "selector": {"matchLabels": labels},
            "template": {"metadata": metadata, "spec": {**template["spec"], "restartPolicy": "Always"}},
        },
    }


def bare_pod(name: str, template: Manifest) -> Manifest:
    """A pod without an owner."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name},
        "spec": template["spec"],
    }


def torchrun(python: HostPython, ranks: list[str], *, steps: int, pause_seconds: float) -> list[str]:
    """The command that trains `examples/train.py`; `ranks` are torchrun's own arguments."""
    command = [python.python, "-m", "torch.distributed.run", *ranks]
    return [*command, str(TRAINING_SCRIPT), f"--steps={steps}", f"--pause={pause_seconds}"]


def pod_template(
    checkpoint_name: str,
    *,
    python: HostPython,
    command: list[str],
    prefer_node: str = "",
    grace_seconds: int = 60,
    **spec: Any,
) -> Manifest:
    """A labelled pod, as any workload takes it; `spec` overrides whole fields of the pod's."""
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
    return {"metadata": {"labels": {LABEL: checkpoint_name}}, "spec": {**pod, **spec}}


def to_stdin(*manifests: Manifest) -> str:
    """What `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
