from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from localcluster import build, requirements, versions
from localcluster.fixtures import require


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (1, "60 s, 1 packages compiled"),
        (1000, "60 s, 1000 of 3000 packages compiled, about 120 s left"),
        (3000, "60 s, 3000 packages compiled"),
    ],
)
def test_a_compilation_estimates_what_is_left_once_it_has_compiled_some(packages: int, said: str) -> None:
    assert build.progress(60.0, packages, 3000) == said


def test_without_a_number_of_packages_it_estimates_nothing() -> None:
    assert build.progress(60.0, 10, 0) == "60 s, 10 packages compiled"


@pytest.fixture
def program() -> Path:
    require(requirements.control_plane_problem())
    found = build.built("kubernetes")
    assert found is not None
    return found


def said_by(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"])
def test_one_program_is_each_of_kubernetes_by_its_name(program: Path, name: str) -> None:
    assert said_by(program.with_name(name), "--version").stdout.strip() == f"Kubernetes {versions.KUBERNETES}"


def test_it_is_etcd_and_helm_as_well(program: Path) -> None:
    assert f"etcd Version: {versions.ETCD.removeprefix('v')}" in said_by(program.with_name("etcd"), "--version").stdout
    assert said_by(program.with_name("helm"), "version", "--short").stdout.startswith(versions.HELM)


def test_by_another_name_it_refuses(program: Path) -> None:
    refused = said_by(program)
    assert refused.returncode == 2
    assert "not a program that this one holds" in refused.stderr
