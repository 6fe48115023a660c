"""The CRDs and the chart on a real API server. Nothing runs there: what is created stays as it was admitted."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localcluster.client import ApiServer, CommandError
from localcluster.requirements import binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "checkpoint-operator"
RELEASE = "ckpt"
RELEASE_NAMESPACE = "operators"

Body = dict[str, Any]


@dataclass(frozen=True)
class Namespace:
    """A namespace of its own, and what the API server says to objects in it."""

    api: ApiServer
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.api.kubectl("--namespace", self.name, *arguments, stdin=stdin)

    def create(self, body: Body, *flags: str) -> Body:
        """The object as stored, or with ``--dry-run=server`` as it would be. Raises ``CommandError``."""
        return json.loads(self.kubectl("create", "--output=json", "--filename=-", *flags, stdin=json.dumps(body)))

    def refusal(self, body: Body) -> str:
        """Why the object is not admitted, or an empty text."""
        try:
            self.create(body, "--dry-run=server")
        except CommandError as error:
            return str(error)
        return ""

    def checkpoint(self, name: str = "run", **spec: Any) -> Body:
        """A valid Checkpoint, unless ``spec`` makes it invalid."""
        body = {"storage": {"url": "s3://bucket/run"}, **spec}
        return {**_kind("Checkpoint"), "metadata": {"name": name, "namespace": self.name}, "spec": body}

    def snapshot(self, **spec: Any) -> Body:
        """A valid CheckpointSnapshot, unless ``spec`` makes it invalid."""
        body = {
            "checkpointRef": {"name": "run"},
            "step": 1000,
            "attempt": 7,
            "path": "step-00001000/0007-abcdefg2",
            "manifestDigest": "0" * 64,
            **spec,
        }
        metadata = {"name": "run-1000-7-abcdefg2", "namespace": self.name}
        return {**_kind("CheckpointSnapshot"), "metadata": metadata, "spec": body}

    def patch(self, kind: str, name: str, patch: Body, *flags: str) -> Body:
        done = self.kubectl(
            "patch", kind, name, "--type=merge", f"--patch={json.dumps(patch)}", "--output=json", *flags
        )
        return json.loads(done)

    def patch_refusal(self, kind: str, name: str, spec: Body) -> str:
        try:
            self.patch(kind, name, {"spec": spec})
        except CommandError as error:
            return str(error)
        return ""

    def headers(self, kind: str, *flags: str) -> list[str]:
        return self.kubectl("get", kind, *flags).splitlines()[0].split()


def _kind(kind: str) -> Body:
    return {"apiVersion": "checkpoint-operator.dev/v1alpha1", "kind": kind}


@pytest.fixture(scope="session")
def crds(api_server: ApiServer) -> ApiServer:
    """An API server that knows our kinds."""
    api_server.kubectl("apply", "--server-side", f"--filename={ROOT / 'crds'}")
    api_server.kubectl("wait", "crd", "--for=condition=Established", "--all", "--timeout=30s")
    return api_server


@pytest.fixture(scope="session")
def helm() -> None:
    """Skip where helm is not built."""
    if binary("helm") is None:
        pytest.skip("helm is not built: run `python -m localcluster.build`")


@pytest.fixture(scope="session")
def chart(crds: ApiServer, helm: None) -> ApiServer:
    """An API server on which the chart is installed with its default values."""
    crds.helm(
        "install", RELEASE, str(CHART), f"--namespace={RELEASE_NAMESPACE}", "--create-namespace", "--take-ownership"
    )
    return crds


_numbers = itertools.count(1)


def _namespace(api: ApiServer) -> Namespace:
    name = f"test-{next(_numbers)}"
    api.kubectl("create", "namespace", name)
    # The controller that gives each namespace its service account does not run here.
    api.kubectl("create", "serviceaccount", "default", f"--namespace={name}")
    return Namespace(api, name)


@pytest.fixture
def namespace(crds: ApiServer) -> Namespace:
    """A fresh namespace where our kinds are known."""
    return _namespace(crds)


@pytest.fixture
def served(chart: ApiServer) -> Namespace:
    """A fresh namespace on a server that has the chart."""
    return _namespace(chart)
