"""The files of a release: each says what the others say, and what is in it."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import _res as cyclonedx
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from checkpoint_cli.verbs import Door, verbs_of
from release import build, image
from release.__main__ import ROOT
from release.facts import Release
from support.releases import Layout, only, sha256

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def cyclonedx_validator() -> Draft7Validator:
    """For bills of materials, from the schemas that CycloneDX's own library brings along."""
    folder = Path(cyclonedx.__path__[0])
    names = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    schemas = [json.loads((folder / name).read_text()) for name in names]
    registry = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in schemas)
    return Draft7Validator(json.loads((folder / "bom-1.5.SNAPSHOT.schema.json").read_text()), registry=registry)


CYCLONEDX = cyclonedx_validator()


@pytest.fixture(scope="session")
def chart(quick: Path) -> dict[str, bytes]:
    """The files in the chart's package."""
    with tarfile.open(only(quick, "*.tgz")) as archive:
        return {entry.name: found.read() for entry in archive if (found := archive.extractfile(entry))}


@pytest.fixture(scope="session")
def plugin(quick: Path) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load((quick / "ckpt.yaml").read_text())
    return body


def test_every_file_has_a_checksum(quick: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=quick, check=True)
    listed = {line.split()[1] for line in (quick / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in quick.iterdir()} - {"SHA256SUMS"}


def test_there_is_one_version(quick: Path, made_from: Release, chart: dict[str, bytes], plugin: dict[str, Any]) -> None:
    with zipfile.ZipFile(only(quick, "*.whl")) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"checkpoint_operator-{VERSION}.dist-info/METADATA"))
    assert metadata["Version"] == VERSION
    described = yaml.safe_load(chart["checkpoint-operator/Chart.yaml"])
    assert described["version"] == described["appVersion"] == made_from.semantic
    assert plugin["spec"]["version"] == f"v{made_from.semantic}"
    for text in ("README.md", "operator/Dockerfile"):
        assert f"checkpoint-operator:{made_from.semantic} " in (ROOT / text).read_text(), text


def test_the_wheel_and_the_source_distribution_hold_the_product_only(quick: Path) -> None:
    with zipfile.ZipFile(only(quick, "*.whl")) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
    packages = {"checkpoint_cli", "checkpoint_operator", "checkpoint_sidecar"}
    assert tops == packages | {f"checkpoint_operator-{VERSION}.dist-info"}
    with tarfile.open(only(quick, "checkpoint_operator-*.tar.gz")) as source:
        tops = {name.split("/")[1] for name in source.getnames()}
    assert {"cli", "operator", "sidecar", "charts", "crds", "LICENSE", "pyproject.toml"} <= tops
    assert not tops & {"tests", "tools", "build", ".venv", ".git"}


