"""What `make demo CLUSTER=current` decides before it creates anything."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from demo import manifests
from demo.current import command, context, facts, images, preflight
from demo.current.facts import Facts, Node, UnreachableError, node
from demo.current.footprint import Footprint
from demo.current.preflight import Bucket, RefusedError
from demo.interruptions import Drain, Evict, Target
from demo.manifests import REPOSITORY
from localcluster.images import PodPython
from support.markdown import blocks

NODES = (Node("a", True, ""), Node("b", True, ""))
FACTS = Facts("8a-1", NODES, definitions=(), forbidden=(), may_drain=True, may_evict=True, injects=True)
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def way(found: Facts) -> tuple[object, str]:
    return preflight.interruption(found, "demo=1", lambda _: None)


def test_two_schedulable_nodes_are_drained_of_the_demos_own_pods_alone() -> None:
    interruption, remark = way(FACTS)
    assert isinstance(interruption, Drain)
    assert interruption.moves
    assert interruption.title(Target("ns", "pod", "a")) == "kubectl drain a --pod-selector=demo=1"
    assert remark == ""


def test_on_one_schedulable_node_the_pod_is_evicted_and_the_reason_is_given() -> None:
    interruption, remark = way(replace(FACTS, nodes=(NODES[0], replace(NODES[1], open=False))))
    assert isinstance(interruption, Evict)
    assert not interruption.moves
    assert "a drain needs two schedulable nodes and this cluster has 1: the pod is evicted" in remark


def test_without_the_right_to_cordon_the_pod_is_evicted_and_the_reason_is_given() -> None:
    interruption, remark = way(replace(FACTS, may_drain=False))
    assert isinstance(interruption, Evict)
    assert "the right to cordon nodes" in remark


def test_without_the_right_to_evict_the_demo_refuses() -> None:
    with pytest.raises(RefusedError, match="may not create pods/eviction"):
        way(replace(FACTS, may_drain=False, may_evict=False))


def test_definitions_that_are_there_already_are_named_and_not_touched() -> None:
    there = replace(FACTS, definitions=("checkpoints.checkpoint-operator.dev",))
    with pytest.raises(RefusedError, match=r"already has checkpoints\.checkpoint-operator\.dev"):
        preflight.check(there, "kind-kind")


def test_missing_rights_are_named_with_the_context() -> None:
    limited = replace(FACTS, forbidden=("create namespaces", "create customresourcedefinitions"))
    with pytest.raises(RefusedError, match="context dev may not create namespaces, create customresourcedefinitions"):
        preflight.check(limited, "dev")


def test_a_cluster_without_a_schedulable_node_is_refused_by_the_names_of_its_nodes() -> None:
    with pytest.raises(RefusedError, match="none of the nodes a is ready"):
        preflight.check(replace(FACTS, nodes=(Node("a", False, ""),)), "dev")


@pytest.mark.parametrize(
    ("spec", "ready", "is_open"),
    [
        ({}, "True", True),
        ({}, "False", False),
        ({"unschedulable": True}, "True", False),
        ({"taints": [{"key": "gpu", "effect": "NoSchedule"}]}, "True", False),
        ({"taints": [{"key": "spot", "effect": "PreferNoSchedule"}]}, "True", True),
    ],
)
def test_a_node_counts_when_a_pod_without_tolerations_can_run_on_it(spec: object, ready: str, is_open: bool) -> None:
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    assert node({"metadata": {"name": "a"}, "spec": spec, "status": status}).open is is_open


def test_a_bucket_takes_keys_and_endpoint_from_the_environment() -> None:
    environment = KEYS | {"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_REGION": "eu-west-1"}
    assert preflight.bucket("s3://b/folder/", environment) == Bucket(
        "s3://b/folder", "http://minio:9000", "eu-west-1", KEYS
    )


def test_a_bucket_without_keys_or_of_another_scheme_is_refused() -> None:
    with pytest.raises(RefusedError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"):
        preflight.bucket("s3://b", {})
    with pytest.raises(RefusedError, match="not an S3 URL"):
        preflight.bucket("gs://b", KEYS)


@pytest.mark.parametrize(
    ("reference", "image"),
    [
        ("demo", {"repository": "demo", "tag": "latest"}),
        ("r.example:5000/demo", {"repository": "r.example:5000/demo", "tag": "latest"}),
        ("r.example:5000/demo:1", {"repository": "r.example:5000/demo", "tag": "1"}),
        ("r.example/demo@sha256:ab", {"repository": "r.example/demo", "digest": "sha256:ab"}),
    ],
)
def test_an_image_becomes_the_charts_values(reference: str, image: dict[str, str]) -> None:
    programs = images.from_image(reference)
    assert programs.operator["image"] == image
    assert programs.training.image == reference


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH holds docker, kind and minikube that write down how they were called."""
    programs, said = tmp_path / "bin", tmp_path / "said"
    programs.mkdir()
    for name in ("docker", "kind", "minikube"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {said}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(programs))
    return said


