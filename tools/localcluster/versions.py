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


def _pinned(module: str, dependency: str) -> str:
    """The version of `dependency` that `modules/<module>/go.mod` requires."""
    text = (MODULES / module / "go.mod").read_text()
    found = re.search(rf"^\s*(?:require )?{re.escape(dependency)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"{dependency} is not required by modules/{module}/go.mod")
    return found.group(1)


KUBERNETES = _pinned("kubernetes", "k8s.io/kubernetes")
ETCD = _pinned("kubernetes", "go.etcd.io/etcd/server/v3")
HELM = _pinned("kubernetes", "helm.sh/helm/v4")


@dataclass(frozen=True)
class Binary:
    """One program to build, of the Go module in `modules/<name>`."""

    name: str
    stamps: tuple[tuple[str, str], ...] = ()
    """Variables set at link time. Without them the API server reports v0.0.0 and misjudges which features it has."""
    names: tuple[str, ...] = ()
    """Further names to call it by: what it does depends on them."""


def _stamps() -> tuple[tuple[str, str], ...]:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    kubernetes = tuple((f"{package}.{name}", value) for package in packages for name, value in values.items())
    return (*kubernetes, ("helm.sh/helm/v4/internal/version.version", HELM))


CONTROL_PLANE = ("etcd", "kube-apiserver")
"""All that an API server without nodes needs."""

BINARIES = (
    Binary("pause"),
    Binary(
        "kubernetes",
        _stamps(),
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
