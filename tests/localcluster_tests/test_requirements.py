from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localcluster import requirements


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux machine, as root, with nothing installed and nothing built."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(requirements, "SBIN", "")
    monkeypatch.setattr(requirements, "CNI_FOLDERS", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_another_operating_system_is_named(bare_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only; this is darwin" in (requirements.cluster_problem() or "")
    assert "Linux only; this is darwin" in (requirements.control_plane_problem() or "")


def test_nodes_need_root_and_a_control_plane_does_not(bare_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in (requirements.cluster_problem() or "")
    assert "root" not in (requirements.control_plane_problem() or "")


def test_missing_packages_are_named_with_the_command_that_installs_them(bare_machine: None) -> None:
    packages = ["containerd", "containernetworking-plugins", "mount", "runc", "util-linux"]
    assert requirements.missing_packages() == packages
    assert f"apt-get install --no-install-recommends {' '.join(packages)}" in (requirements.cluster_problem() or "")


def test_without_binaries_and_without_go_both_are_named(bare_machine: None) -> None:
    problem = requirements.control_plane_problem() or ""
    assert problem.startswith("etcd, kube-apiserver not built yet: no Go toolchain on PATH")


def test_a_given_folder_of_binaries_is_used(
    bare_machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert requirements.control_plane_problem() is None
    assert requirements.binary("etcd") == tmp_path / "etcd"


def test_a_given_folder_that_lacks_a_binary_is_named(
    bare_machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert f"KUBEBUILDER_ASSETS={tmp_path} lacks kube-apiserver" in (requirements.control_plane_problem() or "")


def test_missing_packages_are_printed_by_a_bare_interpreter() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-S", "-m", "localcluster.requirements"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [*requirements.missing_packages(), *requirements.missing_image_packages()]


def test_without_the_programs_that_build_images_the_cluster_runs_all_the_same(
    bare_machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = requirements.image_problem() or ""
    assert problem.endswith("`apt-get install --no-install-recommends buildah mmdebstrap`")
    assert "buildah" not in (requirements.cluster_problem() or "")
