"""`kubectl ckpt` as a plugin for krew: one archive for each platform, and the manifest that names them.

An archive holds the command line with all packages that it needs, for each supported version of Python, and a launcher
that finds one of these versions on the user's machine. krew unpacks archives and runs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from release import archives, python_packages
from release.archives import Member
from release.facts import Release
from release.python_packages import MINORS, LockedWheel, Target

_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Platform:
    """A kind of machine, as krew names it, and as Python does."""

    os: str
    arch: str
    machine: str

    @property
    def name(self) -> str:
        return f"{self.os}-{self.arch}"

    def target(self, minor: int) -> Target:
        return Target(minor, self.os, self.machine)


PLATFORMS = (
    Platform("linux", "amd64", "x86_64"),
    Platform("linux", "arm64", "aarch64"),
    # cryptography has no wheels for macOS on Intel any more.
    Platform("darwin", "arm64", "arm64"),
)


@dataclass(frozen=True)
class Plugin:
    archives: dict[str, bytes]
    """By file name, one for each platform."""
    wheels: tuple[LockedWheel, ...]
    """What was put into them."""


def build(sources: Path, wheel: bytes, release: Release, platforms: Sequence[Platform]) -> Plugin:
    """Pack the plugin with the project's own `wheel` for each platform."""
    locked = python_packages.lock(sources)
    needed = python_packages.requirements(sources, "--extra=cli")
    chosen = {
        platform: {minor: python_packages.choose(needed, locked, platform.target(minor)) for minor in MINORS}
        for platform in platforms
    }
    content: dict[LockedWheel, list[Member]] = {}
    for platform, by_minor in chosen.items():
        for minor, wheels in by_minor.items():
            python_packages.fetch(wheels, platform.target(minor))
            content |= {one: python_packages.read(one) for one in wheels if one not in content}
    files = [*_files(sources), *archives.below("packages/any/", python_packages.unpacked(wheel))]
    made = {}
    for platform, by_minor in chosen.items():
        members = [*files, *python_packages.placed(by_minor, content)]
        made[archive_name(release, platform)] = archives.compress(archives.tar(members, release.epoch))
    return Plugin(made, tuple(content))


def archive_name(release: Release, platform: Platform) -> str:
    return f"kubectl-ckpt-{release.semantic}-{platform.name}.tar.gz"


def manifest(plugin: Plugin, release: Release) -> str:
    """The plugin's manifest, as krew's index takes it, with Artifact Hub's annotations."""
    made = {platform: plugin.archives.get(archive_name(release, platform)) for platform in PLATFORMS}
    body = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "ckpt", "annotations": _annotations(release)},
        "spec": {
            "version": f"v{release.semantic}",
            "homepage": release.publisher.homepage,
            "shortDescription": "Look after PyTorch checkpoints of training runs",
            "description": _DESCRIPTION,
            "caveats": f"Needs one of python3.{MINORS[0]} to python3.{MINORS[-1]} on PATH, and kubectl.\n",
            "platforms": [_platform(one, content, release) for one, content in made.items() if content],
        },
    }
    text: str = yaml.safe_dump(body, sort_keys=False, width=1000)
    return text


_DESCRIPTION = """\
Shows and changes the checkpoints of training runs that checkpoint-operator looks after: health and progress of a run,
its snapshots, its story across evictions, and what retention does next. It saves, verifies, holds, rolls back and
exports snapshots. `kubectl ckpt --help` lists the verbs.
"""


def _platform(platform: Platform, content: bytes, release: Release) -> dict[str, Any]:
    return {
        "selector": {"matchLabels": {"os": platform.os, "arch": platform.arch}},
        "uri": release.download(archive_name(release, platform)),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bin": "kubectl-ckpt",
    }


def _annotations(release: Release) -> dict[str, str]:
    annotations = {
        "artifacthub.io/category": "ai-machine-learning",
        "artifacthub.io/displayName": "ckpt",
        "artifacthub.io/license": "Apache-2.0",
        "artifacthub.io/keywords": yaml.safe_dump(["pytorch", "checkpoint", "training"]),
    }
    if maintainer := release.publisher.maintainer:
        people = [{"name": maintainer.name, "email": maintainer.email}]
        annotations["artifacthub.io/maintainers"] = yaml.safe_dump(people, sort_keys=False)
    return annotations


def _files(sources: Path) -> list[Member]:
    return [
        Member("kubectl-ckpt", _LAUNCHER.read_bytes(), 0o755),
        Member("LICENSE", (sources / "LICENSE").read_bytes()),
    ]
