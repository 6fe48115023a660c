"""``init`` needs no cluster, and every workload that it writes puts the label on the pods that train."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from checkpoint_cli.cluster.init import Workload
from checkpoint_cli.verbs import Door
from support.commands import Program

LABEL = {"checkpoint-operator.dev/checkpoint": "llama"}
TEMPLATES: dict[str, list[Any]] = {
    "Job": ["template"],
    "JobSet": ["replicatedJobs", 0, "template", "spec", "template"],
    "TrainJob": [
        "runtimePatches",
        0,
        "trainingRuntimeSpec",
        "template",
        "spec",
        "replicatedJobs",
        0,
        "template",
        "spec",
        "template",
    ],
    "PyTorchJob": ["pytorchReplicaSpecs", "Worker", "template"],
    "RayJob": ["rayClusterSpec", "workerGroupSpecs", 0, "template"],
}
TYPES = {"JobSet": models.JobsetV1alpha2JobSet, "TrainJob": models.TrainerV1alpha1TrainJob}


@pytest.fixture
def kubectl_ckpt(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(Door.CLUSTER, capsys)


@pytest.mark.parametrize("workload", list(Workload))
def test_the_pods_that_train_have_the_label(kubectl_ckpt: Program, workload: str) -> None:
    written = kubectl_ckpt("init", "llama", "s3://bucket/llama", "--for", workload.lower(), "-n", "team")
    own, work = yaml.safe_load_all(written.output)
    assert (own["kind"], work["kind"]) == ("Checkpoint", workload)
    assert own["metadata"] == work["metadata"] == {"name": "llama", "namespace": "team"}
    template: Any = work["spec"]
    for key in TEMPLATES[workload]:
        template = template[key]
    assert template["metadata"]["labels"] == LABEL
    if workload in TYPES:
        assert TYPES[workload].from_dict(work) is not None
    assert template.get("spec", {"terminationGracePeriodSeconds": 120})["terminationGracePeriodSeconds"] == 120


def test_a_secret_is_named_and_the_command_for_it_is_shown(kubectl_ckpt: Program) -> None:
    written = kubectl_ckpt("init", "llama", "az://box/llama", "--secret", "keys").output
    assert "kubectl create secret generic keys --from-literal=AZURE_STORAGE_ACCOUNT_NAME=..." in written
    assert next(yaml.safe_load_all(written))["spec"]["storage"]["credentialsSecret"] == {"name": "keys"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("Llama", "s3://bucket/llama"), "lower-case"),
        (("llama", "bucket/llama"), "<scheme>"),
        (("llama", "s3://bucket/llama", "--every", "2d"), "not a Kubernetes duration"),
        (("llama", "s3://bucket/llama", "--for", "CronJob"), "CronJob"),
        (("llama",), "Missing argument"),
    ],
)
def test_bad_input_is_one_line_with_status_2(kubectl_ckpt: Program, arguments: tuple[str, ...], says: str) -> None:
    ran = kubectl_ckpt("init", *arguments)
    assert (ran.status, ran.output) == (2, "")
    assert says in ran.problem
