"""Packs layers into an image for several architectures, with the annotations that registries and Artifact Hub read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from release import archives, oci
from release.archives import Member
from release.debian import Package
from release.facts import Release
from release.python_packages import LockedWheel

_EPOCH = 315532800
"""1980, the time of files that stay the same from release to release, so that their layers do, too."""


@dataclass(frozen=True)
class BuiltImage:
    digest: str
    """Of the index over all architectures: what is signed and deployed."""
    archive: bytes
    wheels: tuple[LockedWheel, ...]
    packages: tuple[Package, ...]


@dataclass(frozen=True)
class Title:
    repository: str
    name: str
    description: str


@dataclass(frozen=True)
class Layer:
    title: str
    members: Iterable[Member]
    of_the_release: bool = False
    """Whether its files have the time of the commit."""


def pack(
    title: Title, layers: Mapping[str, Sequence[Layer]], runtime: Mapping[str, Any], release: Release
) -> tuple[str, bytes]:
    """The digest and the archive of an image. `layers` are by architecture; what changes rarely comes first."""
    layout = oci.Layout()
    annotations = _annotations(title, release)
    manifests = [_manifest(layout, name, found, runtime, annotations, release) for name, found in layers.items()]
    top = layout.index(manifests, annotations)
    return top["digest"], layout.archive(top, title.repository, release.semantic, release.epoch)


def _annotations(title: Title, release: Release) -> dict[str, str]:
    """Of the index: what Artifact Hub reads, and what registries show."""
    found = {
        "org.opencontainers.image.title": title.name,
        "org.opencontainers.image.description": title.description,
        "org.opencontainers.image.version": release.semantic,
        "org.opencontainers.image.created": release.created,
        "org.opencontainers.image.revision": release.commit,
        "org.opencontainers.image.source": release.publisher.homepage,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "io.artifacthub.package.readme-url": f"{release.publisher.homepage}/raw/v{release.semantic}/README.md",
        "io.artifacthub.package.category": "ai-machine-learning",
        "io.artifacthub.package.license": "Apache-2.0",
        "io.artifacthub.package.prerelease": str(release.prerelease).lower(),
    }
    if maintainer := release.publisher.maintainer:
        people = [{"name": maintainer.name, "email": maintainer.email}]
        found["io.artifacthub.package.maintainers"] = oci.canonical(people).decode()
    return found


def _manifest(
    layout: oci.Layout,
    architecture: str,
    layers: Sequence[Layer],
    runtime: Mapping[str, Any],
    annotations: dict[str, str],
    release: Release,
) -> oci.Descriptor:
    descriptors, digests, history = [], [], []
    for layer in layers:
        packed = archives.tar(layer.members, release.epoch if layer.of_the_release else _EPOCH)
        digests.append(oci.digest(packed))
        descriptors.append(layout.blob(oci.LAYER, archives.compress(packed)))
        history.append({"created": release.created, "created_by": layer.title})
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": release.created,
        "config": {**runtime, "Labels": annotations},
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": history,
    }
    described = layout.manifest(layout.blob(oci.CONFIG, oci.canonical(config)), descriptors, annotations)
    return {**described, "platform": {"os": "linux", "architecture": architecture}}
