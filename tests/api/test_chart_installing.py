"""What installing, upgrading and uninstalling the chart does on a real API server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from localcluster import controlplane, network, workspace
from localcluster.client import ApiServer, CommandError
from support.admission import Namespace, checkpoint, eventually, pod
from support.charts import CHART, POLICIES, Render, UniqueKeys, of_kind, operator_container, operator_pod
from support.webhooks import needs, offers

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]
TIME = "2026-11-24T10:00:00Z"


def test_what_is_rendered_away_from_the_cluster_is_what_is_installed(chart: ApiServer, render: Render) -> None:
    manifest = chart.helm("get", "manifest", "ckpt", "--namespace=operators")
    installed = [one for one in yaml.load_all(manifest, UniqueKeys) if one]
    tests = {one["metadata"]["name"] for one in render() if "helm.sh/hook" in one["metadata"].get("annotations", {})}
    version = chart.get("/version")["gitVersion"]
    guards = "Auto" if offers(chart, "validatingadmissionpolicies") else "Off"
    objects = render(clusterId=chart.uid, kube_version=version, guardrails={"mode": guards})
    away = [one for one in objects if one["metadata"]["name"] not in tests]
    order = [(one["kind"], one["metadata"]["name"]) for one in away]
    assert sorted(order) == sorted((one["kind"], one["metadata"]["name"]) for one in installed)
    for one in installed:
        assert one == away[order.index((one["kind"], one["metadata"]["name"]))]


def test_installing_tells_the_next_commands(chart: ApiServer) -> None:
    notes = chart.helm("get", "notes", "ckpt", "--namespace=operators")
    assert "serves all namespaces" in notes
    assert "kubectl wait --for=condition=Ready ckpt/my-run" in notes
    assert "NOTE:" not in notes


def test_helm_asks_the_cluster_for_its_id(chart: ApiServer) -> None:
    manifest = list(yaml.safe_load_all(chart.helm("get", "manifest", "ckpt", "--namespace=operators")))
    assert f"--cluster-id={chart.uid}" in operator_container(manifest)["args"]
    assert [one for one in of_kind(manifest, "Role") if one["metadata"]["namespace"] == "kube-system"] == []


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
    policies = offers(served.api, "mutatingadmissionpolicies")
    kind = "mutatingadmissionpolicies" if policies else "mutatingwebhookconfigurations"
    left = served.api.kubectl("get", kind, "--output=name")
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
    {"apiGroups": [""], "resources": ["secrets", "serviceaccounts", "configmaps", "services"], "verbs": ["*"]},
    {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": ["*"]},
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


@pytest.fixture
def unserved(api_server: ApiServer, render: Render) -> Iterator[Namespace]:
    """A namespace on an API server of its own, whose policies were rendered by a Helm that could not ask it."""
    needs(api_server, "mutatingadmissionpolicies")
    with workspace.temporary("unserved") as place:
        server = controlplane.start(place, network.free_ports()).api
        server.kubectl("apply", f"--filename={ROOT / 'crds'}")
        server.wait_for_kinds()
        policies = [one for one in render(POLICIES) if "AdmissionPolicy" in one["kind"]]
        server.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(policies))
        yield Namespace.fresh(server)


def test_without_a_cluster_id_pods_wait_for_the_claim(unserved: Namespace) -> None:
    """The identity then comes from the status, and is never that of another run, even one of the same name."""
    unserved.create(checkpoint())

    def claim(owner: str, reason: str) -> None:
        ready = {"type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": TIME}
        status = {"claimedBy": owner, "conditions": [ready]}
        unserved.patch("checkpoints", "run", {"status": status}, status=True)

    run = f"{unserved.name}/run"
    assert f'"run" with a claimed prefix in namespace "{unserved.name}" yet' in unserved.denied(pod())
    for owner, reason in ((f"8a-1/{run}", "PrefixClaimed"), ("8a-1/other/run", "Configured")):
        claim(owner, reason)
        with pytest.raises(AssertionError):
            eventually(lambda: unserved.refusal(pod()), lambda refusal: refusal == "", timeout_seconds=2)
    claim(f"8a-1/{run}", "StoreUnavailable")
    (container,) = unserved.admitted(pod())["containers"]
    assert {"name": "CHECKPOINT_RUN", "value": f"8a-1/{run}"} in container["env"]


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


@pytest.mark.usefixtures("helm")
def test_an_upgrade_from_an_earlier_chart_and_its_removal_keep_the_resources(
    api_server: ApiServer, earlier: Path
) -> None:
    needs(api_server, "validatingadmissionpolicies")  # as the first chart did
    with workspace.temporary("upgraded") as place:
        server = controlplane.start(place, network.free_ports()).api
        server.helm("install", "ckpt", str(earlier), "--namespace=operators", "--create-namespace")
        server.wait_for_kinds()
        namespace = Namespace.fresh(server)
        uid = namespace.create(checkpoint())["metadata"]["uid"]
        old = server.kubectl("get", "crd", "checkpoints.checkpoint-operator.dev", "--output=jsonpath={.spec}")
        server.helm("upgrade", "ckpt", str(CHART), "--namespace=operators")
        new = server.kubectl("get", "crd", "checkpoints.checkpoint-operator.dev", "--output=jsonpath={.spec}")
        assert new != old
        assert namespace.patch("checkpoints", "run", {"spec": {"suspend": True}})["metadata"]["uid"] == uid
        server.helm("uninstall", "ckpt", "--namespace=operators")
        assert json.loads(namespace.kubectl("get", "ckpt", "run", "--output=json"))["metadata"]["uid"] == uid
        # Under another name: the CRDs that were left are taken as they are.
        server.helm("install", "other", str(CHART), "--namespace=elsewhere", "--create-namespace")
        server.helm("upgrade", "other", str(CHART), "--namespace=elsewhere")
        server.helm("uninstall", "other", "--namespace=elsewhere")
        assert json.loads(namespace.kubectl("get", "ckpt", "run", "--output=json"))["metadata"]["uid"] == uid
