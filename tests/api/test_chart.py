"""The chart: what it renders from which values, what it refuses, and what installing and uninstalling it does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoint_operator import __main__ as operator
from checkpoint_operator.gather.endpoint_rules import Pattern
from localcluster import controlplane, network, workspace
from localcluster.client import ApiServer, CommandError
from support.admission import Body, Namespace, checkpoint, eventually, pod

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "checkpoint-operator"
POLICIES = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"

KINDS_KNOWN = "v1/Pod"
"""What Helm knows of any cluster that it talks to."""

TIME = "2026-11-24T10:00:00Z"

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


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Render:
    return partial(rendered, helm, tmp_path)


def of_kind(objects: list[Body], kind: str) -> list[Body]:
    return [one for one in objects if one["kind"] == kind]


def operator_pod(objects: list[Body]) -> Body:
    (deployment,) = of_kind(objects, "Deployment")
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


def test_helm_finds_nothing_to_complain_about(helm: Path, tmp_path: Path) -> None:
    subprocess.run([str(helm), "lint", "--strict", str(CHART)], check=True, env={"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": 2}, "'replicas' not allowed"),
        ({"image": {"repo": "x"}}, "'repo' not allowed"),
        ({"injection": {"mode": "Perhaps"}}, "value must be one of 'Auto', 'On', 'Off'"),
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


def test_rights_are_per_namespace_where_namespaces_are_named(render: Render) -> None:
    everywhere = operator_role(render(clusterId="c"))
    objects = render(
        clusterId="c",
        watchNamespaces=["team-a", "team-b"],
        rbac={"aggregate": False},
        nodeNotices={"enabled": False},
    )
    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == []
    ours = [role for role in of_kind(objects, "Role") if role["metadata"]["name"] == "ckpt-checkpoint-operator"]
    roles = {role["metadata"]["namespace"]: role for role in ours}
    assert {namespace: rules(role) for namespace, role in roles.items()} == dict.fromkeys(
        ["team-a", "team-b"], rules(everywhere)
    )
    for binding in of_kind(objects, "RoleBinding"):
        (subject,) = binding["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": "ckpt-checkpoint-operator", "namespace": "operators"}


def test_a_user_with_rights_in_namespaces_only_can_install_it(render: Render) -> None:
    off = {"mode": "Off"}
    objects = render(
        clusterId="c",
        watchNamespaces=["team-a"],
        crds={"enabled": False},
        rbac={"aggregate": False},
        nodeNotices={"enabled": False},
        injection=off,
        guardrails=off,
    )
    assert {one["metadata"].get("namespace") for one in objects} == {"operators", "team-a"}


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["everywhere", "per-namespace"])
@pytest.mark.parametrize("enabled", [True, False])
def test_nodes_are_watched_only_with_the_right_to_it(render: Render, enabled: bool, namespaces: list[str]) -> None:
    objects = render(nodeNotices={"enabled": enabled}, watchNamespaces=namespaces)
    found = [role for role in of_kind(objects, "ClusterRole") if role["metadata"]["name"].endswith("-nodes")]
    assert [role["rules"] for role in found] == [
        [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    ] * enabled
    bound = [each["roleRef"]["name"] for each in of_kind(objects, "ClusterRoleBinding")]
    named = "ckpt-checkpoint-operator-operators-nodes" if namespaces else "ckpt-checkpoint-operator-nodes"
    assert (named in bound) == enabled
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert ("--watch-nodes" in container["args"]) == enabled


def test_pods_are_created_deleted_and_evicted_only_when_that_is_switched_on(render: Render) -> None:
    def verbs(**reschedule: bool) -> set[tuple[str, str]]:
        role = operator_role(render(reschedule=reschedule))
        return {(resource, verb) for resource, verb in rules(role) if resource.startswith("pods")}

    read = {("pods", "get"), ("pods", "list"), ("pods", "watch")}
    assert verbs() == read
    assert verbs(recreateBarePods=True) == read | {("pods", "create"), ("pods", "delete")}
    assert verbs(restartGang=True) == read | {("pods/eviction", "create")}


def test_the_operator_reads_the_cluster_id_where_helm_could_not(render: Render) -> None:
    def roles(**values: Any) -> list[Body]:
        return [role for role in of_kind(render(**values), "Role") if role["metadata"]["namespace"] == "kube-system"]

    (role,) = roles()
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]}
    ]
    assert roles(clusterId="c") == []


GUARDS = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"


@pytest.mark.parametrize(
    ("mode", "offered", "injects"),
    [("Auto", True, True), ("Auto", False, False), ("On", False, True), ("Off", True, False)],
)
def test_injection_follows_the_cluster_unless_told(render: Render, mode: str, offered: bool, injects: bool) -> None:
    objects = render(
        KINDS_KNOWN, *([POLICIES] if offered else []), injection={"mode": mode}, guardrails={"mode": "Off"}
    )
    assert bool(of_kind(objects, "MutatingAdmissionPolicy")) == injects
    assert bool(of_kind(objects, "ValidatingAdmissionPolicyBinding")) == injects


@pytest.mark.parametrize(
    ("mode", "offered", "guards"),
    [("Auto", True, True), ("Auto", False, False), ("On", False, True), ("Off", True, False)],
)
def test_guardrails_follow_the_cluster_unless_told(render: Render, mode: str, offered: bool, guards: bool) -> None:
    values: Body = {"guardrails": {"mode": mode}, "injection": {"mode": "Off"}, "watchNamespaces": ["team-a"]}
    objects = render(KINDS_KNOWN, *[GUARDS] * offered, **values)
    policies = of_kind(objects, "ValidatingAdmissionPolicy")
    assert [policy["metadata"]["name"] for policy in policies] == [
        "ckpt-checkpoint-operator-operators-guardrails"
    ] * guards
    for policy in policies:
        (chosen,) = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
        assert chosen["values"] == ["team-a"]


def test_away_from_the_cluster_its_version_decides_and_never_in_silence(render: Render) -> None:
    assert of_kind(render(kube_version="1.36.1"), "MutatingAdmissionPolicy") != []
    assert of_kind(render(kube_version="1.36.1"), "ValidatingAdmissionPolicy") != []
    with pytest.raises(HelmError, match=r"Set injection\.mode to On or Off, or pass the version of your cluster"):
        render(kube_version="1.35.3")
    assert of_kind(render(kube_version="1.35.3", injection={"mode": "Off"}), "MutatingAdmissionPolicy") == []
    assert of_kind(render(kube_version="1.35.3", injection={"mode": "On"}), "MutatingAdmissionPolicy") != []


def test_what_is_rendered_away_from_the_cluster_is_what_is_installed(chart: ApiServer, render: Render) -> None:
    manifest = chart.helm("get", "manifest", "ckpt", "--namespace=operators")
    installed = [one for one in yaml.load_all(manifest, UniqueKeys) if one]
    tests = {one["metadata"]["name"] for one in render() if "helm.sh/hook" in one["metadata"].get("annotations", {})}
    away = [one for one in render(clusterId=chart.uid) if one["metadata"]["name"] not in tests]
    order = [(one["kind"], one["metadata"]["name"]) for one in away]
    assert sorted(order) == sorted((one["kind"], one["metadata"]["name"]) for one in installed)
    for one in installed:
        assert one == away[order.index((one["kind"], one["metadata"]["name"]))]


def test_injection_is_for_the_namespaces_that_are_served(render: Render) -> None:
    (policy,) = of_kind(render(injection={"mode": "On"}, watchNamespaces=["team-a"]), "MutatingAdmissionPolicy")
    assert policy["spec"]["matchConstraints"]["namespaceSelector"] == {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}]
    }


def test_installing_tells_the_next_commands(chart: ApiServer) -> None:
    notes = chart.helm("get", "notes", "ckpt", "--namespace=operators")
    assert "serves all namespaces" in notes
    assert "kubectl wait --for=condition=Ready ckpt/my-run" in notes
    assert "NOTE:" not in notes


def test_helm_asks_the_cluster_for_its_id(chart: ApiServer) -> None:
    manifest = list(yaml.safe_load_all(chart.helm("get", "manifest", "ckpt", "--namespace=operators")))
    assert f"--cluster-id={chart.uid}" in operator_container(manifest)["args"]
    assert of_kind(manifest, "Role") == []


def test_upgrading_changes_nothing_by_itself(chart: ApiServer) -> None:
    before = chart.helm("get", "manifest", "ckpt", "--namespace=operators")
    chart.helm("upgrade", "ckpt", str(CHART), "--namespace=operators")
    assert chart.helm("get", "manifest", "ckpt", "--namespace=operators") == before


def test_uninstalling_keeps_the_resources_and_stops_injecting(served: Namespace) -> None:
    """A second release beside the first one: the CRDs are those of the first, everything else has its own name."""
    served.create(checkpoint())
    served.api.helm("install", "second", str(CHART), "--namespace=second", "--create-namespace")
    served.api.helm("uninstall", "second", "--namespace=second")
    assert served.kubectl("get", "ckpt", "--output=name").split() == ["checkpoint.checkpoint-operator.dev/run"]
    left = served.api.kubectl("get", "mutatingadmissionpolicies", "--output=name")
    assert "second" not in left


def test_releases_of_one_name_serve_parts_of_a_cluster_side_by_side(chart: ApiServer) -> None:
    for part in ("part-a", "part-b"):
        chart.kubectl("create", "namespace", f"{part}-team")
        namespaces = ("--create-namespace", f"--set=watchNamespaces={{{part}-team}}")
        chart.helm("install", "ckpt", str(CHART), f"--namespace={part}", *namespaces)
    named = chart.kubectl("get", "clusterroles", "--output=name")
    for part in ("part-a", "part-b"):
        assert f"ckpt-checkpoint-operator-{part}-nodes" in named
        chart.helm("uninstall", "ckpt", f"--namespace={part}")


INSTALLER = [
    {"apiGroups": [""], "resources": ["secrets", "serviceaccounts", "configmaps"], "verbs": ["*"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["*"]},
    {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["*"]},
    {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": ["checkpoint-operator.dev"], "resources": ["checkpoints"], "verbs": ["get", "list"]},
]


def test_with_a_cluster_id_no_rule_reads_kube_system(chart: ApiServer) -> None:
    metadata = {"name": "installer"}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata}
    chart.kubectl("apply", "--filename=-", stdin=json.dumps({**role, "rules": INSTALLER}))
    chart.kubectl("create", "clusterrolebinding", "installer", "--clusterrole=installer", "--user=installer")
    chart.kubectl("create", "namespace", "limited")
    install = ("install", "limited", str(CHART), "--namespace=limited", "--kube-as-user=installer")
    with pytest.raises(CommandError, match='namespaces "kube-system" is forbidden'):
        chart.helm(*install)
    chart.helm(*install, "--set=clusterId=8a-1")
    chart.helm("uninstall", "limited", "--namespace=limited")


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


@pytest.fixture
def unserved(api_server: ApiServer, render: Render) -> Iterator[Namespace]:
    """A namespace on an API server of its own, whose policies were rendered by a Helm that could not ask it."""
    with workspace.temporary("unserved") as place:
        server = controlplane.start(place, network.free_ports()).api
        server.kubectl("apply", f"--filename={ROOT / 'crds'}")
        server.kubectl("wait", "crd", "--for=condition=Established", "--all", "--timeout=30s")
        policies = [one for one in render(POLICIES) if "AdmissionPolicy" in one["kind"]]
        server.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(policies))
        yield Namespace.fresh(server)


def test_without_a_cluster_id_pods_wait_for_the_claim(unserved: Namespace) -> None:
    """The identity then comes from the status, and is never that of another run, even one of the same name."""
    unserved.create(checkpoint())

    def claim(owner: str, reason: str) -> None:
        ready = {"type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": TIME}
        status = {"claimedBy": owner, "conditions": [ready]}
        unserved.patch("ckpt", "run", {"status": status}, "--subresource=status")

    run = f"{unserved.name}/run"
    assert f'"run" with a claimed prefix in namespace "{unserved.name}" yet' in unserved.denied(pod())
    for owner, reason in ((f"8a-1/{run}", "PrefixClaimed"), ("8a-1/other/run", "Configured")):
        claim(owner, reason)
        with pytest.raises(AssertionError):
            eventually(lambda: unserved.refusal(pod()), lambda refusal: refusal == "", timeout_seconds=2)
    claim(f"8a-1/{run}", "StoreUnavailable")
    (container,) = unserved.admitted(pod())["containers"]
    assert {"name": "CHECKPOINT_RUN", "value": f"8a-1/{run}"} in container["env"]


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


def test_a_restricted_namespace_admits_the_operator_and_its_test(chart: ApiServer, render: Render) -> None:
    name = "restricted"
    chart.kubectl("create", "namespace", name)
    chart.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    chart.kubectl("create", "serviceaccount", "default", f"--namespace={name}")
    place = Namespace(chart, name)
    objects = render()
    (test,) = of_kind(objects, "Pod")
    for template in (operator_pod(objects), test["spec"]):
        spec = {**template, "serviceAccountName": "default", "automountServiceAccountToken": False}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": spec}
        assert place.refusal(body) == ""
        assert "restricted" in place.refusal({**body, "spec": {**spec, "securityContext": {}}})


PLACEMENT = {
    "priorityClassName": "important",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"operator": "Exists"}],
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
}


def test_the_pod_of_helm_test_runs_where_the_operator_runs_and_is_not_taken_for_it(render: Render) -> None:
    objects = render(**PLACEMENT)
    (test,) = of_kind(objects, "Pod")
    (container,) = test["spec"]["containers"]
    for name in ("priorityClassName", "nodeSelector", "tolerations", "imagePullSecrets", "serviceAccountName"):
        assert test["spec"][name] == operator_pod(objects)[name]
    for name in ("image", "env", "securityContext", "resources"):
        assert container[name] == operator_container(objects)[name]
    (deployment,) = of_kind(objects, "Deployment")
    assert not deployment["spec"]["selector"]["matchLabels"].items() <= test["metadata"]["labels"].items()


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a", "team-b"]}, {"nodeNotices": {"enabled": False}}])
def test_helm_test_asks_for_the_rights_that_the_chart_gives(render: Render, values: Body) -> None:
    objects = render(**values)
    (test,) = of_kind(objects, "Pod")
    arguments = test["spec"]["containers"][0]["args"]
    asked = [json.loads(one.removeprefix("--rules=")) for one in arguments if one.startswith("--rules=")]
    everywhere = [one.removeprefix("--cluster-rules=") for one in arguments if one.startswith("--cluster-rules=")]
    roles = {(one["kind"], one["metadata"]["name"]): one for one in objects if one["kind"] in ("Role", "ClusterRole")}
    kind = "Role" if "watchNamespaces" in values else "ClusterRole"
    assert asked == [roles[kind, "ckpt-checkpoint-operator"]["rules"]]
    part = "-operators" if "watchNamespaces" in values else ""
    nodes = roles.get(("ClusterRole", f"ckpt-checkpoint-operator{part}-nodes"), {"rules": None})["rules"]
    assert [json.loads(one) for one in everywhere] == ([nodes] if nodes else [])
    namespaces = [one for one in arguments if one.startswith("--namespace=")]
    assert namespaces == [f"--namespace={name}" for name in values.get("watchNamespaces", [])]


def test_helm_test_brings_no_roles_where_the_chart_may_make_none(render: Render) -> None:
    objects = render(rbac={"create": False})
    assert {one["kind"] for one in objects} & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} == set()
    assert len(of_kind(objects, "Pod")) == 1


def test_no_budget_stands_in_the_way_of_a_drain(render: Render) -> None:
    """The operator is one pod, which may be away: a budget for it could only ever say no."""
    assert of_kind(render(), "PodDisruptionBudget") == []
