"""promtool, which runs alert rules over invented series: from PATH, or built once per machine from pinned source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

MODULE = Path(__file__).parent / "promtool"
PACKAGE = "github.com/prometheus/prometheus/cmd/promtool"


def cached() -> Path:
    """Where the built program is or would be."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256((MODULE / "go.sum").read_bytes()).hexdigest()[:12]
    return root / "checkpoint-operator" / f"promtool-{key}"


def find() -> Path | None:
    """The program, or None where it is neither installed nor built."""
    installed = shutil.which("promtool")
    if installed is not None:
        return Path(installed)
    return cached() if cached().exists() else None


def build() -> Path:
    """Build the program; minutes the first time. Raises `CalledProcessError`."""
    target = cached()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(partial), PACKAGE]
        subprocess.run(command, cwd=MODULE, env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}, check=True)
        partial.replace(target)
    return target


if __name__ == "__main__":
    print(f"promtool: {find() or build()}")
