"""The operator's image for each architecture: Debian's Python, the locked packages, and the operator.

Nothing of an image is run while it is made, except its Python where that fits this machine, to compile the sources. So
any architecture can be made on any other, without root, Docker or emulation. As in the image of `operator/Dockerfile`,
nothing in it compiles, installs or is a shell.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from release import archives, bytecode, debian, packing, python_packages
from release.archives import Member
from release.debian import ARCHITECTURES, PYTHON_MINOR
from release.facts import Release, ReleaseError
from release.packing import BuiltImage, Layer, Title
from release.python_packages import LockedWheel, Target

PLATFORMS = tuple(f"linux/{architecture}" for architecture in ARCHITECTURES)
USER = "65532:65532"
PYTHON = f"python3.{PYTHON_MINOR}"
GLIBC = 36
"""Of the suite: 2.36."""

_DESCRIPTION = "The operator of checkpoint-operator: retention and reporting for checkpoints in object storage"
_PACKAGES = f"app/lib/{PYTHON}/site-packages"
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_RUNTIME = {
    "User": USER,
    "Entrypoint": ["/app/bin/checkpoint-operator"],
    "Env": ["PATH=/app/bin:/usr/bin", f"SSL_CERT_FILE=/{_CERTIFICATES}"],
    "WorkingDir": "/",
}
_MERGED = ("bin", "lib", "lib64", "sbin")
"""Folders that are links into /usr, where the packages still install beside it."""
_UNUSED = (
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/binfmts/",
    "usr/share/pixmaps/",
    "usr/share/applications/",
    "usr/share/info/",
    "usr/lib/binfmt.d/",
    "usr/sbin/",
)


@dataclass(frozen=True)
class _Contents:
    """The layers of one architecture, before they are packed: what changes rarely comes first."""

    system: list[Member]
    dependencies: list[Member]
    project: list[Member]

    @property
    def layers(self) -> tuple[list[Member], list[Member], list[Member]]:
        return self.system, self.dependencies, self.project


def build(sources: Path, wheel: bytes, release: Release, report: Callable[[str], None]) -> BuiltImage:
    """Make the image with the project's own `wheel`. Raises `ReleaseError`."""
    locked = python_packages.lock(sources)
    needed = python_packages.requirements(sources, "--extra=operator")
    contents, wheels = {}, {}
    for architecture, machine in ARCHITECTURES.items():
        target = Target(PYTHON_MINOR, "linux", machine, GLIBC)
        wheels[architecture] = python_packages.choose(needed, locked, target)
        debian.fetch(architecture)
        python_packages.fetch(wheels[architecture], target)
        contents[architecture] = _contents(architecture, wheels[architecture], wheel)
    report("image: compiling")
    compiled = _compile(contents)
    report("image: packing")
    complete = {
        architecture: _Contents(*([*layer, *bytecode.beside(layer, compiled)] for layer in found.layers))
        for architecture, found in contents.items()
    }
    layers = {
        architecture: [
            Layer(f"Debian {debian.SUITE}", one.system),
            Layer("packages of uv.lock", one.dependencies),
            Layer(f"checkpoint-operator {release.version}", one.project, of_the_release=True),
        ]
        for architecture, one in complete.items()
    }
    title = Title(release.image, "checkpoint-operator", _DESCRIPTION)
    packed = packing.pack(title, layers, _RUNTIME, release)
    packages = {one.file: one for architecture in ARCHITECTURES for one in debian.locked(architecture)}
    used = {one.filename: one for chosen in wheels.values() for one in chosen}
    return BuiltImage(*packed, tuple(used.values()), tuple(packages.values()))


def _contents(architecture: str, wheels: Iterable[LockedWheel], own: bytes) -> _Contents:
    dependencies = [member for wheel in wheels for member in python_packages.read(wheel)]
    if any(member.path.startswith("torch/") for member in dependencies):
        raise ReleaseError("make the operator's image: torch would be in it. Take it out of the extra `operator`.")
    venv = [
        Member("app/pyvenv.cfg", b"home = /usr/bin\ninclude-system-site-packages = false\n"),
        Member("app/bin/python", link=f"/usr/bin/{PYTHON}"),
    ]
    start = "#!/app/bin/python\nfrom checkpoint_operator.__main__ import main\n\nraise SystemExit(main())\n"
    project = [Member("app/bin/checkpoint-operator", start.encode(), 0o755)]
    project += archives.below(f"{_PACKAGES}/", python_packages.unpacked(own))
    return _Contents(_system(architecture), [*venv, *archives.below(f"{_PACKAGES}/", dependencies)], project)


def _system(architecture: str) -> list[Member]:
    """Debian's packages, what their installation scripts would have made, and the image's user."""
    made: dict[str, Member] = {}
    for package in debian.locked(architecture):
        unpacked = debian.unpack(package)
        members = (_merged(member) for member in unpacked.members if member.path not in _MERGED)
        made |= {member.path: member for member in members if _belongs(member.path)}
        # Where scanners for vulnerabilities look for the packages of an image without dpkg.
        description = Member(f"var/lib/dpkg/status.d/{package.name}", unpacked.control)
        made[description.path] = description
    authorities = [made[path] for path in sorted(made) if path.startswith("usr/share/ca-certificates/mozilla/")]
    files = {
        _CERTIFICATES: b"".join(one.content for one in authorities if not one.folder),
        "etc/passwd": b"root:x:0:0:root:/root:/sbin/nologin\noperator:x:65532:65532:operator:/:/sbin/nologin\n",
        "etc/group": b"root:x:0:\noperator:x:65532:\n",
        "etc/nsswitch.conf": b"hosts: files dns\n",
    }
    further = [Member(name, link=f"usr/{name}", mode=0o777) for name in _MERGED]
    further += [archives.folder("tmp", 0o1777), Member("usr/lib/ssl/cert.pem", link=f"/{_CERTIFICATES}", mode=0o777)]
    return [*made.values(), *(Member(path, content) for path, content in files.items()), *further]


def _merged(member: Member) -> Member:
    top = member.path.partition("/")[0]
    return replace(member, path=f"usr/{member.path}") if top in _MERGED else member


def _belongs(path: str) -> bool:
    """Of the documentation, licenses stay; of the programs, Python."""
    if path.startswith("usr/share/doc/"):
        return path.endswith("/copyright")
    if path.startswith("usr/bin/"):
        return path == f"usr/bin/{PYTHON}"
    return not path.startswith(_UNUSED)


def _compile(contents: dict[str, _Contents]) -> bytecode.Compiled:
    """Compile the sources of all architectures with the Python of the one that this machine runs."""
    native = next((name for name, machine in ARCHITECTURES.items() if machine == platform.machine()), None)
    if native is None or platform.system() != "Linux":
        raise ReleaseError(
            f"compile the operator's sources: the image's Python does not run on {platform.system()} "
            f"{platform.machine()}. Make the release on Linux, amd64 or arm64."
        )
    members = (member for found in contents.values() for layer in found.layers for member in layer)
    return bytecode.compile_sources(members, contents[native].system, PYTHON)
