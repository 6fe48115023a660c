"""Build an image from a Dockerfile on a machine that has no Docker engine and reaches no image registry.

buildah does what the Dockerfile says, with the machine's own network and certificate authorities. The base is this
machine's distribution, Python included, made from its package mirror by mmdebstrap. Root on Debian or a relative.

Standard library only: the bootstrap prepares what takes minutes while there is no virtual environment yet.

Three things are kept in the cache folder: the base, the layers of the stage that only depends on `Recipe.locked`
(both in buildah's own storage), and the archives of the last finished images, each named after all that went into it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster.build import Report, cache_root, only_builder
from localcluster.requirements import SBIN

PACKAGES = ("ca-certificates", "python3", "python3-venv")
UNUSED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
"""Paths that dpkg leaves out: a third of the files."""
LOCKED_STAGE = "dependencies"
KEPT_ARCHIVES = 3
_EPOCH = 315532800
"""1980, the earliest time that a wheel can hold. Times of checkouts must not make layers differ."""


class ImageError(Exception):
    """An image could not be built; the message ends with what the failing program said."""


@dataclass(frozen=True)
class Recipe:
    """What goes into an image: files and folders of `context`, and nothing else in it."""

    name: str
    context: Path
    dockerfile: str
    locked: tuple[str, ...]
    """All that the Dockerfile's stage `dependencies` copies."""
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """A finished image in an archive that `ctr images import` (and `docker load`) take."""

    repository: str
    tag: str
    archive: Path

    @property
    def reference(self) -> str:
        return f"{self.repository}:{self.tag}"


def prepare(recipe: Recipe, report: Report = print) -> None:
    """Make what takes minutes and rarely changes: the base and the dependencies. Raises `ImageError`."""
    with _staged(recipe, (*recipe.locked, recipe.dockerfile)) as (context, digest):
        marker = _folder() / f"{recipe.name}-{digest}.prepared"
        if marker.exists():
            return
        with only_builder(_folder(), report):
            _bud(recipe, context, report, "--target", LOCKED_STAGE, "--tag", _locked_tag(recipe))
            for other in _folder().glob(f"{recipe.name}-*.prepared"):
                other.unlink()
            marker.touch()


def build(recipe: Recipe, report: Report = print) -> Image:
    """The image, built now unless the very same one is in the cache. Raises `ImageError`."""
    with _staged(recipe, (*recipe.locked, *recipe.sources, recipe.dockerfile)) as (context, digest):
        image = Image(f"localhost/{recipe.name}", digest, _folder() / f"{recipe.name}-{digest}.tar")
        if image.archive.exists():
            image.archive.touch()
            return image
        with only_builder(_folder(), report):
            if not image.archive.exists():
                _build(recipe, context, image, report)
    return image


def _build(recipe: Recipe, context: Path, image: Image, report: Report) -> None:
    _bud(recipe, context, report, "--target", LOCKED_STAGE, "--tag", _locked_tag(recipe))
    try:
        _bud(recipe, context, report, "--tag", image.reference)
        partial = image.archive.with_name(f".{image.archive.name}.{os.getpid()}.partial")
        with _timed(report, f"{image.reference}: written"):
            container = _buildah("from", image.reference).strip()
            # One layer: the nodes here copy each layer whole, together with all that are below it.
            _buildah(
                "commit", "--squash", "--disable-compression", container, f"docker-archive:{partial}:{image.reference}"
            )
        partial.replace(image.archive)
    finally:
        # Whatever is not below a name that is kept would pile up with every change of the sources.
        _buildah("rm", "--all")
        subprocess.run(_command("rmi", image.reference), capture_output=True, check=False)
        _buildah("rmi", "--prune")
    archives = sorted(_folder().glob(f"{recipe.name}-*.tar"), key=lambda path: path.stat().st_mtime)
    for outdated in archives[:-KEPT_ARCHIVES]:
        outdated.unlink()


def _bud(recipe: Recipe, context: Path, report: Report, *arguments: str) -> None:
    options = [
        "--layers",
        "--force-rm",
        f"--file={context / recipe.dockerfile}",
        f"--build-arg=BASE={_base(report)}",
        "--build-arg=UV_SYSTEM_CERTS=true",
        "--volume=/etc/ssl/certs:/etc/ssl/certs:ro",
    ]
    downloads = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    downloads.mkdir(parents=True, exist_ok=True)
    options.append(f"--volume={downloads}:/root/.cache/uv")
    with _timed(report, f"{recipe.name}: {' '.join(arguments)}"):
        _buildah("bud", *options, *arguments, str(context))


def _base(report: Report) -> str:
    """The name of the base image; made if it is not there."""
    mirror, suite = _distribution()
    digest = hashlib.sha256(repr((mirror, suite, PACKAGES, UNUSED)).encode()).hexdigest()[:12]
    name = f"localhost/base:{suite}-{digest}"
    if subprocess.run(_command("inspect", "--type=image", name), capture_output=True, check=False).returncode == 0:
        return name
    with tempfile.TemporaryDirectory(dir=_folder()) as root, _timed(report, f"{name}: made with mmdebstrap"):
        # Without apt and what else is merely important: nothing is installed at run time.
        options = ["--variant=essential", "--format=directory", f"--include={','.join(PACKAGES)}"]
        options += [f"--dpkgopt=path-exclude={unused}" for unused in UNUSED]
        _run(["mmdebstrap", *options, suite, root, mirror])
        container = _buildah("from", "scratch").strip()
        _buildah("copy", container, root, "/")
        _buildah("commit", "--rm", container, name)
    return name


def _distribution() -> tuple[str, str]:
    """The package mirror that this machine uses, and its suite."""
    release = Path("/etc/os-release").read_text()
    suites = [line.partition("=")[2] for line in release.splitlines() if line.startswith("VERSION_CODENAME=")]
    known = _run(["apt-get", "indextargets", "--format=$(REPO_URI) $(CODENAME)", "Created-By: Packages"])
    mirrors = [line.split() for line in known.splitlines()]
    found = [mirror for mirror, suite in mirrors if suite in suites]
    if not found:
        raise ImageError(
            f"apt has no package lists of {' or '.join(suites) or 'this distribution'}: run `apt-get update`"
        )
    return found[0], suites[0]


@contextmanager
def _staged(recipe: Recipe, names: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Return a copy of these files alone, and a digest of them and of all else that determines the image.

    It is the copy that is built: the sources may be edited meanwhile.
    """
    _folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            source, target = recipe.context / name, Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
        digest = hashlib.sha256(repr((_distribution(), PACKAGES, UNUSED)).encode())
        for path in sorted(Path(folder).rglob("*")):
            os.utime(path, (_EPOCH, _EPOCH))
            digest.update(f"{path.relative_to(folder)}\0".encode())
            if path.is_file():
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        yield Path(folder), digest.hexdigest()[:12]


def _locked_tag(recipe: Recipe) -> str:
    return f"localhost/{recipe.name}-{LOCKED_STAGE}"


def _folder() -> Path:
    return cache_root() / "images"


def _command(*arguments: str) -> list[str]:
    place = _folder() / "buildah"
    return ["buildah", "--root", str(place / "storage"), "--runroot", str(place / "run"), *arguments]


def _buildah(*arguments: str) -> str:
    return _run(_command(*arguments))


def _run(command: list[str]) -> str:
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "PATH": f"{os.environ['PATH']}:{SBIN}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ImageError(f"`{command[0]}` failed (exit status {done.returncode}):\n{said}")
    return done.stdout


@contextmanager
def _timed(report: Callable[[str], None], what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    report(f"{what} ({time.monotonic() - started:.0f} s)")
