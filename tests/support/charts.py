"""What Helm renders from our chart, and how tests find their way in it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from support.admission import Body

CHART = Path(__file__).parents[2] / "charts" / "checkpoint-operator"
POLICIES = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"
KINDS_KNOWN = "v1/Pod"
"""What Helm knows of any cluster that it talks to."""

Render = Callable[..., list[Body]]


class HelmError(Exception):
    """Helm refused; the message is what it said."""


class UniqueKeys(yaml.SafeLoader):
    """Refuses what YAML parsers resolve in different ways: a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice in {keys}"
        return super().construct_mapping(node, deep)


def rendered(
    helm: Path,
    scratch: Path,
    *apis: str,
    chart: Path = CHART,
    release: str = "ckpt",
    namespace: str = "operators",
    kube_version: str = "",
    **values: Any,
) -> list[Body]:
    """`helm template`: the objects from these values on a cluster that offers these APIs. Raises `HelmError`."""
    file = scratch / "values.json"
    file.write_text(json.dumps(values))
    flags = [f"--api-versions={api}" for api in apis] + [f"--kube-version={kube_version}"] * bool(kube_version)
    command = [str(helm), "template", release, str(chart), f"--namespace={namespace}", f"--values={file}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": str(scratch)})
    if done.returncode != 0:
        raise HelmError(done.stderr)
    return [document for document in yaml.load_all(done.stdout, UniqueKeys) if document]


def of_kind(objects: list[Body], kind: str) -> list[Body]:
    return [one for one in objects if one["kind"] == kind]


def operator_pod(objects: list[Body]) -> Body:
    (deployment,) = (one for one in of_kind(objects, "Deployment") if not one["metadata"]["name"].endswith("-webhook"))
    spec: Body = deployment["spec"]["template"]["spec"]
    return spec


def operator_container(objects: list[Body]) -> Body:
    container: Body
    (container,) = operator_pod(objects)["containers"]
    return container


def operator_role(objects: list[Body]) -> Body:
    (role,) = (one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"] == "ckpt-checkpoint-operator")
    return role


def rules(role: Body) -> set[tuple[str, str]]:
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
