"""The chart as a package (`helm install <file>.tgz`) and as an OCI artifact (`helm install oci://...`).

`helm package` would write the time of packing into the archive; this writes the same files with the time of the commit.
The media types are those of Helm's HIP 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from release import archives, oci
from release.archives import Member
from release.facts import Release, ReleaseError

NAME = "checkpoint-operator"
CONFIG = "application/vnd.cncf.helm.config.v1+json"
CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"

_REPOSITORY = re.compile(r"^( +)repository: (checkpoint-operator|checkpoint-library)$", re.MULTILINE)


def package(sources: Path, release: Release, platforms: Iterable[str]) -> tuple[dict[str, Any], bytes]:
    """The chart's metadata, and the package. `platforms` are those of the images, such as `linux/amd64`.

    Raises `ReleaseError` when the chart in the checkout is not of the release's version.
    """
    folder = sources / "charts" / NAME
    metadata = yaml.safe_load((folder / "Chart.yaml").read_text())
    for field in ("version", "appVersion"):
        if metadata[field] != release.semantic:
            raise ReleaseError(
                f"package {folder}: its {field} is {metadata[field]}, that of pyproject.toml {release.semantic}. "
                "Set both to the same."
            )
    metadata |= _addresses(release)
    metadata["annotations"] |= _annotations(sources, release, platforms)
    members = {member.path: member for member in archives.read_tree(folder) if member.path != ".helmignore"}
    values = members["values.yaml"]
    images = {"checkpoint-operator": release.image, "checkpoint-library": release.library}
    text = values.content.decode()
    text, replaced = _REPOSITORY.subn(lambda found: f"{found[1]}repository: {images[found[2]]}", text)
    if replaced != len(images):
        lines = " and ".join(f"`repository: {name}`" for name in images)
        raise ReleaseError(f"package {folder}: values.yaml lacks {lines}, each once. Restore them.")
    members["values.yaml"] = replace(values, content=text.encode())
    members["Chart.yaml"] = Member("Chart.yaml", _dump(metadata).encode())
    members["LICENSE"] = Member("LICENSE", (sources / "LICENSE").read_bytes())
    return metadata, archives.compress(archives.tar(archives.below(f"{NAME}/", members.values()), release.epoch))


def layout(metadata: dict[str, Any], content: bytes, release: Release) -> tuple[str, bytes]:
    """The digest to sign, and an archive of an OCI layout that holds the package."""
    made = oci.Layout()
    annotations = {
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.version": release.semantic,
        "org.opencontainers.image.description": metadata["description"],
        "org.opencontainers.image.created": release.created,
        "org.opencontainers.image.url": release.publisher.homepage,
        "org.opencontainers.image.source": release.publisher.homepage,
        "org.opencontainers.image.revision": release.commit,
    }
    config = made.blob(CONFIG, oci.canonical(metadata))
    top = made.manifest(config, [made.blob(CONTENT, content)], annotations)
    return top["digest"], made.archive(top, release.chart, release.semantic, release.epoch)


def _addresses(release: Release) -> dict[str, Any]:
    found: dict[str, Any] = {"home": release.publisher.homepage, "sources": [release.publisher.homepage]}
    if maintainer := release.publisher.maintainer:
        found["maintainers"] = [{"name": maintainer.name, "email": maintainer.email}]
    return found


def _annotations(sources: Path, release: Release, platforms: Iterable[str]) -> dict[str, str]:
    """What Artifact Hub shows, beside the annotations that never change."""
    names = {NAME: release.image, "checkpoint-library": release.library}
    images = [
        {"name": name, "image": f"{image}:{release.semantic}", "platforms": sorted(platforms)}
        for name, image in names.items()
    ]
    links = [
        {"name": "changes", "url": release.page("CHANGELOG.md")},
        {"name": "support", "url": f"{release.publisher.homepage}/issues"},
    ]
    example = next(yaml.safe_load_all((sources / "examples" / "checkpoint.yaml").read_text()))
    return {
        "artifacthub.io/prerelease": str(release.prerelease).lower(),
        "artifacthub.io/images": _dump(images),
        "artifacthub.io/links": _dump(links),
        "artifacthub.io/crds": _dump(_kinds(sources / "crds")),
        "artifacthub.io/crdsExamples": _dump([example]),
    }


def _kinds(folder: Path) -> list[dict[str, str]]:
    found = []
    for file in sorted(folder.glob("*.yaml")):
        body = yaml.safe_load(file.read_text())
        (version,) = body["spec"]["versions"]
        found.append(
            {
                "kind": body["spec"]["names"]["kind"],
                "version": version["name"],
                "name": body["metadata"]["name"],
                "displayName": body["spec"]["names"]["kind"],
                "description": version["schema"]["openAPIV3Schema"]["description"],
            }
        )
    return found


def _dump(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, width=1000, allow_unicode=True)
    return text
