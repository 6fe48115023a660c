"""What a user writes, as plain dicts. Everything that only one cluster needs comes in through `PodPython`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from localcluster.images import PodPython

Manifest = dict[str, Any]

LABEL = "checkpoint-operator.dev/checkpoint"
SECRET = "s3-keys"
CREDENTIALS_FOLDER = "/var/run/checkpoint-operator/credentials"
GRACE_SECONDS = 60
NO_LABELS: Mapping[str, str] = MappingProxyType({})
REPOSITORY = Path(__file__).parents[2]
TRAINING_SCRIPT = REPOSITORY / "examples" / "train.py"


class Storage(Protocol):
    """How pods and the operator reach a bucket."""

    @property
    def endpoint(self) -> str:
        """URL of the service; empty for AWS's own."""

    @property
    def region(self) -> str: ...

    @property
    def keys(self) -> dict[str, str]:
        """What the Secret holds."""


def namespace(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def secret(store: Storage) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": store.keys,
    }


def checkpoint(name: str, url: str, store: Storage, **spec: Any) -> Manifest:
    """A Checkpoint that saves often enough to watch; `spec` overrides whole fields."""
    place = {"endpoint": store.endpoint, "region": store.region}
    storage = {"url": url, "credentialsSecret": {"name": SECRET}, **{key: text for key, text in place.items() if text}}
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


def torchrun(
    python: PodPython, ranks: list[str], *, steps: int, pause_seconds: float, script: str = str(TRAINING_SCRIPT)
) -> list[str]:
    """The command that trains `examples/train.py`, which pods have at `script`; `ranks` are torchrun's arguments."""
    command = [python.python, "-m", "torch.distributed.run", *ranks]
    return [*command, script, f"--steps={steps}", f"--pause={pause_seconds}"]


def pod_template(
    checkpoint_name: str,
    *,
    python: PodPython,
    command: list[str],
    prefer_node: str = "",
    grace_seconds: int = GRACE_SECONDS,
    labels: Mapping[str, str] = NO_LABELS,
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
        **python.container,
    }
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds,
        "containers": [container],
        "volumes": python.volumes,
        **python.pod,
    }
    if prefer_node:
        preference = {
            "matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [prefer_node]}]
        }
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preference}]}
        pod["affinity"] = {"nodeAffinity": rule}
    return {"metadata": {"labels": {LABEL: checkpoint_name, **labels}}, "spec": {**pod, **spec}}


def written_by_hand(template: Manifest, url: str, store: Storage, *, run: str) -> Manifest:
    """`template` with the lines that the operator injects where the cluster offers that: see docs/api.md.

    `run` is `<UID of the namespace kube-system>/<namespace>/<name of the Checkpoint>`.
    """
    pod = template["spec"]
    grace = pod["terminationGracePeriodSeconds"]
    values = {
        "CHECKPOINT_RUN": run,
        "CHECKPOINT_URL": url,
        "CHECKPOINT_ENDPOINT": store.endpoint,
        "CHECKPOINT_REGION": store.region,
        "CHECKPOINT_ADDRESSING_STYLE": "Auto",
        "CHECKPOINT_GRACE_SECONDS": str(grace),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace - 5),
        "CHECKPOINT_CREDENTIALS_FOLDER": CREDENTIALS_FOLDER,
    }
    fields = {"CHECKPOINT_POD_NAME": "metadata.name", "CHECKPOINT_POD_UID": "metadata.uid"}
    environment: list[Manifest] = [{"name": name, "value": value} for name, value in values.items() if value]
    environment += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    mount = {"name": "checkpoint-operator-credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True}
    volume = {"name": "checkpoint-operator-credentials", "secret": {"secretName": SECRET}}
    containers = [
        {**each, "env": [*each["env"], *environment], "volumeMounts": [*each["volumeMounts"], mount]}
        for each in pod["containers"]
    ]
    return {**template, "spec": {**pod, "containers": containers, "volumes": [*pod["volumes"], volume]}}


def to_stdin(*manifests: Manifest) -> str:
    """What `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
