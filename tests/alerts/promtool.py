"""promtool, which runs alert rules over invented series: on PATH, in Debian's package, or built from pinned source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = Path(__file__).parent / "promtool"
SOURCE = "github.com/prometheus/prometheus/cmd/promtool"
DEBIAN_PACKAGE = "prometheus"


def find() -> Path | None:
    """Return the program, or None where it is neither installed nor cached."""
    installed = shutil.which("promtool")
    if installed is not None:
        return Path(installed)
    return next((path for path in (_unpacked(), _built()) if path.exists()), None)


def provide() -> Path:
    """Bring the program into the cache: seconds where apt has it, else minutes of compiling.

    Raises:
        CalledProcessError, OSError: It can be neither downloaded nor compiled.
    """
    return find() or unpack() or build()


def unpack() -> Path | None:
    """Take the program out of Debian's package; None where apt cannot bring it.

    The package is not installed: it would start a server.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", DEBIAN_PACKAGE]
        if subprocess.run(download, cwd=folder, capture_output=True).returncode != 0:
            # A fresh machine has no package lists; only root may fetch them.
            if os.geteuid() != 0 or subprocess.run(["apt-get", "update", "-qq"], capture_output=True).returncode != 0:
                return None
            if subprocess.run(download, cwd=folder).returncode != 0:
                return None
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, f"{folder}/package"], check=True)
        program = Path(folder, "package/usr/bin/promtool")
        return _keep(program, _unpacked()) if program.exists() else None


def build() -> Path:
    """Compile the program. Raises `CalledProcessError` or `OSError`."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", f"{folder}/promtool", SOURCE]
        subprocess.run(command, cwd=MODULE, env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}, check=True)
        return _keep(Path(folder, "promtool"), _built())


def _unpacked() -> Path:
    return _cache() / "promtool-debian"


def _built() -> Path:
    return _cache() / f"promtool-{hashlib.sha256((MODULE / 'go.sum').read_bytes()).hexdigest()[:12]}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "checkpoint-operator"


def _keep(program: Path, target: Path) -> Path:
    """Move a program into the cache; another process may do the same at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.copy(program, partial)
    return partial.replace(target)


if __name__ == "__main__":
    try:
        print(f"promtool: {provide()}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"promtool can be neither installed nor built: {error}")
