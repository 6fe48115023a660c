"""The operator as installed: its image, what is in it and what is not, that it is what runs, and `helm test`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from demo import image as operator_image
from demo import installation
from localcluster import imagebuild, requirements
from localcluster.cluster import Cluster
from localcluster.fixtures import require
from localcluster.imagebuild import Image, ImageError
from localcluster.images import NOBODY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LIMIT_MB = 400
"""Uncompressed; most of it botocore's and Kubernetes' models. It is here to notice a jump, not to be reached."""
TOOLS = {"pip", "pip3", "gcc", "cc", "ld", "make", "uv", "git"}


@pytest.fixture(scope="session")
def image() -> Image:
    require(requirements.image_problem())
    built = operator_image.build()
    assert built is not None
    return built


@pytest.fixture(scope="session")
def root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's root folder, unpacked."""
    folder = tmp_path_factory.mktemp("image")
    with tarfile.open(image.archive) as archive:
        archive.extractall(folder, filter="data")
    (manifest,) = json.loads((folder / "manifest.json").read_text())
    (layer,) = manifest["Layers"]
    (folder / "root").mkdir()
    subprocess.run(["tar", "--extract", f"--file={folder / layer}", f"--directory={folder / 'root'}"], check=True)
    (folder / layer).unlink()
    return folder / "root"


@pytest.fixture(scope="session")
def config(image: Image, root: Path) -> dict[str, object]:
    (manifest,) = json.loads((root.parent / "manifest.json").read_text())
    settings: dict[str, object] = json.loads((root.parent / manifest["Config"]).read_text())["config"]
    return settings


def inside(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the image, as the image's user."""
    chroot = [requirements.find_program("chroot") or "chroot", f"--userspec={NOBODY}:{NOBODY}", str(root), *command]
    return subprocess.run(chroot, capture_output=True, text=True, env={"HOME": "/nonexistent"})


def test_the_image_runs_the_operator_as_a_user_that_is_not_root(config: dict[str, object]) -> None:
    assert config["User"] == f"{NOBODY}:{NOBODY}"
    assert config["Entrypoint"] == ["/app/bin/checkpoint-operator"]


def test_the_operator_starts_in_it(root: Path) -> None:
    assert "--ambient-allow" in inside(root, "/app/bin/checkpoint-operator", "--help").stdout


def test_torch_cannot_be_imported_in_it(root: Path) -> None:
    done = inside(root, "/app/bin/python", "-c", "import torch")
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr
    assert not list(root.glob("**/torch/__init__.py"))


def test_nothing_in_it_compiles_or_installs(root: Path) -> None:
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "app/bin", "tools")
    assert not TOOLS & {path.name for folder in folders for path in root.glob(f"{folder}/*")}
    for module in ("pip", "ensurepip"):
        assert inside(root, "/app/bin/python", "-c", f"import {module}").returncode != 0
        assert inside(root, "/usr/bin/python3", "-c", f"import {module}").returncode != 0


def test_all_of_the_operator_is_compiled_because_nothing_can_be_written_at_run_time(root: Path) -> None:
    (packages,) = root.glob("app/lib/python3.*/site-packages")
    for name in ("checkpoint_operator", "checkpoint_sidecar", "kopf"):
        sources = [path for path in (packages / name).rglob("*.py") if path.stat().st_size]
        assert sources
        uncompiled = [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))]
        assert uncompiled == []


def test_the_sources_and_the_tests_are_not_in_it(root: Path) -> None:
    assert not (root / "source").exists()
    assert not list(root.glob("app/**/test_plan.py"))


def test_it_is_no_larger_than_what_it_needs(image: Image) -> None:
    assert image.archive.stat().st_size < LIMIT_MB * 1_000_000


@pytest.fixture
def copied(tmp_path: Path) -> imagebuild.Recipe:
    """The image's recipe in a copy of its inputs, like another checkout."""
    recipe = operator_image.RECIPE
    for name in (*recipe.locked, *recipe.sources):
        source = recipe.context / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copyfile(source, tmp_path / name)
    return dataclasses.replace(recipe, context=tmp_path)


def test_an_image_of_the_same_sources_is_not_built_again(image: Image, copied: imagebuild.Recipe) -> None:
    package = copied.context / "operator" / "checkpoint_operator" / "decide"
    (package / "plan.py").touch()
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "plan.cpython-399.pyc").write_bytes(b"compiled by another Python")
    said: list[str] = []
    assert imagebuild.build(copied, said.append) == image
    assert said == []


@pytest.mark.release
def test_the_build_fails_when_torch_is_importable(image: Image, copied: imagebuild.Recipe) -> None:
    dockerfile = copied.context / copied.dockerfile
    step = "RUN touch $(echo /app/lib/python3.*/site-packages)/torch.py"
    dockerfile.write_text(dockerfile.read_text().replace("COPY sidecar sidecar", f"COPY sidecar sidecar\n{step}"))
    before = set(image.archive.parent.glob("*.tar"))
    with pytest.raises(ImageError, match="torch is importable"):
        imagebuild.build(copied)
    assert set(image.archive.parent.glob("*.tar")) == before


def test_it_is_what_runs_in_the_cluster_with_a_root_folder_that_is_read_only(operator: Cluster, image: Image) -> None:
    selector = "--selector=app.kubernetes.io/name=checkpoint-operator"
    pods = operator.kubectl(f"--namespace={installation.NAMESPACE}", "get", "pods", selector, "--output=json")
    (pod,) = json.loads(pods)["items"]
    (container,) = pod["spec"]["containers"]
    (status,) = pod["status"]["containerStatuses"]
    assert container["image"] == status["image"] == image.reference
    assert "command" not in container
    assert not [volume for volume in pod["spec"]["volumes"] if "hostPath" in volume]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert status["ready"] is True
    assert status["restartCount"] == 0


def helm_test(cluster: Cluster) -> str:
    arguments = ("test", installation.RELEASE, f"--namespace={installation.NAMESPACE}", "--logs", "--timeout=60s")
    return cluster.helm(*arguments, check=False)


def test_helm_test_finds_a_whole_installation_well(operator: Cluster) -> None:
    said = helm_test(operator)
    assert "ok: 1 ready, " in said
    assert "Phase:          Succeeded" in said


def test_helm_test_names_what_the_operator_may_not_and_leaves_nothing_but_its_pod(operator: Cluster) -> None:
    """The right to read Secrets is taken away."""
    role = json.loads(operator.kubectl("get", "clusterrole", installation.RELEASE, "--output=json"))
    whole = role["rules"]
    less = [rule for rule in whole if "secrets" not in rule["resources"]]
    assert len(less) == len(whole) - 1
    patch = ("patch", "clusterrole", installation.RELEASE, "--type=merge")
    operator.kubectl(*patch, f"--patch={json.dumps({'rules': less})}")
    try:
        said = helm_test(operator)
    finally:
        operator.kubectl(*patch, f"--patch={json.dumps({'rules': whole})}")
    assert "wrong: the operator may not get secrets in all namespaces: " in said
    assert "may not list" not in said
    assert "ok: " not in said
    namespace = f"--namespace={installation.NAMESPACE}"
    assert f"{installation.RELEASE}-test" in operator.kubectl(namespace, "get", "pods", "--output=name")
    assert "ok: 1 ready, " in helm_test(operator)
    assert f"{installation.RELEASE}-test" not in operator.kubectl(namespace, "get", "pods,roles", "--output=name")
