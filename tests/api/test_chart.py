"""The chart: what it renders from which values, what it refuses, and what installing and uninstalling it does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from admission import Body, Namespace, checkpoint, eventually, pod
from checkpoint_operator import __main__ as operator
from checkpoint_operator.endpoints import Pattern
from localcluster import controlplane, network, workspace
from localcluster.client import ApiServer

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "checkpoint-operator"
POLICIES = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"

TIME = "2026-11-24T10:00:00Z"

Render = Callable[..., list[Body]]


class HelmError(Exception):
    """Helm refused; the message is what it said."""


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Render:
    """`helm template`: the objects from these values on a cluster that offers these APIs."""

    def run(*apis: str, **values: Any) -> list[Body]:
        file = tmp_path / "values.json"
        file.write_text(json.dumps(values))
        offered = [f"--api-versions={api}" for api in apis]
        command = [str(helm), "template", "ckpt", str(CHART), "--namespace=operators", f"--values={file}", *offered]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)})
        if done.returncode != 0:
            raise HelmError(done.stderr)
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return run


def of_kind(objects: list[Body], kind: str) -> list[Body]:
    return [one for one in objects if one["kind"] == kind]


def operator_pod(objects: list[Body]) -> Body:
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]["spec"]


def operator_container(objects: list[Body]) -> Body:
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


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["everywhere", "per-namespace"])
@pytest.mark.parametrize("enabled", [True, False])
def test_nodes_are_watched_only_with_the_right_to_it(render: Render, enabled: bool, namespaces: list[str]) -> None:
    objects = render(nodeNotices={"enabled": enabled}, watchNamespaces=namespaces)
    found = [role for role in of_kind(objects, "ClusterRole") if role["metadata"]["name"].endswith("-nodes")]
    assert [role["rules"] for role in found] == [
        [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    ] * enabled
    bound = [each["roleRef"]["name"] for each in of_kind(objects, "ClusterRoleBinding")]
    assert ("ckpt-checkpoint-operator-nodes" in bound) == enabled
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


@pytest.mark.parametrize(
    ("mode", "offered", "injects"),
    [("Auto", True, True), ("Auto", False, False), ("On", False, True), ("Off", True, False)],
)
def test_injection_follows_the_cluster_unless_told(render: Render, mode: str, offered: bool, injects: bool) -> None:
    objects = render(*([POLICIES] if offered else []), injection={"mode": mode})
    assert bool(of_kind(objects, "MutatingAdmissionPolicy")) == injects
    assert bool(of_kind(objects, "ValidatingAdmissionPolicyBinding")) == injects


@pytest.mark.parametrize(
    ("mode", "offered", "guards"),
    [("Auto", True, True), ("Auto", False, False), ("On", False, True), ("Off", True, False)],
)
def test_guardrails_follow_the_cluster_unless_told(render: Render, mode: str, offered: bool, guards: bool) -> None:
    api = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
    objects = render(*[api] * offered, guardrails={"mode": mode}, watchNamespaces=["team-a"])
    policies = of_kind(objects, "ValidatingAdmissionPolicy")
    assert [policy["metadata"]["name"] for policy in policies] == ["ckpt-checkpoint-operator-guardrails"] * guards
    for policy in policies:
        (chosen,) = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
        assert chosen["values"] == ["team-a"]


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
    """A second release beside the first one: CRDs are shared, everything else has its own name."""
    served.create(checkpoint())
    second = ("--namespace=second", "--create-namespace", "--take-ownership")
    served.api.helm("install", "second", str(CHART), *second)
    said = served.api.helm("uninstall", "second", "--namespace=second")
    assert "[CustomResourceDefinition] checkpoints.checkpoint-operator.dev" in said
    assert served.kubectl("get", "ckpt", "--output=name").split() == ["checkpoint.checkpoint-operator.dev/run"]
    left = served.api.kubectl("get", "mutatingadmissionpolicies", "--output=name")
    assert "second" not in left


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
            eventually(lambda: unserved.refusal(pod()), lambda refusal: refusal == "", patience_seconds=2)
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


def test_the_network_policy_lets_nobody_in_but_scrapers(render: Render) -> None:
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
    nodes = roles.get(("ClusterRole", "ckpt-checkpoint-operator-nodes"), {"rules": None})["rules"]
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


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The chart as it first was, from the history of this repository."""
    log = ["git", "log", "--format=%h", "--reverse", "--", "charts/checkpoint-operator/Chart.yaml"]
    found = subprocess.run(log, cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not found:
        pytest.skip("the history of this repository is not here (an archive, or no git)")
    archive = ["git", "archive", "--prefix=earlier/", f"{found[0]}:charts/checkpoint-operator"]
    packed = subprocess.run(archive, cwd=ROOT, capture_output=True)
    if packed.returncode != 0:
        pytest.skip(f"the history of this repository is not whole (a shallow clone?): {packed.stderr.decode()}")
    subprocess.run(["tar", "--extract", "--directory", str(tmp_path)], input=packed.stdout, check=True)
    return tmp_path / "earlier"


@pytest.mark.usefixtures("api_server", "helm")
def test_an_upgrade_from_an_earlier_chart_and_its_removal_keep_the_resources(earlier: Path) -> None:
    with workspace.temporary("upgraded") as place:
        server = controlplane.start(place, network.free_ports()).api
        server.helm("install", "ckpt", str(earlier), "--namespace=operators", "--create-namespace")
        server.kubectl("wait", "crd", "--for=condition=Established", "--all", "--timeout=30s")
        namespace = Namespace.fresh(server)
        uid = namespace.create(checkpoint())["metadata"]["uid"]
        old = server.kubectl("get", "crd", "checkpoints.checkpoint-operator.dev", "--output=jsonpath={.spec}")
        server.helm("upgrade", "ckpt", str(CHART), "--namespace=operators")
        new = server.kubectl("get", "crd", "checkpoints.checkpoint-operator.dev", "--output=jsonpath={.spec}")
        assert new != old
        assert namespace.patch("ckpt", "run", {"spec": {"suspend": True}})["metadata"]["uid"] == uid
        server.helm("uninstall", "ckpt", "--namespace=operators")
        assert json.loads(namespace.kubectl("get", "ckpt", "run", "--output=json"))["metadata"]["uid"] == uid
