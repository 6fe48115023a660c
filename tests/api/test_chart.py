"""The chart: what it renders from which values, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoint_operator import __main__ as operator
from checkpoint_operator.gather.endpoint_rules import Pattern
from support.admission import Body
from support.charts import CHART, HelmError, Render, of_kind, operator_container, operator_pod, rendered

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]


def test_helm_finds_nothing_to_complain_about(helm: Path, tmp_path: Path) -> None:
    subprocess.run([str(helm), "lint", "--strict", str(CHART)], check=True, env={"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": 2}, "'replicas' not allowed"),
        ({"image": {"repo": "x"}}, "'repo' not allowed"),
        ({"injection": {"mode": "Perhaps"}}, "value must be one of 'Auto', 'Policy', 'Webhook', 'Off', 'On'"),
        ({"ambientIdentity": {"allow": [{"namespace": "a"}]}}, "missing property 'prefix'"),
        ({"ambientIdentity": {"allow": [{"namespace": "a", "prefix": "file:///x"}]}}, "does not match pattern"),
        ({"ambientIdentity": {"allow": [{"namespace": "*", "prefix": "s3://x"}]}}, "does not match pattern"),
        ({"storageEndpoints": {"allow": ["ftp://host"]}}, "does not match pattern"),
        ({"watchNamespaces": "team-a"}, "got string, want array"),
        ({"metrics": {"port": 0}}, "minimum: got 0, want 1"),
        ({"nameOverride": "Ünï"}, "does not match pattern"),
        ({"fullnameOverride": "A_B"}, "does not match pattern"),
        ({"image": {"tag": "1.0+build"}}, "does not match pattern"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_unknown_and_wrong_values_are_refused(render: Render, values: Body, message: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(**values)
    assert message in str(refused.value)


def test_every_value_has_a_schema_and_nothing_else_is_admitted() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(path: str, value: Any, node: Body) -> list[str]:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if not isinstance(value, dict) or "properties" not in node:
            return []
        wrong = [f"{path}: open"] if node.get("additionalProperties") is not False else []
        wrong += [f"{path}.{name}" for name in value.keys() ^ (node["properties"].keys() - {"global"})]
        return wrong + [
            line for name in value for line in check(f"{path}.{name}", value[name], node["properties"][name])
        ]

    assert check("", values, schema) == []


def test_every_value_has_a_type_and_says_what_it_is() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def silent(path: str, node: Body) -> list[str]:
        children = node.get("properties", {}) if path.count(".") < 3 else {}
        found = [] if node.get("description") and ("type" in node or "$ref" in node) else [path]
        return found + [line for name, child in children.items() for line in silent(f"{path}.{name}", child)]

    assert [path for name, node in schema["properties"].items() for path in silent(name, node)] == []


def test_the_chart_has_the_crds_of_this_repository() -> None:
    subprocess.run([sys.executable, str(ROOT / "charts" / "sync-crds.py"), "--check"], check=True)


def test_the_crds_are_rendered_whole_and_kept(render: Render) -> None:
    rendered = {crd["metadata"]["name"]: crd for crd in of_kind(render(), "CustomResourceDefinition")}
    for path in (ROOT / "crds").glob("*.yaml"):
        source = yaml.safe_load(path.read_text())
        assert rendered[source["metadata"]["name"]]["spec"] == source["spec"]
        assert rendered[source["metadata"]["name"]]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_crds_can_be_left_out_or_let_go(render: Render) -> None:
    assert of_kind(render(crds={"enabled": False}), "CustomResourceDefinition") == []
    for crd in of_kind(render(crds={"keep": False}), "CustomResourceDefinition"):
        assert "annotations" not in crd["metadata"]


def test_the_operator_runs_once_and_without_privileges(render: Render) -> None:
    objects = render()
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert operator_pod(objects)["securityContext"]["runAsNonRoot"] is True
    assert operator_pod(objects)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert operator_container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_operator_understands_its_arguments(render: Render) -> None:
    arguments = operator_container(
        render(
            clusterId="8a-1",
            watchNamespaces=["team-a", "team-b"],
            ambientIdentity={
                "allow": [
                    {"namespace": "team-a", "prefix": "s3://training/team-a/"},
                    {"namespace": "*", "prefix": "s3://training/{namespace}/"},
                ]
            },
            storageEndpoints={"allow": ["https://*.example.com", "127.0.0.1"]},
            allowFileUrls=True,
            resyncInterval="1m",
            verification={"bytesPerSecond": "10Mi"},
            deletion={"objectsPerSecond": 100},
            quota={"default": "1Ti", "namespaces": {"team-a": "10Gi", "team-b": ""}},
            log={"format": "text"},
            extraArgs=["--verbose"],
        )
    )["args"]
    parsed = operator._parser().parse_args(arguments)
    assert vars(parsed) == {
        "namespace": ["team-a", "team-b"],
        "cluster_id": "8a-1",
        "watch_nodes": True,
        "liveness": "http://:8080/healthz",
        "metrics": ("", 9090),
        "resync": 60.0,
        "verify_rate": 10 * 1024 * 1024,
        "delete_rate": 100,
        "quota": [("*", 1 << 40), ("team-a", 10 << 30), ("team-b", 0)],
        "ambient_allow": [("team-a", "s3://training/team-a"), ("*", "s3://training/{namespace}")],
        "endpoint_allow": [Pattern("https", "*.example.com", None), Pattern("", "127.0.0.1", None)],
        "allow_file_urls": True,
        "log_format": "text",
        "verbose": True,
    }


@pytest.mark.parametrize("rate", [0, "0", 500_000_000, "500M"])
def test_the_rate_of_reading_back_is_a_number_or_a_quantity(render: Render, rate: int | str) -> None:
    arguments = operator_container(render(verification={"bytesPerSecond": rate}))["args"]
    assert operator._parser().parse_args(arguments).verify_rate in (0, 500_000_000)


def test_by_default_the_operator_may_use_its_own_identity_nowhere(render: Render) -> None:
    arguments = operator_container(render())["args"]
    parsed = operator._parser().parse_args(arguments)
    assert (parsed.ambient_allow, parsed.allow_file_urls, parsed.namespace) == ([], False, [])


POD_FIELDS: dict[str, tuple[Any, str]] = {
    "dnsConfig": ({"options": [{"name": "ndots", "value": "2"}]}, "dnsConfig"),
    "hostAliases": ([{"ip": "10.0.0.7", "hostnames": ["s3.internal"]}], "hostAliases"),
    "runtimeClassName": ("sandbox", "runtimeClassName"),
    "topologySpreadConstraints": (
        [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "topologySpreadConstraints",
    ),
}
"""Values that are fields of the pod as they are."""


def test_pods_can_be_shaped_for_any_cluster(render: Render) -> None:
    extra = {"name": "python", "hostPath": {"path": "/opt/python"}}
    mount = {"name": "python", "mountPath": "/opt/python"}
    objects = render(
        image={"repository": "mirror/operator", "digest": "sha256:" + "0" * 64},
        imagePullSecrets=[{"name": "mirror"}],
        command=["python", "-m", "checkpoint_operator"],
        extraEnv=[{"name": "A", "value": "b"}],
        extraVolumes=[extra],
        extraVolumeMounts=[mount],
        hostNetwork=True,
        nodeSelector={"pool": "system"},
        tolerations=[{"operator": "Exists"}],
        affinity={"nodeAffinity": {}},
        priorityClassName="system-cluster-critical",
        serviceAccount={"annotations": {"cloud/role": "r"}},
        podLabels={"team": "ml"},
        podAnnotations={"scrape": "yes"},
        deploymentAnnotations={"change": "7"},
        revisionHistoryLimit=2,
        **{name: value for name, (value, _) in POD_FIELDS.items()},
        metrics={"port": 9999, "service": {"enabled": True}},
    )
    shape, container = operator_pod(objects), operator_container(objects)
    assert container["image"] == "mirror/operator@sha256:" + "0" * 64
    assert container["command"] == ["python", "-m", "checkpoint_operator"]
    assert container["env"] == [{"name": "A", "value": "b"}]
    assert extra in shape["volumes"]
    assert mount in container["volumeMounts"]
    assert (shape["hostNetwork"], shape["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert shape["nodeSelector"] == {"pool": "system"}
    assert shape["tolerations"] == [{"operator": "Exists"}]
    assert shape["affinity"] == {"nodeAffinity": {}}
    assert shape["priorityClassName"] == "system-cluster-critical"
    assert shape["imagePullSecrets"] == [{"name": "mirror"}]
    (account,) = of_kind(objects, "ServiceAccount")
    assert account["metadata"]["annotations"] == {"cloud/role": "r"}
    (service,) = of_kind(objects, "Service")
    assert service["spec"]["ports"] == [{"name": "metrics", "port": 9999, "targetPort": "metrics"}]
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "ml"
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"scrape": "yes"}
    assert (deployment["metadata"]["annotations"], deployment["spec"]["revisionHistoryLimit"]) == ({"change": "7"}, 2)
    assert {name: shape[field] for name, (_, field) in POD_FIELDS.items()} == {
        name: value for name, (value, _) in POD_FIELDS.items()
    }


LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def all_labels(objects: list[Body]) -> Iterator[dict[str, str]]:
    for one in objects:
        template = one.get("spec", {}).get("template", {}).get("metadata", {})
        yield from (one["metadata"].get("labels", {}), template.get("labels", {}))


@pytest.mark.parametrize("version", ["0.1.0+build.7", "1.2.3-" + "a" * 80, "1.2.3-rc." + "x" * 40 + "-+" + "y" * 30])
def test_any_version_makes_valid_labels_and_tags(helm: Path, tmp_path: Path, version: str) -> None:
    copy = tmp_path / "chart"
    shutil.copytree(CHART, copy)
    described = yaml.safe_load((copy / "Chart.yaml").read_text())
    (copy / "Chart.yaml").write_text(yaml.safe_dump({**described, "version": version, "appVersion": version}))
    objects = rendered(helm, tmp_path, chart=copy)
    for labels in all_labels(objects):
        assert [value for value in labels.values() if not LABEL.fullmatch(value)] == []
    _, _, tag = operator_container(objects)["image"].partition(":")
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag)


@pytest.mark.parametrize(
    "values",
    [
        {"nameOverride": "n" * 63},
        {"fullnameOverride": "f" * 63},
        {"release": "r" * 53},
        {"release": "0123"},
        {"commonLabels": {"team": "ml", "app.kubernetes.io/name": "other", "helm.sh/chart": "mine"}},
        {"podLabels": {"team": "ml", "app.kubernetes.io/instance": "other", "app.kubernetes.io/version": "mine"}},
        {
            "metrics": {
                name: {"enabled": True, "labels": {"app.kubernetes.io/name": "x"}} for name in ("podMonitor", "rules")
            }
        },
    ],
    ids="-".join,
)
def test_names_and_labels_of_a_users_choice_break_no_selector(render: Render, values: Body) -> None:
    """The fixture refuses keys that stand twice."""
    objects = render(**values)
    for labels in all_labels(objects):
        assert [value for value in labels.values() if not isinstance(value, str) or not LABEL.fullmatch(value)] == []
    assert [one["metadata"]["name"] for one in objects if len(one["metadata"]["name"]) > 63] == []
    (deployment,) = of_kind(objects, "Deployment")
    pod_labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod_labels.items()
    if "commonLabels" in values:
        assert all(one["metadata"]["labels"]["team"] == "ml" for one in objects)
        assert pod_labels["helm.sh/chart"] == "mine"


def test_long_names_that_differ_at_their_ends_stay_different(render: Render) -> None:
    names = {operator_role_names(render(release="r" * 52 + ending)) for ending in "ab"}
    assert len(names) == 2


def operator_role_names(objects: list[Body]) -> str:
    return " ".join(one["metadata"]["name"] for one in of_kind(objects, "ClusterRole"))


def test_a_platform_that_chooses_the_user_itself_may(render: Render) -> None:
    """As OpenShift does, by namespace."""
    values = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None}}
    assert operator_pod(render(**values))["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({"image": {"registry": "mirror.example.com"}}, "mirror.example.com/checkpoint-operator:0.1.0"),
        ({"global": {"imageRegistry": "mirror.example.com/hub/"}}, "mirror.example.com/hub/checkpoint-operator:0.1.0"),
        ({"global": {"imageRegistry": "a"}, "image": {"registry": "b"}}, "a/checkpoint-operator:0.1.0"),
        ({"image": {"repository": "docker.io/team/operator", "tag": "7"}}, "docker.io/team/operator:7"),
    ],
    ids=["registry", "global", "both", "neither"],
)
def test_the_image_comes_from_the_registry_of_choice(render: Render, values: Body, image: str) -> None:
    objects = render(**values)
    assert operator_container(objects)["image"] == image
    assert of_kind(objects, "Pod")[0]["spec"]["containers"][0]["image"] == image


MONITORING = {"podMonitor": {"enabled": True}, "rules": {"enabled": True}, "dashboard": {"enabled": True}}


def test_monitoring_is_there_when_asked_for(render: Render) -> None:
    assert not {"PodMonitor", "PrometheusRule", "ConfigMap"} & {one["kind"] for one in render()}
    objects = render(metrics={**MONITORING, "rules": {"enabled": True, "labels": {"release": "prometheus"}}})
    (monitor,) = of_kind(objects, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for port in operator_container(objects)["ports"]]
    assert endpoint["honorLabels"] is True
    (deployment,) = of_kind(objects, "Deployment")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (rules,) = of_kind(objects, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert rules["metadata"]["labels"]["release"] == "prometheus"
    (dashboard,) = of_kind(objects, "ConfigMap")
    (panels,) = dashboard["data"].values()
    assert json.loads(panels) == json.loads((CHART / "files" / "dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_network_policy_lets_only_scrapers_in(render: Render) -> None:
    assert of_kind(render(), "NetworkPolicy") == []
    (policy,) = of_kind(render(networkPolicy={"enabled": True}), "NetworkPolicy")
    assert (policy["spec"]["policyTypes"], policy["spec"].get("ingress")) == (["Ingress"], None)
    scrapers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    egress = [{"ports": [{"port": 443}]}]
    values = {"enabled": True, "metricsFrom": scrapers, "egress": egress}
    (policy,) = of_kind(render(networkPolicy=values), "NetworkPolicy")
    assert policy["spec"]["ingress"] == [{"from": scrapers, "ports": [{"port": "metrics", "protocol": "TCP"}]}]
    assert (policy["spec"]["policyTypes"], policy["spec"]["egress"]) == (["Ingress", "Egress"], egress)


def test_no_budget_stands_in_the_way_of_a_drain(render: Render) -> None:
    """The operator is one pod, which may be away: a budget for it could only ever say no."""
    assert of_kind(render(), "PodDisruptionBudget") == []
