"""Every object of the documentation and the examples is one that a cluster takes, as it stands.

Ours and those of Kubernetes are sent to a real API server. JobSet and TrainJob are compared with the types that their
projects publish, PyTorchJob with a schema of its fields; their pod templates go to the API server, too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api import models
from pydantic import ValidationError

from checkpoint_sidecar.core.environment import POD_LABEL
from support.admission import Body, Namespace
from support.markdown import REPOSITORY, blocks

pytestmark = pytest.mark.api

SCHEMA = REPOSITORY / "charts" / "checkpoint-operator" / "values.schema.json"
VALUES = "the chart's values"
PARTS: dict[str, Body] = {
    "Checkpoint": {
        "apiVersion": "checkpoint-operator.dev/v1alpha1",
        "metadata": {"name": "run"},
        "spec": {"storage": {"url": "s3://bucket/run"}},
    },
    "Pod": {"apiVersion": "v1", "metadata": {"name": "pod"}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
}
"""What completes a block that is a part of something."""

MODELS = {"JobSet": models.JobsetV1alpha2JobSet, "TrainJob": models.TrainerV1alpha1TrainJob}
REPLICAS: Body = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "replicas": {"type": "integer"},
        "restartPolicy": {"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
        "template": {"type": "object"},
    },
}
PYTORCH_JOB: Body = {
    "type": "object",
    "additionalProperties": False,
    "required": ["pytorchReplicaSpecs"],
    "properties": {
        "nprocPerNode": {"type": "string"},
        "pytorchReplicaSpecs": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"Master": REPLICAS, "Worker": REPLICAS},
        },
        "runPolicy": {"type": "object"},
        "elasticPolicy": {"type": "object"},
    },
}


def documents() -> Iterator[tuple[str, str, Body]]:
    """Place, kind and body of each object."""
    for block in blocks("yaml"):
        part = block.noted("part of")
        for body in yaml.safe_load_all(block.text):
            yield block.name, part or body["kind"], _merged(PARTS[part], body) if part in PARTS else body
    for path in sorted((REPOSITORY / "examples").glob("*.yaml")):
        for body in yaml.safe_load_all(path.read_text()):
            yield path.name, body["kind"], body


def _merged(whole: Any, part: Any) -> Any:
    if not (isinstance(whole, dict) and isinstance(part, dict)):
        return part
    return whole | {name: _merged(whole.get(name), value) for name, value in part.items()}


DOCUMENTS = list(documents())
NAMES = [f"{place} {kind}" for place, kind, _ in DOCUMENTS]


@pytest.mark.parametrize(("place", "kind", "body"), DOCUMENTS, ids=NAMES)
def test_what_the_documentation_shows_is_taken_by_a_cluster(
    anywhere: Namespace, place: str, kind: str, body: Body
) -> None:
    assert fault(anywhere, kind, body) == ""


def fault(namespace: Namespace, kind: str, body: Body) -> str:
    """Why this is no object of that kind, or an empty text."""
    if kind == VALUES:
        return _complaint(body, json.loads(SCHEMA.read_text()))
    if kind not in (*MODELS, "PyTorchJob"):
        return namespace.refusal(_unlabelled({**body, "kind": kind}))
    complaint = _misread(MODELS[kind], body) if kind in MODELS else _complaint(body["spec"], PYTORCH_JOB)
    return complaint or "".join(
        namespace.refusal(_unlabelled({"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod"}}))
        for template in _pod_templates(body)
    )


def _misread(model: Any, body: Body) -> str:
    """What the type makes of it, unless that is all of it."""
    try:
        read = model.from_dict(copy.deepcopy(body)).to_dict()
    except ValidationError as error:
        return str(error)
    return "" if read == body else f"its type knows {read}"


def _complaint(body: Body, schema: Body) -> str:
    found = next(jsonschema.Draft202012Validator(schema).iter_errors(body), None)
    return found.message if found else ""


def _unlabelled(body: Body) -> Body:
    """Without the label, for which the chart's policies want a Checkpoint to exist."""
    labels = {name: value for name, value in body["metadata"].get("labels", {}).items() if name != POD_LABEL}
    return {**body, "metadata": {**body["metadata"], "labels": labels}}


def _pod_templates(node: Any) -> Iterator[Body]:
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}) and "kind" not in node:
            yield node
        else:
            for value in node.values():
                yield from _pod_templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from _pod_templates(value)


LABELLED: dict[str, str] = {
    "Job": "spec.template",
    "JobSet": "spec.replicatedJobs.0.template.spec.template",
    "Pod": "",
    "PyTorchJob": "spec.pytorchReplicaSpecs.Worker.template",
    "StatefulSet": "spec.template",
    "TrainJob": "spec.runtimePatches.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.template.spec.template",
}
"""Where the pods of a kind take their labels from."""


def test_every_workload_labels_its_pods() -> None:
    shown = [(place, kind, body) for place, kind, body in DOCUMENTS if kind in LABELLED]
    assert {"Job", "JobSet", "Pod", "PyTorchJob", "TrainJob"} <= {kind for _, kind, _ in shown}
    for place, kind, body in shown:
        node: Any = body
        for part in filter(None, LABELLED[kind].split(".")):
            node = node[int(part) if part.isdigit() else part]
        assert node["metadata"]["labels"][POD_LABEL] == "llama-7b", place


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("TrainJob", {"spec": {"runtimeRef": {"name": "torch-distributed"}, "labels": {POD_LABEL: "llama-7b"}}}),
        ("JobSet", {"spec": {"replicatedJobs": [{"name": "a", "template": {"spec": {"templates": {}}}}]}}),
        ("PyTorchJob", {"spec": {"pytorchReplicaSpecs": {"Workers": {}}}}),
        ("Job", {"spec": {"template": {"spec": {"containers": []}}}}),
        ("Pod", {"spec": {"containers": [{"name": "c", "image": "i", "environment": []}]}}),
        ("Checkpoint", {"spec": {"storage": {"url": "s3://b/r"}, "retentions": {}}}),
        (VALUES, {"ambientIdentity": {"allowed": []}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_check_finds_a_field_that_does_not_exist(anywhere: Namespace, kind: str, body: Body) -> None:
    versions = {"Job": "batch/v1", "Pod": "v1", "Checkpoint": "checkpoint-operator.dev/v1alpha1"}
    whole = {"apiVersion": versions.get(kind, ""), "kind": kind, "metadata": {"name": "run"}, **body}
    assert fault(anywhere, kind, body if kind == VALUES else whole) != ""


def test_the_notes_of_the_chart_show_a_checkpoint_that_is_taken(anywhere: Namespace) -> None:
    notes = (Path(SCHEMA).parent / "templates" / "NOTES.txt").read_text()
    shown = yaml.safe_load(notes.partition("<<END\n")[2].partition("\n  END")[0])
    assert anywhere.refusal(shown) == ""
