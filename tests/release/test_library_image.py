"""The library's image for a release: what is in it, and that any supported Python can use it, on both architectures."""

from __future__ import annotations

import gzip
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from localcluster.images import NOBODY
from release import debian, image
from release.facts import Release
from release.python_packages import MINORS
from support.releases import Layout, only

pytestmark = [pytest.mark.release, pytest.mark.timeout(900)]

LIMIT_MB = 12
"""Compressed, of one architecture; a third of it is cryptography."""


@pytest.fixture(scope="session")
def layout(whole: Path) -> Layout:
    return Layout(only(whole, "*-library.oci.tar"))


@pytest.fixture(scope="session")
def manifests(layout: Layout) -> dict[str, Any]:
    """By architecture."""
    index = layout.json(layout.top)
    return {one["platform"]["architecture"]: layout.json(one) for one in index["manifests"]}


@pytest.fixture(scope="session", params=list(debian.ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def root(
    architecture: str, layout: Layout, manifests: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The image's root folder, unpacked: what a pod sees in its volume."""
    folder = tmp_path_factory.mktemp(architecture)
    for layer in manifests[architecture]["layers"]:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layout.read(layer)))) as archive:
            archive.extractall(folder, filter="tar")
    return folder


def test_it_is_signed_and_described_like_the_operators(whole: Path, layout: Layout, made_from: Release) -> None:
    assert f"{made_from.library}@{layout.top['digest']}" in (whole / "digests.txt").read_text().splitlines()
    assert "busybox-static" in only(whole, "*-library.cdx.json").read_text()
    assert "-library.oci.tar" in (whole / "provenance.intoto.json").read_text()


def test_it_is_for_both_platforms_and_small(manifests: dict[str, Any]) -> None:
    assert {f"linux/{architecture}" for architecture in manifests} == {*image.PLATFORMS}
    for manifest in manifests.values():
        assert sum(layer["size"] for layer in manifest["layers"]) < LIMIT_MB * 1_000_000


def test_nothing_in_it_starts_by_itself_or_as_root(layout: Layout, manifests: dict[str, Any]) -> None:
    for manifest in manifests.values():
        config = layout.json(manifest["config"])["config"]
        assert config["User"] == f"{NOBODY}:{NOBODY}"
        assert not {"Entrypoint", "Cmd"} & config.keys()


def test_it_holds_the_library_and_not_the_operator(root: Path) -> None:
    (common,) = root.glob("packages/any")
    assert (common / "checkpoint_sidecar" / "training" / "checkpointer.py").is_file()
    assert not [
        name for name in ("checkpoint_operator", "checkpoint_cli", "torch", "numpy") if (common / name).exists()
    ]
    assert {path.name for path in (root / "packages").iterdir()} == {"any", *(f"python3.{minor}" for minor in MINORS)}
    assert [path.name for path in (root / "python").iterdir()] == ["checkpoint_sidecar"]


def test_licenses_are_kept(root: Path) -> None:
    assert (root / "LICENSE").is_file()
    assert (root / "usr/share/doc/busybox-static/copyright").is_file()
    assert list(root.glob("packages/any/botocore-*.dist-info/**/LICENSE*"))


USES = """
import checkpoint_sidecar, crc32c, msgspec
from checkpoint_sidecar import Credentials, StoreSettings, open_run
from checkpoint_sidecar.store.google import identity as google
from checkpoint_sidecar.store.s3 import dialect, identity
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from importlib.metadata import version
import botocore.session
for service in ("s3", "signin", "sso", "sso-oidc", "sts"):
    botocore.session.Session().create_client(service, region_name="eu-west-1")
print(checkpoint_sidecar.__file__, version("checkpoint-operator"))
"""


def test_a_python_without_any_package_uses_it(root: Path, architecture: str, made_from: Release) -> None:
    if debian.ARCHITECTURES[architecture] != platform.machine():
        pytest.skip("this Python is for another architecture")
    variables = {"PYTHONPATH": str(root / "python"), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-S", "-c", USES], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file = root / "packages" / "any" / "checkpoint_sidecar" / "__init__.py"
    assert done.stdout.split() == [str(file), made_from.version]


@pytest.mark.parametrize("minor", MINORS)
def test_compiled_modules_are_of_the_architecture_and_the_version(root: Path, architecture: str, minor: int) -> None:
    compiled = list((root / "packages" / f"python3.{minor}").rglob("*.so"))
    assert {path.parent.name for path in compiled} >= {"crc32c", "msgspec"}
    machine = {"amd64": 62, "arm64": 183}[architecture]
    for path in [*compiled, *(root / "packages" / "any").rglob("*.so")]:
        assert int.from_bytes(path.read_bytes()[18:20], "little") == machine, path
    assert all(f"cpython-3{minor}-" in path.name for path in compiled)


def test_its_program_copies_it(root: Path, architecture: str, tmp_path: Path) -> None:
    program = [str(root / "bin" / "busybox")]
    if debian.ARCHITECTURES[architecture] != platform.machine():
        emulator = shutil.which(f"qemu-{debian.ARCHITECTURES[architecture]}")
        if emulator is None:
            pytest.skip(f"nothing runs programs for {architecture} here: install qemu-user")
        program.insert(0, emulator)
    old = os.umask(0o022)
    try:
        subprocess.run([*program, "cp", "-R", root / "python", root / "packages", tmp_path], check=True)
    finally:
        os.umask(old)
    copied = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(copied) == len(
        [path for name in ("python", "packages") for path in (root / name).rglob("*") if path.is_file()]
    )
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in copied)
