"""The locked Python packages for any platform, taken out of their wheels without running anything."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packaging import tags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from release import archives, downloads
from release.archives import Member
from release.facts import ReleaseError

MINORS = (11, 12, 13, 14)
"""The versions of Python 3 for which every locked package has wheels. The launcher has the same list."""
_FOLDERS_INSIDE = ("purelib", "platlib")
"""What wheels hold beside packages, in their `.data` folder, and what of it belongs among the packages."""


@dataclass(frozen=True)
class Target:
    """A Python that packages are for."""

    minor: int
    """Of CPython 3."""
    system: str
    """`linux` or `darwin`."""
    machine: str
    """`x86_64`, `aarch64` or `arm64`, as that system says it."""
    glibc: int = 28
    """The minor version of the oldest glibc 2 that packages must run with, on Linux."""

    @cached_property
    def tags(self) -> list[str]:
        """The tags of the wheels that run there, best first."""
        version = (3, self.minor)
        compiled = tags.cpython_tags(version, platforms=self.platforms)
        pure = tags.compatible_tags(version, f"cp3{self.minor}", self.platforms)
        return list(map(str, [*compiled, *pure]))

    @property
    def markers(self) -> dict[str, str]:
        return {
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": self.system,
            "platform_system": self.system.capitalize(),
            "platform_machine": self.machine,
            "python_version": f"3.{self.minor}",
            "python_full_version": f"3.{self.minor}.0",
        }

    @cached_property
    def platforms(self) -> list[str]:
        """The platforms of the wheels that run there, best first."""
        if self.system == "darwin":
            return list(tags.mac_platforms((13, 0), self.machine))
        modern = [f"manylinux_2_{glibc}_{self.machine}" for glibc in range(self.glibc, 16, -1)]
        return [*modern, f"manylinux2014_{self.machine}"]


@dataclass(frozen=True)
class LockedWheel:
    """One wheel that `uv.lock` pins."""

    name: str
    version: str
    url: str
    sha256: str

    @property
    def filename(self) -> str:
        return self.url.rpartition("/")[2]

    @cached_property
    def tags(self) -> frozenset[str]:
        return frozenset(map(str, parse_wheel_filename(self.filename)[3]))


Lock = dict[tuple[str, str], list[LockedWheel]]


def lock(root: Path) -> Lock:
    """All wheels of `uv.lock`, by name and version."""
    found: Lock = {}
    for package in tomllib.loads((root / "uv.lock").read_text())["package"]:
        key = (package["name"], package.get("version", ""))
        wheels = package.get("wheels", ())
        found[key] = [LockedWheel(*key, wheel["url"], wheel["hash"].removeprefix("sha256:")) for wheel in wheels]
    return found


def requirements(root: Path, *selection: str) -> list[Requirement]:
    """What `selection` (such as `--extra=cli`) needs, in the locked versions, with the conditions under which."""
    lines = _export(root, "--no-hashes", *selection).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def build_constraints(root: Path, group: str) -> str:
    """The locked versions of a dependency group with their hashes, as uv takes them for a build."""
    return _export(root, f"--only-group={group}")


def choose(needed: Iterable[Requirement], locked: Lock, target: Target) -> list[LockedWheel]:
    """The best wheel of each package that is needed there. Raises `ReleaseError` for a package that has none."""
    return [
        _best(canonicalize_name(one.name), str(one.specifier).removeprefix("=="), locked, target)
        for one in needed
        if one.marker is None or one.marker.evaluate(environment={**target.markers})
    ]


def fetch(wheels: Iterable[LockedWheel], target: Target) -> None:
    """Download with pip what is not in the cache yet. Raises `ReleaseError`."""
    missing = [one for one in wheels if downloads.kept(one.sha256) is None]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text("".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in missing))
        exact = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--python-version=3.{target.minor}"]
        exact += [f"--platform={platform}" for platform in target.platforms]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            *exact,
            f"--requirement={file}",
            "--dest",
            folder,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            names = ", ".join(one.filename for one in missing)
            raise ReleaseError(f"download {names}: {done.stderr.strip()[-2000:]}. Is the package index reachable?")
        for one in missing:
            downloads.keep(Path(folder, one.filename), one.sha256)


def read(wheel: LockedWheel) -> list[Member]:
    """The files of a wheel that was fetched, as they lie among installed packages."""
    content = downloads.kept(wheel.sha256)
    assert content is not None, f"{wheel.filename} was not fetched"
    return unpacked(content)


def unpacked(wheel: bytes) -> list[Member]:
    """The files of a wheel as they lie among installed packages. Programs and headers are left out."""
    found = []
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for entry in archive.infolist():
            path = entry.filename
            top, _, rest = path.partition("/")
            if top.endswith(".data"):
                kind, _, path = rest.partition("/")
                if kind not in _FOLDERS_INSIDE:
                    continue
            if not entry.is_dir():
                mode = 0o755 if entry.external_attr >> 16 & 0o100 else 0o644
                found.append(Member(path, archive.read(entry), mode))
    return found


def folder(minor: int) -> str:
    """Where packages lie that one version of Python takes."""
    return f"python3.{minor}"


def placed(
    by_minor: Mapping[int, Iterable[LockedWheel]], content: Mapping[LockedWheel, list[Member]]
) -> Iterator[Member]:
    """A wheel that every version of Python takes lies in `packages/any`, another one in a folder for its version."""
    common = frozenset.intersection(*map(frozenset, by_minor.values()))
    for minor, wheels in by_minor.items():
        for wheel in wheels:
            yield from archives.below(f"packages/{'any' if wheel in common else folder(minor)}/", content[wheel])


def uv(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run the locked uv. Raises `ReleaseError` with what it said."""
    command = [str(Path(sys.prefix, "bin", "uv")), "--quiet", "--no-progress", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | (environment or {}), capture_output=True, text=True)
    if done.returncode != 0:
        raise ReleaseError(f"run uv {arguments[0]}: {done.stderr.strip()[-2000:]}. Read its message above.")
    return done.stdout


def _best(name: str, version: str, locked: Lock, target: Target) -> LockedWheel:
    for tag in target.tags:
        for wheel in locked[name, version]:
            if tag in wheel.tags:
                return wheel
    where = f"Python 3.{target.minor} on {target.system} {target.machine}"
    raise ReleaseError(f"find a wheel of {name} {version} for {where}: uv.lock has none. Leave that platform out.")


def _export(root: Path, *selection: str) -> str:
    quiet = ("--no-header", "--no-annotate")
    return uv("export", "--locked", "--no-dev", "--no-emit-project", *quiet, *selection, folder=root)
