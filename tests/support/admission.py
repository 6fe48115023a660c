"""Builders of our objects and of labelled pods, and what a real API server says to them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from checkpoint_sidecar.core import environment
from checkpoint_sidecar.core.api import API_VERSION
from localcluster.client import ApiServer, CommandError

Body = dict[str, Any]
Result = TypeVar("Result")

TIMEOUT_SECONDS = 15.0

_numbers = itertools.count(1)


def checkpoint(name: str = "run", **spec: Any) -> Body:
    """A valid Checkpoint, unless `spec` makes it invalid."""
    return _object("Checkpoint", name, {"storage": {"url": "s3://bucket/run"}, **spec})


def snapshot(name: str = "run-1000-7-abcdefg2", **spec: Any) -> Body:
    """A valid CheckpointSnapshot, unless `spec` makes it invalid."""
    body = {
        "checkpointRef": {"name": "run"},
        "step": 1000,
        "attempt": 7,
        "path": "step-1000/0007-abcdefg2",
        "manifestDigest": "0" * 64,
    }
    return _object("CheckpointSnapshot", name, body | spec)


def pod(name: str | None = "run", *, annotation: str | None = None, **spec: Any) -> Body:
    """A pod labelled with the name of a Checkpoint (None: not labelled), perhaps with a list of containers."""
    metadata: Body = {"name": "trainer"}
    if name is not None:
        metadata["labels"] = {environment.POD_LABEL: name}
    if annotation is not None:
        metadata["annotations"] = {environment.CONTAINERS_ANNOTATION: annotation}
    body = {"containers": [{"name": "main", "image": "i"}], "automountServiceAccountToken": False, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body}


def _object(kind: str, name: str, spec: Body) -> Body:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def eventually(
    ask: Callable[[], Result], right: Callable[[Result], bool], *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Result:
    """Ask until the answer is right: admission sees policies and Checkpoints through caches that lag a little."""
    deadline = time.monotonic() + timeout_seconds
    while not right(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer


@dataclass(frozen=True)
class Namespace:
    """A namespace of its own."""

    api: ApiServer
    name: str

    @classmethod
    def fresh(cls, api: ApiServer) -> Namespace:
        name = f"test-{next(_numbers)}"
        api.kubectl("create", "namespace", name)
        # The controller that gives each namespace its service account does not run on a bare API server.
        api.kubectl("create", "serviceaccount", "default", f"--namespace={name}")
        return cls(api, name)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.api.kubectl("--namespace", self.name, *arguments, stdin=stdin)

    def read(self, resource: str, name: str = "") -> Body:
        """An object or, without a name, the list of all: for what is asked again and again, cheaper than kubectl.

        Args:
            resource: In the plural: ``checkpoints``, ``checkpointsnapshots``, or one of the core group.

        Raises:
            OSError: The server is not there, or has no such object.
        """
        group = f"/apis/{API_VERSION}" if resource.startswith("checkpoint") else "/api/v1"
        found: Body = self.api.get(f"{group}/namespaces/{self.name}/{resource}/{name}".rstrip("/"))
        return found

    def create(self, body: Body, *flags: str) -> Body:
        """The object as stored, or with `--dry-run=server` as it would be. Raises `CommandError`."""
        created: Body = json.loads(
            self.kubectl("create", "--output=json", "--filename=-", *flags, stdin=json.dumps(body))
        )
        return created

    def refusal(self, body: Body) -> str:
        """Why the object is not admitted, or an empty text."""
        return _refusal(lambda: self.create(body, "--dry-run=server"))

    def patch(self, kind: str, name: str, patch: Body, *flags: str) -> Body:
        """The object after a merge patch. Raises `CommandError`."""
        answer = self.kubectl(
            "patch", kind, name, "--type=merge", f"--patch={json.dumps(patch)}", "--output=json", *flags
        )
        patched: Body = json.loads(answer)
        return patched

    def patch_refusal(self, kind: str, name: str, spec: Body) -> str:
        """Why the change of the spec is not admitted, or an empty text."""
        return _refusal(lambda: self.patch(kind, name, {"spec": spec}))

    def admitted(self, body: Body) -> Body:
        """The spec of the pod as admitted, once it is."""

        def attempt() -> Body | CommandError:
            try:
                return self.create(body, "--dry-run=server")
            except CommandError as error:
                return error

        answer = eventually(attempt, lambda answer: not isinstance(answer, CommandError))
        assert isinstance(answer, dict)
        spec: Body = answer["spec"]
        return spec

    def denied(self, body: Body) -> str:
        """Why the pod is not admitted, once it is not."""
        return eventually(lambda: self.refusal(body), bool)


def _refusal(attempt: Callable[[], Body]) -> str:
    try:
        attempt()
    except CommandError as error:
        return str(error)
    return ""
