"""``bundle`` of the cluster door: an archive for a support request, without secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from checkpoint_cli.archive import REMOVED, names_a_secret, secrets_here, write_archive
from checkpoint_cli.cluster.door import NamedRun, of_whole_checkpoint
from checkpoint_cli.cluster.kubectl import Body, Kubectl
from checkpoint_cli.exits import CommandRefusedError
from checkpoint_cli.output import write

_OPERATOR = "app.kubernetes.io/name=checkpoint-operator"
_LOG_LINES = 5_000
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@of_whole_checkpoint
def bundle(
    at: NamedRun,
    operator_namespace: Annotated[
        str, typer.Option("--operator-namespace", help="Where the operator runs; default: look in all namespaces.")
    ] = "",
    file: Annotated[str, typer.Option("--file", "-f", help="Archive to write; default: <name>-bundle.tar.gz.")] = "",
) -> None:
    """Write an archive for a support request: the Checkpoint, its snapshots and Events, the operator, versions.

    Secrets are never read. Values of environment variables that may be secret are removed, and what looks like a secret
    in a log. What your rights do not allow is left out, and the archive says so.

    Example: {program} bundle llama-7b --file llama.tar.gz
    """
    path = Path(file or f"{at.name}-bundle.tar.gz")
    checkpoint = at.checkpoint()
    write_archive(path, _contents(at, checkpoint, operator_namespace), secrets_here("", os.environ))
    write(f"Wrote {path}")


def _contents(at: NamedRun, checkpoint: Body, operator_namespace: str) -> Iterator[tuple[str, str]]:
    kubectl, name = at.kubectl, at.name
    yield "checkpoint.yaml", _yaml(checkpoint)
    yield "snapshots.yaml", _readable(lambda: kubectl.snapshots(name))
    yield "events.yaml", _readable(lambda: kubectl.events(name))
    yield "pods.yaml", _readable(lambda: [_pod(each) for each in kubectl.pods(name)])
    yield "operator.yaml", _readable(lambda: _deployments(kubectl, operator_namespace))
    yield "operator.log", _text(lambda: _logs(kubectl, operator_namespace))
    yield "versions.json", _text(lambda: kubectl.run("read", "versions", ["version", "--output=json"]))
    yield "checks.json", _checks()


def _checks() -> str:
    import msgspec

    from checkpoint_cli.versions import versions

    return msgspec.json.format(msgspec.json.encode(tuple(versions())), indent=2).decode()


def _deployments(kubectl: Kubectl, namespace: str) -> list[Body]:
    scope = f"/namespaces/{namespace}" if namespace else ""
    path = f"/apis/apps/v1{scope}/deployments"
    return kubectl.list("list Deployments", "of the operator", path, labelSelector=_OPERATOR)


def _logs(kubectl: Kubectl, namespace: str) -> str:
    found = {each["metadata"]["namespace"] for each in _deployments(kubectl, namespace)}
    if not found:
        return "no Deployment of the operator was found\n"
    arguments = ["logs", f"--selector={_OPERATOR}", f"--tail={_LOG_LINES}", "--prefix", "--all-containers"]
    return "".join(
        kubectl.run("read the log", f"of the operator in {each}", [*arguments, f"--namespace={each}"])
        for each in sorted(found)
    )


def _pod(pod: Body) -> Body:
    """Return what happened to a pod. Its spec is the user's, and may hold anything."""
    status = pod.get("status") or {}
    states = ("phase", "reason", "message", "conditions", "containerStatuses", "startTime")
    return {
        "name": pod["metadata"]["name"],
        "node": (pod.get("spec") or {}).get("nodeName"),
        **{key: status[key] for key in states if key in status},
    }


def _readable(read: Callable[[], list[Body]]) -> str:
    return _text(lambda: _yaml(read()))


def _text(read: Callable[[], str]) -> str:
    try:
        return read()
    except CommandRefusedError as error:
        return f"not in this archive: {error}\n"


def _yaml(value: Any) -> str:
    import yaml

    # Through JSON, so that no aliases appear.
    return str(yaml.safe_dump(json.loads(json.dumps(redacted_object(value))), sort_keys=False, allow_unicode=True))


def redacted_object(value: Any) -> Any:
    """Return an object of the API without values of variables that may be secret, and without what was applied last."""
    if isinstance(value, list):
        return [redacted_object(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: redacted_object(each) for key, each in value.items() if key not in ("managedFields", _LAST_APPLIED)}
    if isinstance(kept.get("name"), str) and isinstance(kept.get("value"), str) and names_a_secret(kept["name"]):
        kept["value"] = REMOVED
    return kept