def test_the_package_of_the_chart_is_the_chart_with_addresses(chart: dict[str, bytes], made_from: Release) -> None:
    folder = ROOT / "charts" / "checkpoint-operator"
    files = {f"checkpoint-operator/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert {*chart} == files - {"checkpoint-operator/.helmignore"} | {"checkpoint-operator/LICENSE"}
    values = yaml.safe_load(chart["checkpoint-operator/values.yaml"])
    assert values["image"].pop("repository") == made_from.image
    unchanged = yaml.safe_load((folder / "values.yaml").read_text())
    unchanged["image"].pop("repository")
    assert values["injection"]["library"]["image"].pop("repository") == made_from.library
    unchanged["injection"]["library"]["image"].pop("repository")
    assert values == unchanged


def test_the_chart_tells_artifact_hub_what_it_needs(chart: dict[str, bytes], made_from: Release) -> None:
    described = yaml.safe_load(chart["checkpoint-operator/Chart.yaml"])
    annotations = {name.removeprefix("artifacthub.io/"): text for name, text in described["annotations"].items()}
    assert all(isinstance(text, str) for text in annotations.values())
    assert described["maintainers"] == [{"name": "A Maintainer", "email": "maintainer@example.com"}]
    listed = yaml.safe_load(annotations["images"])
    assert [one["image"] for one in listed] == [
        f"{repository}:{made_from.semantic}" for repository in (made_from.image, made_from.library)
    ]
    assert all(one["platforms"] == sorted(image.PLATFORMS) for one in listed)
    kinds = [one["kind"] for one in yaml.safe_load(annotations["crds"])]
    assert kinds == ["Checkpoint", "CheckpointSnapshot"]
    (example,) = yaml.safe_load(annotations["crdsExamples"])
    assert example["kind"] == "Checkpoint"


def test_the_layout_of_the_chart_is_what_helm_pulls(quick: Path, made_from: Release) -> None:
    layout = Layout(only(quick, "*-chart-*.oci.tar"))
    manifest = layout.json(layout.top)
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
    assert layout.read(layer) == only(quick, "*.tgz").read_bytes()
    assert layout.json(manifest["config"])["version"] == manifest["annotations"]["org.opencontainers.image.version"]
    assert layout.top["annotations"]["org.opencontainers.image.ref.name"] == made_from.semantic
    assert f"{made_from.chart}@{layout.top['digest']}" in (quick / "digests.txt").read_text().splitlines()


def test_krew_finds_the_archives_by_address_and_digest(quick: Path, plugin: dict[str, Any]) -> None:
    assert plugin["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert plugin["metadata"]["name"] == "ckpt"
    assert "\n" not in plugin["spec"]["shortDescription"]
    (platform,) = plugin["spec"]["platforms"]
    name = platform["uri"].rpartition("/")[2]
    assert platform["uri"] == f"https://code.example.com/team/checkpoint-operator/releases/download/v{VERSION}/{name}"
    assert platform["sha256"] == sha256((quick / name).read_bytes())
    with tarfile.open(quick / name) as archive:
        assert archive.getmember(platform["bin"]).mode == 0o755
        assert archive.getmember("LICENSE").isfile()
        # krew refuses archives with links.
        assert all(entry.isfile() or entry.isdir() for entry in archive)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="packed for Linux on amd64")
def test_the_plugin_runs_through_a_link_where_nothing_is_installed(quick: Path, tmp_path: Path) -> None:
    with tarfile.open(only(quick, "kubectl-ckpt-*-linux-amd64.tar.gz")) as archive:
        archive.extractall(tmp_path / "store", filter="data")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "kubectl-ckpt"
    program.symlink_to(tmp_path / "store" / "kubectl-ckpt")
    python = Path(sys.base_prefix, "bin")
    environment = {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(tmp_path)}
    shown = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert all(f"  {verb.name} " in shown.stdout for verb in verbs_of(Door.CLUSTER))
    failed = subprocess.run([program, "status", "llama-7b"], env=environment, capture_output=True, text=True)
    assert failed.stderr.startswith("error: ") or "kubectl" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("name", ["checkpoint-operator-*.cdx.json", "kubectl-ckpt-*.cdx.json"])
def test_a_bill_of_materials_is_valid_and_names_what_it_lists(quick: Path, made_from: Release, name: str) -> None:
    body = json.loads(only(quick, name).read_text())
    assert [error.message for error in CYCLONEDX.iter_errors(body)] == []
    assert body["metadata"]["timestamp"] == made_from.created
    listed = {component["name"]: component["purl"] for component in body["components"]}
    assert listed["msgspec"].startswith("pkg:pypi/msgspec@")
    assert len({component["bom-ref"] for component in body["components"]}) == len(body["components"])


def test_the_provenance_is_about_these_files_and_names_what_they_were_made_of(quick: Path, made_from: Release) -> None:
    statement = json.loads((quick / "provenance.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    files = {path.name: sha256(path.read_bytes()) for path in quick.iterdir()}
    digests = dict(line.split("@sha256:") for line in (quick / "digests.txt").read_text().splitlines())
    del files["SHA256SUMS"], files["provenance.intoto.json"]
    assert subjects == files | digests
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["registry"] == "registry.example.com/team"
    first, *others = definition["resolvedDependencies"]
    assert first["digest"] == {"gitCommit": made_from.commit}
    assert {"uv.lock"} < {one["name"] for one in others}
    assert all(len(one["digest"]["sha256"]) == 64 for one in others)
    assert statement["predicate"]["runDetails"] == {"builder": {"id": "urn:builder:tests"}}


def test_a_second_build_replaces_the_files_of_the_first_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("not of a release")
    build.write({"old-1.0.tgz": b"old", build.CHECKSUMS: b"0  old-1.0.tgz\n"}, tmp_path)
    build.write({"new-1.1.tgz": b"new", build.CHECKSUMS: b"0  new-1.1.tgz\n"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "new-1.1.tgz", build.CHECKSUMS}
