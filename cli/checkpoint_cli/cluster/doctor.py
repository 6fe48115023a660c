"""``doctor`` of the cluster door: is everything there that a run needs?"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from checkpoint_cli import views
from checkpoint_cli.cluster.convert import run_record
from checkpoint_cli.cluster.door import NamedRun, of_whole_checkpoint
from checkpoint_cli.cluster.kubectl import Body, Kubectl
from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.options import Output
from checkpoint_cli.output import OutputFormat
from checkpoint_cli.records import CheckRecord, ReportRecord
from checkpoint_sidecar.core.api import GROUP
from checkpoint_sidecar.core.environment import CONTAINERS_ANNOTATION, POD_LABEL, RUN, URL

_OPERATOR_SELECTOR = "app.kubernetes.io/name=checkpoint-operator"
_SKEW_SECONDS = 60.0
_TEMPLATES = (
    ("spec", "template"),
    ("spec", "jobTemplate", "spec", "template"),
    ("spec", "replicatedJobs", "0", "template", "spec", "template"),
    ("spec", "pytorchReplicaSpecs", "Worker", "template"),
    ("spec", "pytorchReplicaSpecs", "Master", "template"),
)
_RIGHTS = (
    ("get", f"checkpoints.{GROUP}"),
    ("patch", f"checkpoints.{GROUP}"),
    ("list", f"checkpointsnapshots.{GROUP}"),
    ("patch", f"checkpointsnapshots.{GROUP}"),
    ("list", "events"),
    ("list", "pods"),
)


@of_whole_checkpoint
def doctor(
    at: NamedRun,
    pod: Annotated[
        Path | None,
        typer.Option("--pod", "-f", exists=True, dir_okay=False, help="A pod, or a workload with a template."),
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Check the cluster, one run, your rights, and whether its pods would be injected. Changes nothing.

    Example: {program} doctor llama-7b --pod job.yaml
    """
    checks = [_answered("kinds installed", lambda: _kinds(at.kubectl))]
    checks.append(_answered("operator running", lambda: _operator(at.kubectl)))
    checkpoint: Body | None = None
    try:
        checkpoint = at.checkpoint()
    except CommandRefusedError as error:
        checks.append(CheckRecord(check=f"Checkpoint {at.shown}", result="problem", detail=_said(error)))
    if checkpoint is not None:
        checks += _conditions(checkpoint)
        checks.append(_answered("credentials", lambda: _secret(at, checkpoint)))
        checks += _pods(at)
        checks.append(_answered("a new pod would be injected", lambda: _injection(at, pod)))
    checks += [_answered(f"right to {verb} {kind}", partial(_right, at, verb, kind)) for verb, kind in _RIGHTS]
    views.show_report(ReportRecord(subject=at.shown, items=tuple(checks)), output)
    if any(each.result == "problem" for each in checks):
        raise typer.Exit(ExitStatus.PROBLEM)


def _answered(check: str, ask: Callable[[], tuple[str, str]]) -> CheckRecord:
    try:
        result, detail = ask()
    except CommandRefusedError as error:
        if error.status is ExitStatus.UNREACHABLE:
            raise
        result, detail = "unknown", _said(error)
    return CheckRecord(check=check, result=result, detail=detail)


def _said(error: CommandRefusedError) -> str:
    return f"{error.cause}. {error.hint}".strip()


def _kinds(kubectl: Kubectl) -> tuple[str, str]:
    try:
        served = kubectl.get("read the API group", GROUP, f"/apis/{GROUP}")
    except CommandRefusedError as error:
        if error.status is ExitStatus.NOT_FOUND:
            return "problem", "the cluster does not serve them. Install the chart."
        raise
    return "ok", ", ".join(each["version"] for each in served["versions"])


def _operator(kubectl: Kubectl) -> tuple[str, str]:
    pods = kubectl.list("list the operator's pods", "", "/api/v1/pods", labelSelector=_OPERATOR_SELECTOR)
    ready = [each for each in pods if _is_ready(each)]
    if not ready:
        return "problem", f"no pod with the label {_OPERATOR_SELECTOR} is ready. Saves and restores work without it."
    images = {container["image"] for each in ready for container in each["spec"]["containers"]}
    return "ok", ", ".join(sorted(images))


def _is_ready(pod: Body) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _conditions(checkpoint: Body) -> list[CheckRecord]:
    record = run_record(checkpoint, now=dt.datetime.now(dt.UTC))
    if not record.conditions:
        return [CheckRecord(check="reported on by an operator", result="problem", detail="it has no conditions yet.")]
    bad = {problem.partition(" ")[0] for problem in record.problems}
    return [
        CheckRecord(
            check=f"condition {each.type}",
            result="problem" if each.type in bad else "unknown" if each.status == "Unknown" else "ok",
            detail=f"{each.status}, {each.reason}: {each.message}" if each.type in bad else each.reason,
        )
        for each in record.conditions
    ]