@contextmanager
def untimed(_: str) -> Iterator[None]:
    yield


def test_an_image_is_built_and_loaded_into_kind(said: Path) -> None:
    reference = images.provide("", (Node("n", True, "kind://docker/my-kind/n"),), untimed)
    lines = said.read_text().splitlines()
    assert [line.partition(" --")[0] for line in lines] == ["docker build", "docker save", "kind load image-archive"]
    assert reference in lines[0]
    assert "--name=my-kind" in lines[2]


def test_an_image_is_built_and_loaded_into_minikube(said: Path) -> None:
    images.provide("", (Node("n", True, "", (("minikube.k8s.io/name", "dev"),)),), untimed)
    assert said.read_text().splitlines()[2].startswith("minikube image load --profile=dev ")


def test_a_given_image_is_neither_built_nor_loaded(said: Path) -> None:
    assert images.provide("r.example/demo:1", NODES, untimed) == "r.example/demo:1"
    assert not said.exists()


def test_a_cluster_that_an_image_cannot_be_loaded_into_is_refused_with_the_commands_to_type(said: Path) -> None:
    with pytest.raises(images.ImageError, match="neither kind nor minikube") as refused:
        images.check(NODES)
    assert "make demo CLUSTER=current IMAGE=<registry>/checkpoint-demo:1" in str(refused.value)
    assert not said.exists()


def test_programs_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(images.ImageError, match="docker or podman and kind not found on PATH"):
        images.check((Node("n", True, "kind://docker/kind/n"),))


def test_the_dockerfile_of_the_image_exists() -> None:
    assert (REPOSITORY / images.DOCKERFILE).is_file()


def test_no_current_context_is_one_line_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(context.NoContextError) as refused:
        context.current()
    assert "\n" not in str(refused.value)
    assert "kubectl config use-context" in str(refused.value)


def test_a_cluster_that_does_not_answer_is_one_line_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {
        "current-context": "gone",
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "gone"}}],
        "clusters": [{"name": "gone", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "gone", "user": {"token": "none"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(UnreachableError, match=r"ask the cluster of context gone: .*127\.0\.0\.1:9.* Check") as refused:
        facts.gather(context.current())
    assert "\n" not in str(refused.value)


def test_an_earlier_demo_that_is_still_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = command.Request(image="demo", folder=tmp_path, yes=True)
    Footprint.fresh(request.footprint_file, context.Context("kind-kind", "https://127.0.0.1:1")).write()
    assert command.run(request) == command.REFUSED
    assert "is still in the cluster of context kind-kind. `make down CLUSTER=current` removes it." in (
        capsys.readouterr().out
    )


def test_the_commands_to_remove_a_demo_by_hand_name_all_that_it_touched(tmp_path: Path) -> None:
    footprint = Footprint(tmp_path / "f", "dev", "https://s", "demo-1", cordoned="node-1", folder="s3://b/demo-1")
    said = footprint.by_hand()
    for part in ("uncordon node-1", "uninstall demo-1", "namespace demo-1", "=demo-1", "s3://b/demo-1", "=dev"):
        assert part in said


def test_a_footprint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    footprint = Footprint(tmp_path / "f", "dev", "https://s", "demo-1", folder="s3://b/demo-1", erasure=["exec"])
    footprint.cordon("node-1")
    assert Footprint.found(tmp_path / "f") == footprint


def test_where_the_cluster_does_not_inject_pods_get_the_documented_lines() -> None:
    """docs/api.md, "Without injection"."""
    (block,) = (block for block in blocks("yaml", ["docs/api.md"]) if "CHECKPOINT_RUN" in block.text)
    documented = yaml.safe_load(block.text)["spec"]
    template = manifests.pod_template("llama", python=PodPython("i", "p", [], []), command=["train"], grace_seconds=120)
    bucket = Bucket("s3://training/llama", "https://s3.internal:9000", "eu-west-1", KEYS)
    written = manifests.written_by_hand(template, bucket.url, bucket, run="uid/ns/llama")["spec"]
    theirs, ours = ({entry["name"]: entry for entry in pod["containers"][0]["env"]} for pod in (documented, written))
    written_lines = {name for name in ours if name.startswith(("CHECKPOINT_", "TORCH_"))}
    assert written_lines <= theirs.keys()
    own = ("CHECKPOINT_RUN", "CHECKPOINT_URL")
    assert {name: ours[name] for name in written_lines - {*own}} == {
        name: theirs[name] for name in written_lines - {*own}
    }
    assert [ours[name]["value"] for name in own] == ["uid/ns/llama", "s3://training/llama"]
    assert written["containers"][0]["volumeMounts"] == documented["containers"][0]["volumeMounts"]
    assert written["volumes"] == documented["volumes"]
