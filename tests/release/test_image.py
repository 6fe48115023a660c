"""The operator's image for a release: what is in it, what is not, and that it runs, on both architectures."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from localcluster import requirements
from localcluster.images import NOBODY
from release import debian, image
from release.facts import Release
from support.releases import Layout, only, sha256

pytestmark = [pytest.mark.release, pytest.mark.timeout(900)]

NEVER = {"sh", "bash", "dash", "pip", "pip3", "apt-get", "dpkg", "gcc", "cc", "ld", "make", "uv", "git"}
LIMIT_MB = 80
"""Compressed, of one architecture; most of it botocore's and Kubernetes' models."""
MODULES = "ssl, sqlite3, lzma, bz2, ctypes, uuid, zoneinfo, aiohttp, botocore, crc32c, kopf, kubernetes, msgspec, yaml"


@pytest.fixture(scope="session")
def layout(whole: Path) -> Layout:
    return Layout(only(whole, "*-image.oci.tar"))


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
    """The image's root folder, unpacked."""
    folder = tmp_path_factory.mktemp(architecture)
    folder.chmod(0o755)  # as container runtimes make it: the image's user enters
    for layer in manifests[architecture]["layers"]:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layout.read(layer)))) as archive:
            archive.extractall(folder, filter="tar")
    return folder


def python(root: Path, architecture: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the image's Python: as the image's user in it where that is possible, else under emulation."""
    if debian.ARCHITECTURES[architecture] == platform.machine() and os.geteuid() == 0:
        chroot = requirements.find_program("chroot") or "chroot"
        command = [chroot, f"--userspec={NOBODY}:{NOBODY}", str(root), "/app/bin/python", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={"HOME": "/nonexistent"})
    emulator = shutil.which(f"qemu-{debian.ARCHITECTURES[architecture]}")
    if emulator is None:
        pytest.skip(f"nothing runs programs for {architecture} here: install qemu-user")
    environment = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(root / "app" / "lib" / image.PYTHON / "site-packages"),
    }
    program = str(root / "usr" / "bin" / image.PYTHON)
    return subprocess.run([emulator, "-L", root, program, *arguments], capture_output=True, text=True, env=environment)


def test_the_index_is_what_is_signed_and_names_both_platforms(
    whole: Path, layout: Layout, manifests: dict[str, Any], made_from: Release
) -> None:
    assert f"{made_from.image}@{layout.top['digest']}" in (whole / "digests.txt").read_text().splitlines()
    assert {f"linux/{architecture}" for architecture in manifests} == {*image.PLATFORMS}
    annotations = layout.json(layout.top)["annotations"]
    assert {"io.artifacthub.package.readme-url", "org.opencontainers.image.created"} < {*annotations}


def test_the_image_runs_the_operator_as_a_user_that_is_not_root(
    architecture: str, layout: Layout, manifests: dict[str, Any]
) -> None:
    config = layout.json(manifests[architecture]["config"])
    assert config["architecture"] == architecture
    assert config["config"]["User"] == f"{NOBODY}:{NOBODY}"
    assert config["config"]["Entrypoint"] == ["/app/bin/checkpoint-operator"]
    packed = [gzip.decompress(layout.read(layer)) for layer in manifests[architecture]["layers"]]
    assert [f"sha256:{sha256(layer)}" for layer in packed] == config["rootfs"]["diff_ids"]


def test_no_architecture_is_larger_than_what_it_needs(architecture: str, manifests: dict[str, Any]) -> None:
    assert sum(layer["size"] for layer in manifests[architecture]["layers"]) < LIMIT_MB * 1_000_000


def test_no_shell_compiler_or_installer_is_in_it(root: Path) -> None:
    found = {path.name for folder in ("usr/bin", "usr/sbin", "app/bin") for path in (root / folder).iterdir()}
    assert not found & NEVER
    assert not list(root.glob("**/torch/__init__.py"))
    assert not list(root.glob("**/ensurepip/__init__.py"))


def test_all_sources_are_compiled(root: Path) -> None:
    (packages,) = root.glob("app/lib/python3.*/site-packages")
    for folder in ("checkpoint_operator", "checkpoint_sidecar", "kopf"):
        sources = list((packages / folder).rglob("*.py"))
        assert sources
        tag = f"cpython-3{debian.PYTHON_MINOR}"
        uncompiled = [path for path in sources if not (path.parent / f"__pycache__/{path.stem}.{tag}.pyc").exists()]
        assert uncompiled == []


def test_the_operator_starts_with_all_its_libraries(root: Path, architecture: str) -> None:
    code = f"import {MODULES}; from checkpoint_operator.__main__ import main; main(['--help'])"
    done = python(root, architecture, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "--ambient-allow" in done.stdout


def test_compiled_files_are_used(root: Path, architecture: str) -> None:
    if debian.ARCHITECTURES[architecture] != platform.machine():
        pytest.skip("the same files as for the other architecture")
    done = python(root, architecture, "-v", "-c", "import kopf")
    compiled = f"kopf/__pycache__/__init__.cpython-3{debian.PYTHON_MINOR}.pyc"
    assert [line for line in done.stderr.splitlines() if "code object from" in line and compiled in line]


def test_it_trusts_the_authorities_that_debian_trusts(root: Path) -> None:
    bundle = (root / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert bundle.count("BEGIN CERTIFICATE") > 100


def test_scanners_and_lawyers_find_the_packages(root: Path, whole: Path, architecture: str) -> None:
    locked = {package.name for package in debian.locked(architecture)}
    assert {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()} == locked
    assert (root / "usr/share/doc/libc6/copyright").is_file()
    listed = json.loads(only(whole, "*-image.cdx.json").read_text())["components"]
    assert {component["purl"] for component in listed} >= {package.purl for package in debian.locked(architecture)}
