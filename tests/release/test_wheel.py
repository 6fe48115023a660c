"""The command line as a user gets it: from the wheel, in an environment where nothing else is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from checkpoint_cli.verbs import Door, verbs_of
from release import python_packages
from release.__main__ import ROOT
from support.releases import only

BUCKET = ROOT / "tests" / "store" / "golden" / "training.tar.gz"


@pytest.fixture(scope="session")
def programs(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that holds the wheel with its extra `cli`, in the locked versions."""
    folder = tmp_path_factory.mktemp("installed")
    locked = folder / "locked.txt"
    locked.write_text("\n".join(map(str, python_packages.requirements(ROOT, "--extra=cli"))))
    python_packages.uv("venv", f"--python={sys.executable}", "environment", folder=folder)
    wheel = f"checkpoint-operator[cli] @ {only(quick, '*.whl').as_uri()}"
    python = folder / "environment" / "bin" / "python"
    python_packages.uv("pip", "install", f"--python={python}", f"--constraint={locked}", wheel, folder=folder)
    return python.parent


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, cwd=program.parent)


@pytest.mark.parametrize(("name", "door"), [("checkpoint", Door.BUCKET), ("kubectl-ckpt", Door.CLUSTER)])
def test_each_program_lists_its_verbs(programs: Path, name: str, door: Door) -> None:
    shown = run(programs / name, "--help")
    assert shown.returncode == 0, shown.stderr
    assert all(f"  {verb.name} " in shown.stdout for verb in verbs_of(door))


def test_a_run_in_a_folder_is_listed(programs: Path, tmp_path: Path) -> None:
    with tarfile.open(BUCKET) as archive:
        archive.extractall(tmp_path, filter="data")
    (log,) = tmp_path.rglob("_log")
    shown = run(programs / "checkpoint", "ls", log.parent.as_uri(), "--output=json")
    assert shown.returncode == 0, shown.stderr
    assert [snapshot["step"] for snapshot in json.loads(shown.stdout)["items"]] == [300, 200, 100]


def test_neither_torch_nor_the_operators_packages_come_along(programs: Path) -> None:
    code = "from importlib.util import find_spec as f; print([n for n in ('torch', 'kopf', 'kubernetes') if f(n)])"
    assert run(programs / "python", "-c", code).stdout == "[]\n"
