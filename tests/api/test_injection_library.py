"""The library from an image: what labelled pods get beside their own image, on a real API server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoint_sidecar.core import environment
from localcluster.client import ApiServer
from support.admission import Body, Namespace, checkpoint, eventually, pod
from support.charts import POLICIES, Render, of_kind, rendered
from support.webhooks import running

pytestmark = pytest.mark.api

NAME = "checkpoint-operator-library"
PATH = f"{environment.LIBRARY_MOUNT}/python"
MOUNT = {"name": NAME, "mountPath": environment.LIBRARY_MOUNT, "readOnly": True}
IMAGE = "registry.example.com/checkpoint-library:0.1.0"


@pytest.fixture(scope="module", params=["Image", "EmptyDir"])
def volume(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=["Policy", "Webhook"])
def supplied(
    request: pytest.FixtureRequest, helm: Path, volume: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Namespace]:
    """A namespace whose pods get the library, by a release for this namespace beside the one for the whole cluster."""
    by_policy = request.param == "Policy"
    api: ApiServer = request.getfixturevalue("policies" if by_policy else "webhook_chart")
    if volume == "Image" and int(api.get("/version")["minor"]) < 35:
        pytest.skip("this API server does not know volumes that are images")
    namespace = Namespace.fresh(api)
    library = {"enabled": True, "volume": volume, "image": {"registry": "registry.example.com"}}
    values: dict[str, Any] = {"injection": {"mode": request.param, "library": library}, "guardrails": {"mode": "Off"}}
    values |= {"watchNamespaces": [namespace.name], "clusterId": api.uid, "crds": {"enabled": False}}
    values |= {"rbac": {"aggregate": False}, "nodeNotices": {"enabled": False}}
    scratch = tmp_path_factory.mktemp("library")
    release = volume.lower()
    objects = rendered(helm, scratch, release=release, kube_version="1.36.0" if by_policy else "1.28.0", **values)
    wanted = yaml.safe_dump_all(one for one in objects if not by_policy or "AdmissionPolicy" in one["kind"])
    api.kubectl("apply", "--filename=-", stdin=wanted)
    with contextlib.ExitStack() as opened:
        opened.callback(api.kubectl, "delete", "--filename=-", "--ignore-not-found", stdin=wanted)
        if not by_policy:
            opened.enter_context(running(api, scratch, name=f"{release}-checkpoint-operator-webhook"))
        namespace.create(checkpoint())
        eventually(lambda: namespace.refusal(pod()), lambda refusal: refusal == "")
        eventually(lambda: namespace.create(pod(), dry_run=True)["spec"], lambda spec: NAME in str(spec))
        yield namespace


def python_path(container: Body) -> list[Body]:
    return [entry for entry in container.get("env", ()) if entry["name"] == "PYTHONPATH"]


def containers(*env: Body) -> list[Body]:
    return [{"name": "main", "image": "i", "env": [*env]}]


def test_a_labelled_pod_gets_the_library(supplied: Namespace, volume: str) -> None:
    spec = supplied.admitted(pod())
    (container,) = spec["containers"]
    assert container["volumeMounts"] == [MOUNT]
    assert python_path(container) == [{"name": "PYTHONPATH", "value": PATH}]
    if volume == "Image":
        assert spec["volumes"] == [{"name": NAME, "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}}]
        assert "initContainers" not in spec
    else:
        assert spec["volumes"] == [{"name": NAME, "emptyDir": {}}]
        (copier,) = spec["initContainers"]
        assert (copier["name"], copier["image"]) == (NAME, IMAGE)
        assert copier["volumeMounts"] == [{"name": NAME, "mountPath": environment.LIBRARY_MOUNT}]
        assert "env" not in copier, "what copies files needs neither identity nor credentials"


def test_the_pods_own_path_comes_first(supplied: Namespace) -> None:
    own = {"name": "PYTHONPATH", "value": "/work:$(EXTRA)"}
    (container,) = supplied.admitted(pod(containers=containers({"name": "LR", "value": "0.1"}, own)))["containers"]
    assert container["env"][-2:] == [{"name": "LR", "value": "0.1"}, own | {"value": f"/work:$(EXTRA):{PATH}"}]
    assert len(python_path(container)) == 1


@pytest.mark.parametrize("own", [{}, {"value": ""}, {"value": PATH}], ids=["none", "empty", "injected"])
def test_an_empty_path_does_not_become_the_working_directory(supplied: Namespace, own: Body) -> None:
    (container,) = supplied.admitted(pod(containers=containers({"name": "PYTHONPATH", **own})))["containers"]
    assert python_path(container) == [{"name": "PYTHONPATH", "value": PATH}]


def test_a_path_that_is_not_in_the_pod_is_left_alone(supplied: Namespace) -> None:
    own = {"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "paths", "key": "python"}}}
    (container,) = supplied.admitted(pod(containers=containers(own)))["containers"]
    assert python_path(container) == [own]


def test_the_annotation_keeps_the_library_out_and_nothing_else(supplied: Namespace) -> None:
    supplied.admitted(pod())
    body = pod()
    body["metadata"]["annotations"] = {environment.LIBRARY_ANNOTATION: "false"}
    spec = supplied.admitted(body)
    assert NAME not in str(spec)
    assert python_path(spec["containers"][0]) == []
    assert environment.RUN in {entry["name"] for entry in spec["containers"][0]["env"]}


def test_it_stands_beside_the_credentials_and_what_the_pod_has(supplied: Namespace) -> None:
    supplied.create(checkpoint("keyed", storage={"url": "s3://bucket/keyed", "credentialsSecret": {"name": "keys"}}))
    data = {"name": "data", "mountPath": "/data"}
    body = pod("keyed", volumes=[{"name": "data", "emptyDir": {}}])
    body["spec"]["containers"][0]["volumeMounts"] = [data]
    spec = supplied.admitted(body)
    assert {one["name"] for one in spec["volumes"]} == {"data", "checkpoint-operator-credentials", NAME}
    mounts = spec["containers"][0]["volumeMounts"]
    assert mounts[0] == data
    assert MOUNT in mounts
    assert [one["mountPath"] for one in mounts].count(environment.CREDENTIALS_MOUNT) == 1
    assert len(mounts) == 3


def test_init_containers_have_it_if_the_annotation_lists_them(supplied: Namespace, volume: str) -> None:
    init = [{"name": "prepare", "image": "i"}, {"name": "sync", "image": "i", "restartPolicy": "Always"}]
    spec = supplied.admitted(pod(annotation="main, sync", initContainers=init))
    copiers = [NAME] if volume == "EmptyDir" else []
    assert [one["name"] for one in spec["initContainers"]] == [*copiers, "prepare", "sync"]
    assert [len(python_path(one)) for one in spec["initContainers"][-2:]] == [0, 1]
    assert [MOUNT in one.get("volumeMounts", ()) for one in spec["initContainers"][-2:]] == [False, True]


def test_injecting_twice_is_injecting_once(supplied: Namespace) -> None:
    once = supplied.admitted(pod())
    assert supplied.admitted(pod(**once)) == once


def test_a_pod_stays_in_its_class_of_service(supplied: Namespace) -> None:
    most = {"cpu": "8", "memory": "16Gi"}
    body = pod(containers=[{"name": "main", "image": "i", "resources": {"requests": most, "limits": most}}])
    supplied.admitted(body)
    assert supplied.create(body, dry_run=True)["status"]["qosClass"] == "Guaranteed"


def test_a_restricted_namespace_admits_the_pods(supplied: Namespace) -> None:
    supplied.admitted(pod())
    supplied.api.kubectl("label", "namespace", supplied.name, "pod-security.kubernetes.io/enforce=restricted")
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    main = {"name": "main", "image": "i", "securityContext": security}
    user = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    try:
        eventually(lambda: supplied.refusal(pod()), lambda refusal: "violates PodSecurity" in refusal)
        supplied.admitted(pod(containers=[main], securityContext=user))
    finally:
        supplied.api.kubectl("label", "namespace", supplied.name, "pod-security.kubernetes.io/enforce-")


def policy(objects: list[Body]) -> str:
    (found,) = of_kind(objects, "MutatingAdmissionPolicy")
    return str(found)


def test_without_being_asked_for_it_is_nowhere(render: Render) -> None:
    assert "library" not in policy(render(POLICIES)).lower()


@pytest.mark.parametrize(
    ("version", "volume", "mounted"),
    [("1.35.9", "Auto", False), ("1.36.0", "Auto", True), ("1.30.0", "Image", True), ("1.37.0", "EmptyDir", False)],
)
def test_images_are_mounted_where_every_version_can(render: Render, version: str, volume: str, mounted: bool) -> None:
    injection = {"mode": "On", "library": {"enabled": True, "volume": volume}}
    found = policy(render(POLICIES, kube_version=version, injection=injection))
    assert ('"reference": dyn("checkpoint-library:0.1.0")' in found) == mounted
    assert ("/spec/initContainers/0" in found) == (not mounted)


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({"digest": f"sha256:{'0' * 64}"}, f"hub.example.com/checkpoint-library@sha256:{'0' * 64}"),
        ({"repository": "team/library", "tag": "7"}, "hub.example.com/team/library:7"),
    ],
)
def test_the_image_is_that_of_choice(render: Render, image: Body, reference: str) -> None:
    registry = {"global": {"imageRegistry": "hub.example.com/"}}
    injection = {"mode": "On", "library": {"enabled": True, "image": image}}
    assert f'dyn("{reference}")' in policy(render(POLICIES, injection=injection, **registry))


def test_a_platform_may_choose_the_user_and_the_resources(render: Render) -> None:
    library = {
        "enabled": True,
        "volume": "EmptyDir",
        "resources": {"requests": None, "limits": {"cpu": "1", "memory": None}},
        "securityContext": {"runAsUser": None, "runAsGroup": None},
    }
    found = policy(render(POLICIES, injection={"mode": "On", "library": library}))
    assert "runAsUser" not in found
    assert '"limits": dyn({"cpu": dyn("1")})' in found
