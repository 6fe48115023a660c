"""What the cluster is made of.

The versions are those pinned in `modules/*/go.mod`: there is no second list to keep in step.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "modules"


def pinned(module: str, dependency: str, modules: Path = MODULES) -> str:
    """The version of `dependency` that `modules/<module>/go.mod` requires."""
    text = (modules / module / "go.mod").read_text()
    found = re.search(rf"^\s*(?:require )?{re.escape(dependency)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"{dependency} is not required by {modules.name}/{module}/go.mod")
    return found.group(1)


KUBERNETES = pinned("kubernetes", "k8s.io/kubernetes")
ETCD = pinned("kubernetes", "go.etcd.io/etcd/server/v3")
HELM = pinned("kubernetes", "helm.sh/helm/v4")


@dataclass(frozen=True)
class Binary:
    """One program to build, of the Go module in `modules/<name>`."""

    name: str
    stamps: tuple[tuple[str, str], ...] = ()
    """Variables set at link time. Without them the API server reports v0.0.0 and misjudges which features it has."""
    names: tuple[str, ...] = ()
    """Further names to call it by: what it does depends on them."""


def stamps(version: str) -> tuple[tuple[str, str], ...]:
    """The variables that tell a program of Kubernetes which version it is."""
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return tuple((f"{package}.{name}", value) for package in packages for name, value in values.items())


CONTROL_PLANE = ("etcd", "kube-apiserver")
"""All that an API server without nodes needs."""

BINARIES = (
    Binary("pause"),
    Binary(
        "kubernetes",
        (*stamps(KUBERNETES), ("helm.sh/helm/v4/internal/version.version", HELM)),
        (*CONTROL_PLANE, "kube-controller-manager", "kube-scheduler", "kubelet", "helm"),
    ),
)

CLUSTER = tuple(name for binary in BINARIES for name in binary.names or (binary.name,))
"""All that a cluster with nodes needs."""


def key() -> str:
    """The name of the cache folder: equal keys hold interchangeable binaries."""
    digest = hashlib.sha256(repr((platform.machine(), BINARIES)).encode())
    for source in sorted(MODULES.rglob("*")):
        if source.is_file():
            digest.update(f"{source.relative_to(MODULES)}\0".encode() + source.read_bytes())
    return f"kubernetes-{KUBERNETES}-{digest.hexdigest()[:12]}"
