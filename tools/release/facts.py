"""What a release is made of: the commit, its version, and its publisher."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "charts",
    "cli",
    "crds",
    "examples",
    "operator",
    "pyproject.toml",
    "sidecar",
    "tools/release",
    "uv.lock",
)
"""The tracked files and folders that a release is made of."""

_STAGES = {"a": "alpha", "b": "beta", "rc": "rc"}


class ReleaseError(Exception):
    """No release can be made; the message says why and what to do."""


@dataclass(frozen=True)
class Maintainer:
    name: str
    email: str


@dataclass(frozen=True)
class Publisher:
    """Where a release goes."""

    registry: str
    """Prefix of image and chart, such as `ghcr.io/example`."""
    homepage: str
    """The repository's page; downloads are below `<homepage>/releases/download/v<version>/`."""
    builder: str
    """What runs the build, as a URI, for the provenance statement."""
    maintainer: Maintainer | None = None


@dataclass(frozen=True)
class Release:
    version: str
    """As Python writes it: `0.2.0rc1`. `pyproject.toml` is its only source."""
    commit: str
    epoch: int
    """The time of the commit, in seconds since 1970."""
    publisher: Publisher

    @property
    def semantic(self) -> str:
        """The version as Helm, krew and registries write it: `0.2.0-rc.1`."""
        return semantic_version(self.version)

    @property
    def prerelease(self) -> bool:
        return "-" in self.semantic

    @property
    def created(self) -> str:
        return datetime.datetime.fromtimestamp(self.epoch, datetime.UTC).isoformat().replace("+00:00", "Z")

    @property
    def image(self) -> str:
        return f"{self.publisher.registry}/checkpoint-operator"

    @property
    def library(self) -> str:
        return f"{self.publisher.registry}/checkpoint-library"

    @property
    def chart(self) -> str:
        return f"{self.publisher.registry}/charts/checkpoint-operator"

    def download(self, name: str) -> str:
        return f"{self.publisher.homepage}/releases/download/v{self.semantic}/{name}"

    def page(self, path: str) -> str:
        """The address of a file of the repository, as it is in this release."""
        return f"{self.publisher.homepage}/blob/v{self.semantic}/{path}"


def semantic_version(version: str) -> str:
    """A Python version as a semantic version. Raises `ReleaseError` for those that have no counterpart."""
    found = re.fullmatch(r"(\d+\.\d+\.\d+)(?:(a|b|rc)(\d+))?", version)
    if found is None:
        raise ReleaseError(
            f"release version {version}: it has no form for Helm and krew. Use X.Y.Z, or it with aN, bN or rcN."
        )
    number, stage, count = found.groups()
    return f"{number}-{_STAGES[stage]}.{count}" if stage else number


def gather(root: Path, publisher: Publisher, *, dirty: bool) -> Release:
    """The release that the checkout `root` makes. With `dirty`, it may have changes that are not committed."""
    changes = _git(root, "status", "--porcelain", "--", *SOURCES)
    if changes and not dirty:
        names = ", ".join(line[3:] for line in changes.splitlines()[:5])
        raise ReleaseError(f"release {root}: {names} differ from the commit. Commit them, or pass --dirty for a trial.")
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    commit, epoch = _git(root, "log", "-1", "--format=%H %ct").split()
    return Release(version, commit, int(epoch), publisher)


def stage(root: Path, folder: Path, epoch: int) -> None:
    """Copy the sources, without whatever else lies in the checkout. Modes and times do not depend on the checkout."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES)
    for name in sorted({*filter(None, listed.split("\0"))}):
        source, target = root / name, folder / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
        os.utime(target, (epoch, epoch))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        raise ReleaseError(f"ask git about {root}: {said}. Run this in a clone of the repository.") from error
    return done.stdout.rstrip("\n")
