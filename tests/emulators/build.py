"""fake-gcs-server and Azurite, which stand in for Google Cloud Storage and Azure: made once per machine, pinned."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).parent
_GOOGLE_PACKAGE = "github.com/fsouza/fake-gcs-server"


def _cached(name: str, pins: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "checkpoint-operator" / f"{name}-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"


def _make(target: Path, make: Callable[[Path], None]) -> Path:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        make(partial)
        partial.replace(target)
    return target


def google() -> Path:
    """The program of fake-gcs-server, where it is or would be."""
    return _cached("fake-gcs-server", _HERE / "fakegcs" / "go.sum")


def azure() -> Path:
    """The folder of Azurite's modules, where it is or would be."""
    return _cached("azurite", _HERE / "azurite" / "package-lock.json")


def build_google() -> Path:
    """Compile it; minutes the first time. Raises `CalledProcessError`."""

    def make(target: Path) -> None:
        command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(target), _GOOGLE_PACKAGE]
        environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
        subprocess.run(command, cwd=_HERE / "fakegcs", env=environment, check=True)

    return _make(google(), make)


def build_azure() -> Path:
    """Install it; half a minute the first time. Raises `CalledProcessError`."""

    def make(target: Path) -> None:
        shutil.copytree(_HERE / "azurite", target)
        command = ["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=target, check=True)

    return _make(azure(), make)


def problem(tool: str, path: Path) -> str:
    """Why an emulator cannot be run, or an empty string."""
    if path.exists():
        return ""
    return f"{path.name} is not built: .ci/bootstrap builds it" + ("" if shutil.which(tool) else f"; {tool} is missing")


if __name__ == "__main__":
    for tool, build in (("go", build_google), ("npm", build_azure)):
        print(f"emulators: {build() if shutil.which(tool) else f'{tool} is missing, its tests will be skipped'}")
