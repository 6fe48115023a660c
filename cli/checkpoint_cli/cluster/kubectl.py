"""Talks to the API server through kubectl.

A plugin of kubectl has kubectl beside it, which knows every way to log in (exec plugins, certificates, proxies), and
starts ten times faster than a client library can be imported. Reads use ``get --raw``, which needs no discovery.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_sidecar.core.api import API_VERSION, CHECKPOINT_PLURAL, GROUP, SNAPSHOT_PLURAL
from checkpoint_sidecar.core.environment import POD_LABEL

Body = dict[str, Any]

_GROUP = f"/apis/{API_VERSION}"
_PAGE = 500
_TIMEOUT = "--request-timeout=30s"
_CAUSES: tuple[tuple[str, ExitStatus, str], ...] = (
    ("(NotFound)", ExitStatus.NOT_FOUND, "Check the name, and the namespace (-n)."),
    ("doesn't have a resource type", ExitStatus.NOT_FOUND, "Install the chart: this cluster does not know the kind."),
    ("could not find the requested resource", ExitStatus.NOT_FOUND, "Is the chart installed in this cluster?"),
    ("(Forbidden)", ExitStatus.REFUSED, "Ask for the right; docs/api.md lists the roles."),
    ("(Unauthorized)", ExitStatus.REFUSED, "Log in to the cluster again."),
    ("must be logged in", ExitStatus.REFUSED, "Log in to the cluster again."),
    ("(Invalid)", ExitStatus.REFUSED, ""),
    (" is invalid", ExitStatus.REFUSED, ""),
    ("denied the request", ExitStatus.REFUSED, ""),
    ("denied request", ExitStatus.REFUSED, ""),
    ("(Conflict)", ExitStatus.REFUSED, "Try again."),
    ("(BadRequest)", ExitStatus.USAGE, ""),
    ("context was not found", ExitStatus.USAGE, "List the contexts with kubectl config get-contexts."),
    ('context "', ExitStatus.USAGE, "List the contexts with kubectl config get-contexts."),
    ("error loading config", ExitStatus.USAGE, "Correct the kubeconfig."),
    ("no such file or directory", ExitStatus.USAGE, "Correct --kubeconfig or KUBECONFIG."),
    ("AlreadyExists", ExitStatus.REFUSED, "Choose another name."),
)


@dataclass(frozen=True, slots=True)
class Kubectl:
    """One cluster and namespace, as kubectl sees them.

    Attributes:
        context, kubeconfig: Empty for kubectl's own choice.
        namespace: Resolved from the context if it was not given.
    """

    namespace: str
    context: str = ""
    kubeconfig: str = ""

    @classmethod
    def open(cls, namespace: str, context: str, kubeconfig: str) -> Kubectl:
        """Find the namespace of the context, or of the pod this runs in, without a request."""
        if namespace:
            return cls(namespace, context, kubeconfig)
        try:
            command = ["config", "view", "--minify", "--output=json"]
            answer = cls("", context, kubeconfig).run("read the kubeconfig", "", command, plain=True)
        except CommandRefusedError:
            # There is no such context: the first request says so, unless a pod's own account serves it.
            return cls(_namespace_of_pod() or "default", context, kubeconfig)
        contexts = json.loads(answer).get("contexts") or [{}]
        return cls((contexts[0].get("context") or {}).get("namespace") or "default", context, kubeconfig)

    def checkpoint(self, name: str) -> Body:
        """Return a Checkpoint."""
        path = f"{_GROUP}/namespaces/{self.namespace}/{CHECKPOINT_PLURAL}/{name}"
        return self.get("read Checkpoint", f"{self.namespace}/{name}", path)

    def checkpoints(self, *, everywhere: bool) -> list[Body]:
        """Return the Checkpoints of the namespace, or of the cluster."""
        scope = "" if everywhere else f"/namespaces/{self.namespace}"
        subject = "in all namespaces" if everywhere else f"in {self.namespace}"
        return self.list("list Checkpoints", subject, f"{_GROUP}{scope}/{CHECKPOINT_PLURAL}")

    def snapshots(self, name: str) -> list[Body]:
        """Return the CheckpointSnapshots of a Checkpoint."""
        path = f"{_GROUP}/namespaces/{self.namespace}/{SNAPSHOT_PLURAL}"
        return self.list(
            "list CheckpointSnapshots", f"of {self.namespace}/{name}", path, labelSelector=f"{POD_LABEL}={name}"
        )

    def events(self, name: str) -> list[Body]:
        """Return the Events of a Checkpoint."""
        selector = f"involvedObject.kind=Checkpoint,involvedObject.name={name}"
        path = f"/api/v1/namespaces/{self.namespace}/events"
        return self.list("list Events", f"of {self.namespace}/{name}", path, fieldSelector=selector)

    def pods(self, name: str) -> list[Body]:
        """Return the pods labelled with the name of a Checkpoint."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return self.list("list pods", f"of {self.namespace}/{name}", path, labelSelector=f"{POD_LABEL}={name}")

    def patch(self, resource: str, name: str, patch: Mapping[str, Any], *, dry_run: bool) -> Body:
        """Merge a patch into an object of ours, and return it as it is then.

        Args:
            resource: ``checkpoints`` or ``checkpointsnapshots``.
            dry_run: Let the API server check it without storing it.
        """
        command = ["patch", f"{resource}.{GROUP}", name, "--type=merge", f"--patch={json.dumps(patch)}"]
        command += ["--output=json", f"--namespace={self.namespace}", *(["--dry-run=server"] if dry_run else [])]
        patched: Body = json.loads(self.run("change", f"{resource}/{name}", command))
        return patched

    def create(self, body: Body, *, dry_run: bool) -> Body:
        """Create an object, or see with a dry run what admission makes of it."""
        command = ["create", "--filename=-", "--output=json", f"--namespace={self.namespace}"]
        command += ["--dry-run=server"] if dry_run else []
        name = body.get("metadata", {}).get("name") or body.get("metadata", {}).get("generateName", "")
        created: Body = json.loads(self.run("create", f"{body['kind']} {name}", command, stdin=json.dumps(body)))
        return created

    def get(self, operation: str, subject: str, path: str, **parameters: str) -> Body:
        """Return the JSON at a path of the API."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        answer: Body = json.loads(self.run(operation, subject, ["get", "--raw", f"{path}{query}"]))
        return answer

    def list(self, operation: str, subject: str, path: str, **parameters: str) -> list[Body]:
        """Return all items of a collection, page by page."""
        items: list[Body] = []
        rest = ""
        while True:
            pages = {"limit": str(_PAGE), **parameters, **({"continue": rest} if rest else {})}
            page = self.get(operation, subject, path, **pages)
            items += page.get("items") or []
            rest = (page.get("metadata") or {}).get("continue") or ""
            if not rest:
                return items

    def run(
        self, operation: str, subject: str, arguments: Sequence[str], *, stdin: str | None = None, plain: bool = False
    ) -> str:
        """Run kubectl and return what it prints.

        Args:
            plain: Whether the command sends no request, and takes no timeout.

        Raises:
            CommandRefusedError: It failed; the status says whether to look for a name, a right or a connection.
        """
        program = shutil.which("kubectl")
        if program is None:
            raise CommandRefusedError(
                operation, subject, "kubectl is not on the PATH", "Install kubectl.", status=ExitStatus.USAGE
            )
        command = [program, *arguments, *([] if plain else [_TIMEOUT])]
        command += [f"--context={self.context}"] if self.context else []
        command += [f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []
        done = subprocess.run(  # noqa: S603 - the arguments are ours, and no shell reads them
            command, input=stdin or "", capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return done.stdout
        raise _failure(operation, subject, done.stderr or done.stdout)


def _namespace_of_pod() -> str:
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _failure(operation: str, subject: str, text: str) -> CommandRefusedError:
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("E0", "E1", "Warning:"))
    ]
    cause = (lines[-1] if lines else "kubectl failed").removeprefix("error: ").removeprefix("Error from server ")
    for sign, status, hint in _CAUSES:
        if sign in text:
            return CommandRefusedError(operation, subject, cause.rstrip("."), hint, status=status)
    hint = "Check the cluster's address with kubectl cluster-info."
    return CommandRefusedError(operation, subject, cause.rstrip("."), hint, status=ExitStatus.UNREACHABLE)
