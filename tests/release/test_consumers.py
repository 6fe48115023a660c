"""The programs with which users take a release accept it: krew, oras, Helm, and what checks images.

They are compiled once per machine from the sources that `go/*/go.sum` pins.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_cli.verbs import Door, verbs_of
from localcluster import network
from localcluster.build import cache_root
from release import krew
from release.facts import Release
from support.releases import only

pytestmark = [pytest.mark.release, pytest.mark.timeout(900)]

MODULES = Path(__file__).with_name("go")


def program(module: str, package: str) -> Path:
    """The compiled program; the first time takes minutes."""
    if shutil.which("go") is None:
        pytest.skip("no Go toolchain on PATH")
    pins = hashlib.sha256((MODULES / module / "go.sum").read_bytes()).hexdigest()[:12]
    target = cache_root() / f"{package.rpartition('/')[2]}-{pins}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(partial), package]
        environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
        subprocess.run(command, cwd=MODULES / module, env=environment, check=True)
        partial.replace(target)
    return target


def output(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_krew_finds_the_manifest_valid(whole: Path) -> None:
    validator = program("krew", "sigs.k8s.io/krew/cmd/validate-krew-manifest")
    said = output(validator, f"-manifest={whole / 'ckpt.yaml'}", "-skip-install")
    assert "structural validation OK" in said
    assert "no overlapping spec.platform[].selector" in said


@pytest.mark.parametrize("platform", krew.PLATFORMS, ids=lambda platform: platform.name)
def test_krew_installs_the_plugin(whole: Path, made_from: Release, tmp_path: Path, platform: krew.Platform) -> None:
    archive = whole / krew.archive_name(made_from, platform)
    install = (program("krew", "sigs.k8s.io/krew/cmd/krew"), "install", f"--manifest={whole / 'ckpt.yaml'}")
    where = {"KREW_ROOT": str(tmp_path), "KREW_OS": platform.os, "KREW_ARCH": platform.arch}
    assert "Installed plugin: ckpt" in output(*install, f"--archive={archive}", **where)
    assert (tmp_path / "bin" / "kubectl-ckpt").resolve().is_file()


def test_kubectl_finds_the_plugin_that_krew_installed(whole: Path, made_from: Release, tmp_path: Path) -> None:
    archive = whole / krew.archive_name(made_from, krew.PLATFORMS[0])
    install = (program("krew", "sigs.k8s.io/krew/cmd/krew"), "install", f"--manifest={whole / 'ckpt.yaml'}")
    output(*install, f"--archive={archive}", KREW_ROOT=str(tmp_path))
    shown = output(Path(sys.prefix, "bin", "kubectl"), "ckpt", "--help", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert all(f"  {verb.name} " in shown for verb in verbs_of(Door.CLUSTER))


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """The address of a registry on loopback."""
    address = f"127.0.0.1:{next(network.free_ports())}"
    crane = program("registries", "github.com/google/go-containerregistry/cmd/crane")
    with subprocess.Popen([crane, "registry", "serve", f"--address={address}"], stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        server.stderr.readline()  # says that it serves
        yield address
        server.terminate()


@pytest.fixture(scope="module")
def pushed(whole: Path, made_from: Release, registry: str) -> dict[str, str]:
    """What was pushed with the commands of docs/releasing.md: addresses in the registry, by those of `digests.txt`."""
    oras = program("registries", "oras.land/oras/cmd/oras")
    archives = {
        made_from.image: "*-image.oci.tar",
        made_from.library: "*-library.oci.tar",
        made_from.chart: "*-chart-*.oci.tar",
    }
    found = {}
    for address, pattern in archives.items():
        layout = f"{only(whole, pattern)}:{made_from.semantic}"
        found[address] = f"{registry}{address.removeprefix('registry.example.com')}:{made_from.semantic}"
        output(oras, "cp", "--to-plain-http", "--from-oci-layout", layout, found[address])
    return found


def test_a_registry_has_the_digests_that_are_signed(whole: Path, pushed: dict[str, str]) -> None:
    crane = program("registries", "github.com/google/go-containerregistry/cmd/crane")
    signed = dict(line.split("@") for line in (whole / "digests.txt").read_text().splitlines())
    assert {address: output(crane, "digest", where).strip() for address, where in pushed.items()} == signed


def test_every_blob_of_the_pushed_images_is_what_its_manifests_say(pushed: dict[str, str], made_from: Release) -> None:
    crane = program("registries", "github.com/google/go-containerregistry/cmd/crane")
    for image in (made_from.image, made_from.library):
        assert "PASS" in output(crane, "validate", f"--remote={pushed[image]}")


def test_helm_pulls_the_package_that_was_made(
    helm: Path, whole: Path, pushed: dict[str, str], made_from: Release, tmp_path: Path
) -> None:
    address = pushed[made_from.chart].rpartition(":")[0]
    version = f"--version={made_from.semantic}"
    output(helm, "pull", "--plain-http", f"oci://{address}", version, f"--destination={tmp_path}", HOME=str(tmp_path))
    assert only(tmp_path, "*.tgz").read_bytes() == only(whole, "*.tgz").read_bytes()
