"""The Debian packages in the images: pinned in `debian.lock.json`, downloaded by apt, unpacked without being run.

apt checks the archive's signature and resolves what a package needs, for any architecture, in a folder of its own: the
machine's packages are neither read nor changed. `python -m release.debian` renews the lock.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from release import downloads
from release.archives import Member
from release.facts import ReleaseError

SUITE = "bookworm"
PYTHON_MINOR = 11
"""Of the suite's Python 3. From 3.13 on, Python refuses API servers whose certificates name no authority key."""
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""As Debian and OCI call them, and as Linux and Python do."""
WANTED = {
    "operator": ("base-files", "ca-certificates", f"python3.{PYTHON_MINOR}"),
    "library": ("busybox-static",),
}
"""By image."""
SCRIPTS_ONLY = {
    "debconf",
    "dpkg",
    "libacl1",
    "libmd0",
    "libpcre2-8-0",
    "libselinux1",
    "libzstd1",
    "mawk",
    "openssl",
    "tar",
}
"""What packages need for being installed and for their scripts, which never run here."""

_LOCK = Path(__file__).with_name("debian.lock.json")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    file: str
    """As apt names a downloaded file."""
    sha256: str

    @property
    def purl(self) -> str:
        return f"pkg:deb/debian/{self.name}@{self.version}?arch={self.file.rpartition('_')[2].removesuffix('.deb')}"


@dataclass(frozen=True)
class Unpacked:
    """What a package installs, and its description for dpkg and for scanners."""

    members: list[Member]
    control: bytes


def locked(architecture: str, image: str = "operator") -> list[Package]:
    return [Package(**fields) for fields in json.loads(_LOCK.read_text())[image][architecture]]


def fetch(architecture: str, image: str = "operator") -> None:
    """Download with apt what is not in the cache yet. Raises `ReleaseError`."""
    missing = [one for one in locked(architecture, image) if downloads.kept(one.sha256) is None]
    if not missing:
        return
    with _apt(architecture) as apt, tempfile.TemporaryDirectory() as folder:
        apt.run("download", *(f"{one.name}={one.version}" for one in missing), folder=Path(folder))
        for one in missing:
            downloads.keep(Path(folder, one.file), one.sha256)


def unpack(package: Package) -> Unpacked:
    """Unpack a package that was fetched."""
    content = downloads.kept(package.sha256)
    assert content is not None, f"{package.file} was not fetched"
    parts = dict(_parts(content))
    with _tar(parts, "data.tar") as archive:
        members = [found for entry in archive if (found := _member(archive, entry))]
    with _tar(parts, "control.tar") as archive:
        control = archive.extractfile("./control")
        assert control is not None
        return Unpacked(members, control.read())


def lock() -> None:
    """Pin the newest packages of the suite and of its security archive. Raises `ReleaseError`."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {image: {} for image in sorted(WANTED)}
    for architecture in ARCHITECTURES:
        with _apt(architecture) as apt:
            for image, packages in found.items():
                packages[architecture] = [asdict(one) for one in _resolved(apt, WANTED[image])]
    _LOCK.write_text(json.dumps(found, indent=1) + "\n")


def _resolved(apt: _Apt, names: tuple[str, ...]) -> list[Package]:
    """The newest versions of these packages and of all that they need."""
    with tempfile.TemporaryDirectory() as folder:
        uris = apt.run("install", "--print-uris", "--no-install-recommends", *names, folder=Path(folder))
        files = {line.split()[1] for line in uris.splitlines()}
        wanted = sorted(name for file in files if (name := file.partition("_")[0]) not in SCRIPTS_ONLY)
        apt.run("download", *wanted, folder=Path(folder))
        return [_pinned(file) for file in sorted(Path(folder).iterdir())]


def _pinned(file: Path) -> Package:
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    downloads.keep(file, sha256)
    name, version, _ = file.name.split("_")
    return Package(name, version.replace("%3a", ":"), file.name, sha256)


@dataclass(frozen=True)
class _Apt:
    """apt for one architecture, with all its state in a folder of its own."""

    options: tuple[str, ...]

    def run(self, *arguments: str, folder: Path) -> str:
        done = subprocess.run(
            ["apt-get", "-qq", *self.options, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ReleaseError(
                f"run apt-get {arguments[0]}: {(done.stderr or done.stdout).strip()[-2000:]}. "
                "If a locked version is gone, renew the lock with `python -m release.debian`."
            )
        return done.stdout


@contextmanager
def _apt(architecture: str) -> Iterator[_Apt]:
    main, security = _mirrors()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (root / name).mkdir(parents=True)
        (root / "status").touch()
        signed = f"deb [signed-by={_KEYRING}]"
        sources = f"{signed} {main} {SUITE} main\n{signed} {security} {SUITE}-security main\n"
        (root / "sources.list").write_text(sources)
        settings = {
            "Dir::State": root / "state",
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        apt = _Apt(tuple(f"--option={name}={value}" for name, value in settings.items()))
        apt.run("update", folder=root)
        yield apt


def _mirrors() -> tuple[str, str]:
    """Where this machine's apt has Debian from, and its security updates."""
    try:
        asked = ["apt-get", "indextargets", "--format=$(REPO_URI) $(LABEL)", "Created-By: Packages"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ReleaseError(
            f"ask apt for its mirror: {error}. Images are made on Debian; see docs/releasing.md."
        ) from error
    mirrors = {label: address for address, _, label in (line.partition(" ") for line in lines)}
    try:
        return mirrors["Debian"], mirrors["Debian-Security"]
    except KeyError as error:
        raise ReleaseError(
            f"find a mirror of Debian: apt has {', '.join(sorted(mirrors)) or 'none'}, not {error.args[0]}. "
            "Run `apt-get update` on Debian, in a container if need be."
        ) from error


def _parts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of an `ar` archive."""
    offset = len(b"!<arch>\n")
    while offset < len(content):
        name, size = content[offset : offset + 16].decode().strip().rstrip("/"), int(content[offset + 48 : offset + 58])
        yield name, content[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2


def _tar(parts: dict[str, bytes], name: str) -> tarfile.TarFile:
    (content,) = (content for part, content in parts.items() if part.startswith(name))
    return tarfile.open(fileobj=io.BytesIO(content))


def _member(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Member | None:
    path = entry.name.removeprefix("./").rstrip("/")
    if path in {"", "."}:
        return None
    if entry.isdir():
        return Member(path, mode=entry.mode, folder=True)
    if entry.issym():
        return Member(path, mode=0o777, link=entry.linkname)
    source = archive.extractfile(entry)  # follows hard links
    assert source is not None, f"{entry.name} is neither file, link nor folder"
    return Member(path, source.read(), entry.mode & 0o755)


if __name__ == "__main__":
    try:
        lock()
    except ReleaseError as error:
        sys.exit(f"error: {error}")
