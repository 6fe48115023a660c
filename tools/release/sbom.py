"""Bills of materials (CycloneDX 1.5): what the wheel depends on, and what plugin and image contain."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from release import oci, python_packages
from release.debian import Package
from release.facts import Release
from release.python_packages import LockedWheel

_NAMESPACE = uuid.UUID("0d6ff6ca-6d2e-5c0f-9a7e-3f1b6d4b9d11")
"""Of the documents' serial numbers, which are made from their content."""


def of_the_wheel(sources: Path, release: Release) -> bytes:
    """All that can be installed with the wheel, every extra included, in the locked versions."""
    preview = ("--format=cyclonedx1.5", "--preview-features=sbom-export")
    text = python_packages.uv(
        "export", "--locked", "--no-dev", "--all-extras", "--no-emit-project", *preview, folder=sources
    )
    return _finished(json.loads(text), release)


def of_packages(name: str, wheels: Iterable[LockedWheel], release: Release, packages: Iterable[Package] = ()) -> bytes:
    """What was put into an artifact: these files, those packages of Debian, and the project itself."""
    own = {"type": "library", "name": "checkpoint-operator", "version": release.version}
    own |= {"purl": f"pkg:pypi/checkpoint-operator@{release.version}"}
    components = [_component(wheels_of_one) for wheels_of_one in _by_package(wheels)]
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": name, "version": release.semantic}},
        "components": [own, *components, *map(_debian_component, packages)],
    }
    return _finished(body, release)


def _by_package(wheels: Iterable[LockedWheel]) -> list[list[LockedWheel]]:
    found: dict[str, list[LockedWheel]] = {}
    for wheel in sorted(wheels, key=lambda one: one.filename):
        found.setdefault(wheel.name, []).append(wheel)
    return [found[name] for name in sorted(found)]


def _component(wheels: list[LockedWheel]) -> dict[str, Any]:
    first = wheels[0]
    files = [
        {
            "type": "distribution",
            "url": f"urn:file:{one.filename}",
            "hashes": [{"alg": "SHA-256", "content": one.sha256}],
        }
        for one in wheels
    ]
    return {
        "type": "library",
        "name": first.name,
        "version": first.version,
        "purl": f"pkg:pypi/{first.name}@{first.version}",
        "externalReferences": files,
    }


def _debian_component(package: Package) -> dict[str, Any]:
    return {
        "type": "library",
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
    }


def _finished(body: dict[str, Any], release: Release) -> bytes:
    """The document with the time of the commit, references between its parts, and a serial number of its content."""
    body["metadata"]["timestamp"] = release.created
    for component in body["components"]:
        component.setdefault("bom-ref", component["purl"])
    body.pop("serialNumber", None)
    body["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, oci.digest(oci.canonical(body)))}"
    return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
