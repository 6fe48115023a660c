"""What the tests of workloads need from other projects: made once per machine from pinned sources.

The controllers of JobSet, Kubeflow Trainer and cert-manager with their manifests, and a containerd that mounts images
as volumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from localcluster import build as localcluster

HERE = Path(__file__).parent
CONTROLLERS = {
    "jobset": "sigs.k8s.io/jobset",
    "trainer": "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
}
MANIFESTS = {
    "jobset": ("sigs.k8s.io/jobset", ("config/components/crd/bases", "config/components/webhook/manifests.yaml")),
    "trainer": ("github.com/kubeflow/trainer/v2", ("manifests/base/crds", "manifests/base/webhook/manifests.yaml")),
}
"""By controller: of which Go module, and which files and folders of it."""
CERT_MANAGER = ("github.com/cert-manager/cert-manager", ("deploy/crds",))
RUNTIME = ("containerd", "containerd-shim-runc-v2")
CTR = """\
#!/bin/sh
# Imports images like earlier versions, which knew no other way and not this option.
for argument in "$@"; do
  shift
  set -- "$@" "$argument"
  [ "$argument" != import ] || set -- "$@" --local
done
exec "${0%/*}/ctr-of-containerd" "$@"
"""


def controllers() -> Path:
    """The folder with a folder of each controller, where it is or would be."""
    return _cached("controllers")


def cert_manager() -> Path:
    """The folder with cert-manager's controllers, as one program, and its kinds; where it is or would be."""
    return _cached("certmanager")


def runtime() -> Path:
    """The folder with containerd's programs, where it is or would be."""
    return _cached("containerd")


def problem(folder: Path) -> str | None:
    """Why it cannot be used, or None."""
    return None if folder.exists() else f"{folder.name} is not built: run `python -m workloads.build`"


def build() -> list[Path]:
    """Compile what is not there yet: minutes the first time. Raises `CalledProcessError` or `OSError`."""
    made = {controllers(): _make_controllers, cert_manager(): _make_cert_manager, runtime(): _make_runtime}
    return [_make(target, make) for target, make in made.items()]


def _cached(module: str) -> Path:
    # What `tools.go` imports is in `go.mod`, too; `main.go` is a program of ours.
    sources = (HERE / module / name for name in ("go.mod", "go.sum", "main.go"))
    pins = b"".join(source.read_bytes() for source in sources if source.exists())
    return localcluster.cache_root() / f"workloads-{module}-{hashlib.sha256(pins).hexdigest()[:12]}"


def _make(target: Path, make: Callable[[Path], None]) -> Path:
    if not target.exists():
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        try:
            make(partial)
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _make_controllers(folder: Path) -> None:
    for name, (module, paths) in MANIFESTS.items():
        (folder / name).mkdir()
        _copy_manifests("controllers", module, paths, folder / name)
    for name, package in CONTROLLERS.items():
        _compile("controllers", package, folder / name / name)


def _make_cert_manager(folder: Path) -> None:
    _copy_manifests("certmanager", *CERT_MANAGER, folder)
    _compile("certmanager", ".", folder / "cert-manager")


def _make_runtime(folder: Path) -> None:
    source = "github.com/containerd/containerd/v2/cmd"
    for name in RUNTIME:
        _compile("containerd", f"{source}/{name}", folder / name)
    _compile("containerd", f"{source}/ctr", folder / "ctr-of-containerd")
    (folder / "ctr").write_text(CTR)
    (folder / "ctr").chmod(0o755)


def _copy_manifests(ours: str, module: str, paths: tuple[str, ...], target: Path) -> None:
    # `go list` knows no folder of a module that was not downloaded yet.
    root = Path(json.loads(_go(ours, "mod", "download", "-json", module))["Dir"])
    for path in paths:
        for file in (root / path).glob("*.yaml") if (root / path).is_dir() else [root / path]:
            if file.name != "kustomization.yaml":
                # Not `copy`: files of Go's module cache are read-only.
                (target / file.name).write_bytes(file.read_bytes())


def _compile(module: str, package: str, target: Path) -> None:
    _go(module, "build", *localcluster.FLAGS, "-ldflags=-s -w", "-o", str(target), package)


def _go(module: str, *arguments: str) -> str:
    environment = localcluster.COLLECTION | os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
    command = ["go", *arguments]
    return subprocess.run(
        command, cwd=HERE / module, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    try:
        print(f"workloads: {', '.join(map(str, build()))}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"what the tests of workloads need cannot be built: {error}")
