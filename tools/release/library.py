"""The library's image for each architecture: the operator injects it into pods whose own image lacks the library.

It holds the library with its dependencies for each supported version of Python, what chooses among them (`injected`),
and busybox, which copies them where a cluster cannot mount an image as a volume.
"""

from __future__ import annotations

import email
import json
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release import archives, debian, packing, python_packages
from release.archives import Member
from release.debian import ARCHITECTURES
from release.facts import Release, ReleaseError
from release.packing import BuiltImage, Layer, Title
from release.python_packages import MINORS, LockedWheel, Target

USER = "65532:65532"
GLIBC = 28
"""The oldest glibc 2 that it runs with: older images have no Python that torch supports."""
COMPARED = {">=", "<=", ">", "<", "!=", "=="}
"""The operators that `injected` understands."""

_DESCRIPTION = "The library of checkpoint-operator, for pods whose own image lacks it"
_INJECTED = Path(__file__).with_name("injected.py")
_OWN = ("checkpoint_sidecar/",)
_KEPT_DATA = (
    "_retry.json",
    "endpoints.json",
    "partitions.json",
    "sdk-default-configuration.json",
    "s3/",
    "signin/",
    "sso/",
    "sso-oidc/",
    "sts/",
)
"""Of botocore's descriptions of AWS services, 27 MB, those with which credentials are found, and S3."""

Packages = dict[LockedWheel, list[Member]]


def build(sources: Path, wheel: bytes, release: Release, architectures: Iterable[str] = ARCHITECTURES) -> BuiltImage:
    """Make the image with the project's own `wheel`. Raises `ReleaseError`."""
    locked = python_packages.lock(sources)
    needed = python_packages.requirements(sources)
    own = [member for member in python_packages.unpacked(wheel) if _is_own(member.path)]
    content: Packages = {}
    layers, packages = {}, {}
    for architecture in architectures:
        targets = {minor: Target(minor, "linux", ARCHITECTURES[architecture], GLIBC) for minor in MINORS}
        chosen = {minor: python_packages.choose(needed, locked, target) for minor, target in targets.items()}
        for minor, wheels in chosen.items():
            python_packages.fetch(wheels, targets[minor])
            content |= {one: [*_trimmed(python_packages.read(one))] for one in wheels if one not in content}
        debian.fetch(architecture, "library")
        (tool,) = debian.locked(architecture, "library")
        packages[tool.file] = tool
        chooser = _chooser(targets, {minor: {one.name: content[one] for one in chosen[minor]} for minor in MINORS}, own)
        layers[architecture] = [
            Layer(f"busybox of Debian {debian.SUITE}", _tool(tool)),
            Layer("packages of uv.lock", [*python_packages.placed(chosen, content)]),
            Layer(
                f"checkpoint-operator {release.version}",
                [*chooser, *archives.below("packages/any/", own), _license(sources)],
                of_the_release=True,
            ),
        ]
    title = Title(release.library, "checkpoint-library", _DESCRIPTION)
    # Nothing starts by itself: what copies the files names its command.
    packed = packing.pack(title, layers, {"User": USER, "WorkingDir": "/"}, release)
    return BuiltImage(*packed, tuple(content), tuple(packages.values()))


def _is_own(path: str) -> bool:
    """Of the project's wheel, the library and its description, by which it knows its version."""
    return path.startswith(_OWN) or path.endswith(".dist-info/METADATA")


def _trimmed(members: Iterable[Member]) -> Iterable[Member]:
    for member in members:
        _, inside, data = member.path.partition("botocore/data/")
        if not inside or data.startswith(_KEPT_DATA):
            yield member


def _license(sources: Path) -> Member:
    return Member("LICENSE", (sources / "LICENSE").read_bytes())


def _tool(package: debian.Package) -> list[Member]:
    """The program and its license, and the description by which scanners know it."""
    unpacked = debian.unpack(package)
    wanted = ("bin/busybox", "usr/share/doc/busybox-static/copyright")
    members = [member for member in unpacked.members if member.path in wanted]
    return [*members, Member(f"var/lib/dpkg/status.d/{package.name}", unpacked.control)]


def _chooser(
    targets: dict[int, Target], packages: dict[int, dict[str, list[Member]]], own: list[Member]
) -> list[Member]:
    contents = {
        "supported": f"Python 3.{MINORS[0]} to 3.{MINORS[-1]} and glibc",
        # As Python ends the names of compiled modules: by implementation, version, machine and C library.
        "folders": {
            f".cpython-3{minor}-{target.machine}-linux-gnu.so": python_packages.folder(minor)
            for minor, target in targets.items()
        },
        "requirements": {
            python_packages.folder(minor): {
                name: _requirements(name, members, targets[minor])
                for name, members in {"checkpoint-operator": own, **found}.items()
            }
            for minor, found in packages.items()
        },
    }
    text = json.dumps(contents, indent=1, sort_keys=True).encode()
    return [
        Member("python/checkpoint_sidecar/__init__.py", _INJECTED.read_bytes()),
        Member("python/checkpoint_sidecar/contents.json", text),
    ]


def _requirements(name: str, members: Iterable[Member], target: Target) -> dict[str, str]:
    """What a package needs there, by name, with the versions that it takes. Raises `ReleaseError`."""
    (metadata,) = (member.content for member in members if member.path.endswith(".dist-info/METADATA"))
    found: dict[str, str] = {}
    for line in email.message_from_bytes(metadata).get_all("Requires-Dist", []):
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate(environment={**target.markers, "extra": ""}):
            if strange := [str(each) for each in one.specifier if _is_strange(each.operator, each.version)]:
                raise ReleaseError(
                    f"describe what {name} needs: {one.name} {', '.join(strange)} is not understood when it is "
                    "imported. Extend tools/release/injected.py."
                )
            found[canonicalize_name(one.name)] = str(one.specifier)
    return found


def _is_strange(operator: str, version: str) -> bool:
    return operator not in COMPARED or not version.replace(".", "").isdigit()
