"""``init``: the YAML of a new run, for each kind of workload. Needs no cluster."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

import typer

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.output import write
from checkpoint_sidecar.core.api import API_VERSION
from checkpoint_sidecar.core.environment import POD_LABEL
from checkpoint_sidecar.core.location import parse_url

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_GRACE_SECONDS = 120
_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS_JSON",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}


class Workload(StrEnum):
    """Kinds of workloads that ``init`` writes pod templates for."""

    JOB = "Job"
    JOB_SET = "JobSet"
    TRAIN_JOB = "TrainJob"
    PYTORCH_JOB = "PyTorchJob"
    RAY_JOB = "RayJob"


def init(
    name: Annotated[str, typer.Argument(help="Name of the Checkpoint and of the workload.")],
    url: Annotated[str, typer.Argument(help="Where its snapshots go: s3://, gs:// or az://<bucket>/<path>.")],
    workload: Annotated[
        Workload, typer.Option("--for", case_sensitive=False, help="Kind of the workload.")
    ] = Workload.JOB,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace to write; default: none.")] = "",
    secret: Annotated[
        str, typer.Option("--secret", help="Secret with the keys of the store; default: the pods' own identity.")
    ] = "",
    endpoint: Annotated[str, typer.Option("--endpoint", help="URL of an S3-compatible service.")] = "",
    region: Annotated[str, typer.Option("--region", help="Region of the bucket.")] = "",
    every: Annotated[str, typer.Option("--every", help="Save after this time: 90s, 15m, 1h30m.")] = "15m",
    every_steps: Annotated[int | None, typer.Option("--every-steps", min=1, help="Also save at its multiples.")] = None,
    keep_last: Annotated[int, typer.Option("--keep-last", min=1, help="Snapshots to keep.")] = 3,
    image: Annotated[str, typer.Option("--image", help="Image of the training; default: a placeholder.")] = "",
) -> None:
    """Write a Checkpoint, the command for its Secret, and a workload whose pods train under it.

    Nothing is applied, and no cluster is needed: review the YAML, replace the command, then apply it.

    Example: {program} init llama-7b s3://training/llama-7b --secret s3-keys --for JobSet > run.yaml
    """
    _check(name, url, every)
    scheme = parse_url(url).scheme
    checkpoint = checkpoint_body(
        name,
        url,
        secret=secret,
        endpoint=endpoint,
        region=region,
        every=every,
        every_steps=every_steps,
        keep_last=keep_last,
    )
    documents = [checkpoint, workload_body(workload, name, image or _image(workload))]
    for each in documents:
        if namespace:
            each["metadata"]["namespace"] = namespace
    write(_header(scheme, secret, namespace) + "---\n".join(_yaml(each) for each in documents).rstrip())


def checkpoint_body(
    name: str,
    url: str,
    *,
    secret: str,
    endpoint: str,
    region: str,
    every: str,
    every_steps: int | None,
    keep_last: int,
) -> dict[str, Any]:
    """Return a Checkpoint."""
    storage = {"url": url, "endpoint": endpoint, "region": region}
    storage = {key: value for key, value in storage.items() if value}
    references: dict[str, Any] = {"credentialsSecret": {"name": secret}} if secret else {}
    cadence: dict[str, Any] = {"everySteps": every_steps} if every_steps else {}
    return {
        "apiVersion": API_VERSION,
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "storage": storage | references,
            "save": cadence | {"every": every},
            "retention": {"keepLast": keep_last},
        },
    }


def workload_body(workload: Workload, name: str, image: str) -> dict[str, Any]:
    """Return a workload whose pods carry the label of the Checkpoint."""
    labels = {"metadata": {"labels": {POD_LABEL: name}}}
    kind, version, spec = _SPECS[workload](name, image, labels)
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _pod(image: str, command: list[str], *, container: str = "train", restart: bool = True) -> dict[str, Any]:
    spec: dict[str, Any] = {"restartPolicy": "Never"} if restart else {}
    spec |= {
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "containers": [{"name": container, "image": image, "command": command}],
    }
    return spec


def _job(name: str, image: str, labels: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    del name
    command = ["torchrun", "--standalone", "--nproc-per-node=8", "train.py"]
    spec = {
        "backoffLimit": 3,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
        "template": labels | {"spec": _pod(image, command)},
    }
    return "Job", "batch/v1", spec


def _job_set(name: str, image: str, labels: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    command = ["torchrun", "--nnodes=2", "--nproc-per-node=8", "--node-rank=$(JOB_COMPLETION_INDEX)"]
    command += [f"--master-addr={name}-workers-0-0.{name}", "--master-port=29500", "train.py"]
    job = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 0}
    spec = {
        "failurePolicy": {"maxRestarts": 100},
        "replicatedJobs": [
            {"name": "workers", "template": {"spec": job | {"template": labels | {"spec": _pod(image, command)}}}}
        ],
    }
    return "JobSet", "jobset.x-k8s.io/v1alpha2", spec


def _train_job(name: str, image: str, labels: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    del name
    node = {"name": "node", "template": {"spec": {"template": labels}}}
    spec = {
        "runtimeRef": {"name": "torch-distributed"},
        "trainer": {"image": image, "command": ["torchrun", "train.py"], "numNodes": 2},
        "runtimePatches": [
            {
                "manager": "example.com/checkpoints",
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
            }
        ],
    }
    return "TrainJob", "trainer.kubeflow.org/v1alpha1", spec


def _pytorch_job(name: str, image: str, labels: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    del name
    # ExitCode: the exit code 143 after SIGTERM leads to a replacement. The container has to be called pytorch.
    template = labels | {"spec": _pod(image, ["torchrun", "train.py"], container="pytorch", restart=False)}
    worker = {"replicas": 2, "restartPolicy": "ExitCode", "template": template}
    return "PyTorchJob", "kubeflow.org/v1", {"pytorchReplicaSpecs": {"Worker": worker}}


def _ray_job(name: str, image: str, labels: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    del name
    # The ranks of Ray Train are in the workers. The head schedules them and does not train, so it has no label.
    head = {"spec": {"containers": [{"name": "ray-head", "image": image}]}}
    worker = {"terminationGracePeriodSeconds": _GRACE_SECONDS, "containers": [{"name": "ray-worker", "image": image}]}
    group = {
        "groupName": "workers",
        "replicas": 2,
        "minReplicas": 2,
        "maxReplicas": 2,
        "rayStartParams": {},
        "template": labels | {"spec": worker},
    }
    cluster = {"headGroupSpec": {"rayStartParams": {}, "template": head}, "workerGroupSpecs": [group]}
    spec = {"entrypoint": "python train.py", "shutdownAfterJobFinishes": True, "rayClusterSpec": cluster}
    return "RayJob", "ray.io/v1", spec


_SPECS = {
    Workload.JOB: _job,
    Workload.JOB_SET: _job_set,
    Workload.TRAIN_JOB: _train_job,
    Workload.PYTORCH_JOB: _pytorch_job,
    Workload.RAY_JOB: _ray_job,
}


def _image(workload: Workload) -> str:
    framework = "Ray, torch" if workload is Workload.RAY_JOB else "torch"
    return f"<an image with {framework} and checkpoint-operator[torch]>"


def _check(name: str, url: str, every: str) -> None:
    parse_url(url)
    if not _NAME.fullmatch(name):
        cause = "a name has at most 63 lower-case letters, digits and -, and neither begins nor ends with -"
        raise CommandRefusedError("write the YAML of", repr(name), cause, status=ExitStatus.USAGE)
    if not re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", every):
        cause = f"{every!r} is not a Kubernetes duration"
        raise CommandRefusedError("write the YAML of", name, cause, "Use 90s, 15m or 1h30m.", status=ExitStatus.USAGE)


def _header(scheme: str, secret: str, namespace: str) -> str:
    lines = ["# Apply it with: kubectl apply -f <this file>"]
    if secret and scheme in _KEYS:
        where = f" --namespace={namespace}" if namespace else ""
        literals = " ".join(f"--from-literal={key}=..." for key in _KEYS[scheme])
        lines.append(f"# Before that: kubectl create secret generic {secret}{where} {literals}")
    return "\n".join(lines) + "\n"


def _yaml(body: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(body, sort_keys=False, width=120))