def _secret(at: NamedRun, checkpoint: Body) -> tuple[str, str]:
    reference = checkpoint["spec"]["storage"].get("credentialsSecret") or {}
    name = reference.get("name")
    if not name:
        return "ok", "no Secret is named: pods use their own cloud identity"
    path = f"/api/v1/namespaces/{at.kubectl.namespace}/secrets/{name}"
    try:
        found = at.kubectl.get("read Secret", name, path)
    except CommandRefusedError as error:
        if error.status is ExitStatus.NOT_FOUND:
            return "problem", f"the Secret {name} does not exist. Create it in the namespace {at.kubectl.namespace}."
        return "unknown", f"the Secret {name} cannot be read with your rights"
    return "ok", f"Secret {name} has {', '.join(sorted(found.get('data') or {})) or 'no keys'}"


def _pods(at: NamedRun) -> list[CheckRecord]:
    try:
        pods = at.kubectl.pods(at.name)
    except CommandRefusedError as error:
        return [CheckRecord(check="pods with the label", result="unknown", detail=_said(error))]
    if not pods:
        return [CheckRecord(check="pods with the label", result="ok", detail=f"none has {POD_LABEL}={at.name} now")]
    bare = sorted(each["metadata"]["name"] for each in pods if not _injected(each))
    if bare:
        detail = f"{', '.join(bare[:5])} lack {URL}. Delete them, so that their controller creates them again."
        return [CheckRecord(check="pods with the label are injected", result="problem", detail=detail)]
    return [CheckRecord(check="pods with the label are injected", result="ok", detail=f"{len(pods)} of {len(pods)}")]


def _injected(pod: Body) -> bool:
    names = {each["name"] for c in pod["spec"]["containers"] for each in c.get("env") or ()}
    return {RUN, URL} <= names


def _injection(at: NamedRun, manifest: Path | None) -> tuple[str, str]:
    body = _pod_of(at, manifest)
    label = (body["metadata"].get("labels") or {}).get(POD_LABEL)
    if label != at.name:
        return "problem", f"the pod template has no label {POD_LABEL}: {at.name}"
    try:
        admitted = at.kubectl.create(body, dry_run=True)
    except CommandRefusedError as error:
        if error.status is ExitStatus.REFUSED:
            return "problem", f"the pod is refused: {error.cause}"
        raise
    if not _injected(admitted):
        listed = (body["metadata"].get("annotations") or {}).get(CONTAINERS_ANNOTATION)
        why = f"the annotation lists {listed}" if listed else "injection.mode of the chart is Off"
        return "problem", f"{URL} is not set: {why}. See docs/api.md for the lines to write by hand."
    return "ok", "admission sets its run, URL and credentials"


def _pod_of(at: NamedRun, manifest: Path | None) -> Body:
    labels = {POD_LABEL: at.name}
    if manifest is None:
        template: Body = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "train", "image": "train"}]}}
    else:
        template = _template_in(manifest)
    metadata = {
        key: value for key, value in (template.get("metadata") or {}).items() if key in ("labels", "annotations")
    }
    spec = {"restartPolicy": "Never", **template["spec"]}
    # A trial that needs no service account, which admission would look for.
    spec.setdefault("automountServiceAccountToken", False)
    name = {"name": "checkpoint-doctor", "namespace": at.kubectl.namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, **name}, "spec": spec}


def _template_in(manifest: Path) -> Body:
    import yaml

    refused = CommandRefusedError(
        "read the pod template in",
        str(manifest),
        "it holds neither a pod nor a workload with a pod template",
        "Pass a Pod, Job, CronJob, JobSet, StatefulSet or PyTorchJob.",
        status=ExitStatus.USAGE,
    )
    try:
        documents = [each for each in yaml.safe_load_all(manifest.read_text()) if isinstance(each, dict)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise refused from error
    for document in documents:
        if document.get("kind") == "Pod" and isinstance(document.get("spec"), dict):
            return document
        for path in _TEMPLATES:
            found: Any = document
            for key in path:
                found = (
                    found[int(key)]
                    if isinstance(found, list) and key == "0" and found
                    else None
                    if not isinstance(found, dict)
                    else found.get(key)
                )
            if isinstance(found, dict) and isinstance(found.get("spec"), dict) and found["spec"].get("containers"):
                return found
    raise refused


def _right(at: NamedRun, verb: str, kind: str) -> tuple[str, str]:
    resource, _, group = kind.partition(".")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "metadata": {"name": ""},
        "spec": {
            "resourceAttributes": {
                "namespace": at.kubectl.namespace,
                "verb": verb,
                "resource": resource,
                "group": group,
            }
        },
    }
    answer = at.kubectl.create(review, dry_run=False)
    if answer["status"]["allowed"]:
        return "ok", ""
    return "warning", "you do not have it; the verbs that need it will be refused"
