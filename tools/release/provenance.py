"""What was made from what: checksums, digests to sign, and an in-toto statement with SLSA's provenance (version 1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from release.debian import Package
from release.facts import Release
from release.python_packages import LockedWheel


def checksums(files: dict[str, bytes]) -> str:
    """As `sha256sum --check` reads them."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))


def digests(pushed: dict[str, str]) -> str:
    """What `cosign sign` takes, a line for each repository."""
    return "".join(f"{repository}@{digest}\n" for repository, digest in sorted(pushed.items()))


def statement(
    files: dict[str, bytes],
    pushed: dict[str, str],
    sources: Path,
    wheels: Iterable[LockedWheel],
    packages: Iterable[Package],
    release: Release,
) -> str:
    """The statement about `files` (by name) and what is `pushed` (digests by repository), unsigned.

    It names neither a time nor a run, so that a second build of the commit can be compared with it. Signing adds both.
    """
    subjects = [{"name": name, "digest": {"sha256": hashlib.sha256(files[name]).hexdigest()}} for name in sorted(files)]
    subjects += [{"name": name, "digest": {"sha256": digest[7:]}} for name, digest in sorted(pushed.items())]
    publisher = release.publisher
    body = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{publisher.homepage}/blob/main/docs/releasing.md#build-type",
                "externalParameters": {
                    "registry": publisher.registry,
                    "homepage": publisher.homepage,
                    "version": release.version,
                },
                "resolvedDependencies": [*_own(sources, release), *map(_wheel, wheels), *map(_package, packages)],
            },
            "runDetails": {"builder": {"id": publisher.builder}},
        },
    }
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def _own(sources: Path, release: Release) -> list[dict[str, Any]]:
    lock = hashlib.sha256((sources / "uv.lock").read_bytes()).hexdigest()
    return [
        {"uri": f"git+{release.publisher.homepage}@v{release.semantic}", "digest": {"gitCommit": release.commit}},
        {"name": "uv.lock", "digest": {"sha256": lock}},
    ]


def _wheel(wheel: LockedWheel) -> dict[str, Any]:
    return {
        "name": wheel.filename,
        "uri": f"pkg:pypi/{wheel.name}@{wheel.version}",
        "digest": {"sha256": wheel.sha256},
    }


def _package(package: Package) -> dict[str, Any]:
    return {"name": package.file, "uri": package.purl, "digest": {"sha256": package.sha256}}
