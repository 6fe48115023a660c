"""Builders of our objects and of labelled pods, and what a real API server says to them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from checkpoint_sidecar.core import environment
from checkpoint_sidecar.core.api import API_VERSION
from localcluster.client import ApiServer

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


class RefusedError(Exception):
    """The API server did not accept an object; its message is the server's."""


@dataclass(frozen=True)
class Namespace:
    """A namespace of its own."""

    api: ApiServer
    name: str

    @classmethod
    def fresh(cls, api: ApiServer) -> Namespace:
        namespace = cls(api, f"test-{next(_numbers)}")
        _sent(api, "POST", "/api/v1/namespaces", {"metadata": {"name": namespace.name}})
        # The controller that gives each namespace its service account does not run on a bare API server.
        namespace.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
        return namespace

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.api.kubectl("--namespace", self.name, *arguments, stdin=stdin)

    def read(self, resource: str, name: str = "") -> Body:
        """An object or, without a name, the list of all: for what is asked again and again, cheaper than kubectl.

        Args:
            resource: In the plural: ``checkpoints``, ``checkpointsnapshots``, or one of the core group.

        Raises:
            OSError: The server is not there, or has no such object.
        """
        group = API_VERSION if resource.startswith("checkpoint") else "v1"
        found: Body = self.api.get(f"{self._path(group, resource)}/{name}".rstrip("/"))
        return found

    def create(self, body: Body, *, dry_run: bool = False, user: str = "") -> Body:
        """The object as stored, or with `dry_run` as it would be. Raises `RefusedError`."""
        resource = f"{body['kind'].lower()}s"
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return _sent(self.api, "POST", self._path(body["apiVersion"], resource) + query, body, user=user)

    def refusal(self, body: Body) -> str:
        """Why the object is not admitted, or an empty text."""
        return _refusal(lambda: self.create(body, dry_run=True))

    def patch(
        self, resource: str, name: str, patch: Body, *, status: bool = False, dry_run: bool = False, user: str = ""
    ) -> Body:
        """The object after a merge patch. Raises `RefusedError`.

        Args:
            resource: In the plural: ``checkpoints``, ``checkpointsnapshots``, or one of the core group.
            status: Patch its status.
        """
        group = API_VERSION if resource.startswith("checkpoint") else "v1"
        path = f"{self._path(group, resource)}/{name}" + ("/status" if status else "")
        kind = "application/merge-patch+json"
        query = "?dryRun=All" if dry_run else ""
        return _sent(self.api, "PATCH", path + query, patch, content_type=kind, user=user)

    def patch_refusal(self, resource: str, name: str, spec: Body) -> str:
        """Why the change of the spec is not admitted, or an empty text."""
        return _refusal(lambda: self.patch(resource, name, {"spec": spec}))

    def admitted(self, body: Body) -> Body:
        """The spec of the pod as admitted, once it is."""

        def attempt() -> Body | RefusedError:
            try:
                return self.create(body, dry_run=True)
            except RefusedError as error:
                return error

        answer = eventually(attempt, lambda answer: not isinstance(answer, RefusedError))
        assert isinstance(answer, dict)
        spec: Body = answer["spec"]
        return spec

    def denied(self, body: Body) -> str:
        """Why the pod is not admitted, once it is not. A policy also denies while it does not know its kinds yet."""
        return eventually(lambda: self.refusal(body), lambda refusal: refusal != "" and "not yet synced" not in refusal)

    def _path(self, version: str, resource: str) -> str:
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{group}/{resource}" if resource == "nodes" else f"{group}/namespaces/{self.name}/{resource}"


def _sent(api: ApiServer, method: str, path: str, body: Body, **options: str) -> Body:
    # Not through kubectl: its start costs a hundred times what the request does.
    status, answer = api.send(method, path, body, **options)
    if status >= HTTPStatus.BAD_REQUEST:
        raise RefusedError(answer["message"])
    found: Body = answer
    return found


def _refusal(attempt: Callable[[], Body]) -> str:
    try:
        attempt()
    except RefusedError as error:
        return str(error)
    return ""
