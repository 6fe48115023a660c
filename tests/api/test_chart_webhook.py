"""What the chart renders for clusters without mutating policies: the webhook."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import yaml

from checkpoint_operator.injection.command import parser
from localcluster import oldest
from support.admission import Body
from support.charts import CHART, Render, of_kind, rules

pytestmark = pytest.mark.api

NAME = "ckpt-checkpoint-operator-webhook"
CONFIGURATION = "ckpt-checkpoint-operator-injection"


@pytest.fixture
def old(render: Render) -> Render:
    """Renders the chart for the oldest cluster."""
    return partial(render, kube_version="1.28.0", guardrails={"mode": "Off"})


def named(objects: list[Body], kind: str, name: str = NAME) -> Body:
    (found,) = (one for one in of_kind(objects, kind) if one["metadata"]["name"] == name)
    return found


def webhook_pod(objects: list[Body]) -> Body:
    spec: Body = named(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def arguments(objects: list[Body]) -> list[str]:
    (container,) = webhook_pod(objects)["containers"]
    found: list[str] = container["args"]
    return found


def webhooks_of(objects: list[Body]) -> list[tuple[str, Body]]:
    return [
        (one["kind"], webhook)
        for one in objects
        if one["kind"].endswith("WebhookConfiguration")
        for webhook in one["webhooks"]
    ]


def test_the_oldest_version_is_the_one_that_is_tested() -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    major, minor, _ = oldest.KUBERNETES.removeprefix("v").split(".")
    assert described["kubeVersion"] == f">={major}.{minor}.0-0"


def test_the_webhook_is_asked_about_the_creation_of_labelled_pods_and_nothing_else(old: Render) -> None:
    found = webhooks_of(old(injection={"webhook": {"timeoutSeconds": 7}}))
    assert [kind for kind, _ in found] == ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]
    for kind, webhook in found:
        path = "/mutate" if kind.startswith("Mutating") else "/validate"
        assert webhook.pop("reinvocationPolicy", None) == ("IfNeeded" if kind.startswith("Mutating") else None)
        assert webhook == {
            "name": "injection.checkpoint-operator.dev",
            "clientConfig": {"service": {"name": NAME, "namespace": "operators", "path": path, "port": 443}},
            "rules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["pods"],
                    "scope": "Namespaced",
                }
            ],
            "objectSelector": {
                "matchExpressions": [{"key": "checkpoint-operator.dev/checkpoint", "operator": "Exists"}]
            },
            "matchPolicy": "Equivalent",
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "timeoutSeconds": 7,
            "admissionReviewVersions": ["v1"],
        }


def test_the_webhook_is_for_the_namespaces_that_are_served(old: Render) -> None:
    objects = old(watchNamespaces=["team-a"])
    for _, webhook in webhooks_of(objects):
        assert webhook["namespaceSelector"] == {
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}]
        }
    (role,) = (one for one in of_kind(objects, "Role") if one["metadata"]["name"] == NAME)
    assert (role["metadata"]["namespace"], rules(role)) == ("team-a", {("checkpoints", "get")})
    assert [one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"] == NAME] == []


def test_where_policies_can_validate_the_webhook_does_not(render: Render) -> None:
    objects = render(kube_version="1.30.0")
    assert [kind for kind, _ in webhooks_of(objects)] == ["MutatingWebhookConfiguration"]
    assert not [one for one in arguments(objects) if "validatingwebhook" in one]
    trust = named(objects, "ClusterRole", f"{NAME}-trust")
    assert {resource for resource, _ in rules(trust)} == {"mutatingwebhookconfigurations"}


def test_two_replicas_are_apart_and_one_is_always_there(old: Render) -> None:
    objects = old()
    deployment = named(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"] == {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    pod = webhook_pod(objects)
    (preferred,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"] == {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": selector},
    }
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["labelSelector"]) == (
        "topology.kubernetes.io/zone",
        {"matchLabels": selector},
    )
    budget = named(objects, "PodDisruptionBudget")
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": selector}}
    service = named(objects, "Service")
    assert service["spec"] == {
        "selector": selector,
        "ports": [{"name": "webhook", "port": 443, "targetPort": "webhook"}],
    }


def test_nothing_takes_the_pods_of_the_webhook_for_those_of_the_operator(old: Render) -> None:
    objects = old(metrics={"service": {"enabled": True}}, networkPolicy={"enabled": True})
    labels = named(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    operator = named(objects, "Deployment", "ckpt-checkpoint-operator")
    assert not operator["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for kind, path in (("Service", "selector"), ("NetworkPolicy", "podSelector")):
        for one in of_kind(objects, kind):
            chosen = one["spec"][path].get("matchLabels", one["spec"][path])
            assert (chosen.items() <= labels.items()) == (one["metadata"]["name"] == NAME)


def test_the_webhook_runs_without_privileges_and_is_probed_over_its_own_port(old: Render) -> None:
    objects = old(injection={"webhook": {"port": 10443}})
    pod = webhook_pod(objects)
    (container,) = pod["containers"]
    operator = named(objects, "Deployment", "ckpt-checkpoint-operator")["spec"]["template"]["spec"]
    assert pod["securityContext"] == operator["securityContext"]
    assert container["securityContext"] == operator["containers"][0]["securityContext"]
    assert pod["serviceAccountName"] == NAME
    assert container["ports"] == [{"name": "webhook", "containerPort": 10443}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["scheme"], asked["port"]) == ("HTTPS", "webhook")
    assert parser().parse_args(arguments(objects)[1:]).listen == ("", 10443)


def test_the_webhook_understands_its_arguments(old: Render) -> None:
    first, *given = arguments(old(clusterId="8a-1", log={"format": "text"}))
    assert first == "webhook"
    assert vars(parser().parse_args(given)) == {
        "listen": ("", 9443),
        "cluster_id": "8a-1",
        "library": None,
        "certificate_folder": None,
        "secret": ("operators", NAME),
        "service": ("operators", NAME),
        "configuration": [
            ("mutatingwebhookconfiguration", CONFIGURATION),
            ("validatingwebhookconfiguration", CONFIGURATION),
        ],
        "certificate_lifetime": 90 * 86400.0,
        "drain": 5.0,
        "log_format": "text",
        "verbose": False,
    }


@pytest.mark.parametrize("volume", ["Image", "EmptyDir"])
def test_the_webhook_brings_the_library_if_that_is_switched_on(old: Render, volume: str) -> None:
    objects = old(injection={"library": {"enabled": True, "volume": volume}})
    library = parser().parse_args(arguments(objects)[1:]).library
    assert library.python_path == "/var/run/checkpoint-operator/library/python"
    assert library.folder.volume["name"] == library.folder.mount["name"] == "checkpoint-operator-library"
    assert (library.init_container is None) == (volume == "Image") == ("image" in library.folder.volume)


def test_helm_test_looks_for_the_webhook(old: Render) -> None:
    objects = old()
    (test,) = of_kind(objects, "Pod")
    assert f"--webhook=operators/{NAME}" in test["spec"]["containers"][0]["args"]
    role = named(objects, "Role", "ckpt-checkpoint-operator-test")
    assert role["rules"][0]["resourceNames"] == ["ckpt-checkpoint-operator", NAME]


def test_rendering_makes_no_certificate(old: Render) -> None:
    objects = old()
    assert objects == old()
    (secret,) = of_kind(objects, "Secret")
    assert (secret["metadata"]["name"], "data" in secret, "stringData" in secret) == (NAME, False, False)
    assert [webhook for _, webhook in webhooks_of(objects) if "caBundle" in webhook["clientConfig"]] == []


def test_with_cert_manager_the_webhook_reads_files_and_may_read_checkpoints_only(old: Render) -> None:
    objects = old(injection={"webhook": {"certManager": {"enabled": True}, "certificateLifetime": "240h"}})
    assert of_kind(objects, "Secret") == []
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        annotations = named(objects, kind, CONFIGURATION)["metadata"]["annotations"]
        assert annotations == {"cert-manager.io/inject-ca-from": f"operators/{NAME}"}
    certificate = named(objects, "Certificate")["spec"]
    assert (certificate["dnsNames"], certificate["duration"]) == ([f"{NAME}.operators.svc"], "240h")
    issuer = named(objects, "Issuer", certificate["issuerRef"]["name"])
    authority = named(objects, "Certificate", f"{NAME}-ca")["spec"]
    assert (authority["isCA"], authority["secretName"]) == (True, issuer["spec"]["ca"]["secretName"])
    assert named(objects, "Issuer", authority["issuerRef"]["name"])["spec"] == {"selfSigned": {}}
    pod = webhook_pod(objects)
    (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "certificate")
    assert {"name": "certificate", "secret": {"secretName": certificate["secretName"]}} in pod["volumes"]
    parsed = parser().parse_args(arguments(objects)[1:])
    assert (str(parsed.certificate_folder), parsed.secret) == (mount["mountPath"], None)
    bound = [one for one in objects if NAME in str(one.get("subjects"))]
    assert [(one["kind"], one["roleRef"]["name"]) for one in bound] == [("ClusterRoleBinding", NAME)]
    assert rules(named(objects, "ClusterRole")) == {("checkpoints", "get")}


def test_with_cert_manager_the_issuer_may_be_ones_own(old: Render) -> None:
    issuer = {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    objects = old(injection={"webhook": {"certManager": {"enabled": True, "issuerRef": issuer}}})
    assert of_kind(objects, "Issuer") == []
    (certificate,) = of_kind(objects, "Certificate")
    assert certificate["spec"]["issuerRef"] == issuer


def test_the_network_policy_of_the_webhook_lets_api_servers_in(old: Render) -> None:
    ports = [{"port": "webhook", "protocol": "TCP"}]
    policy = named(old(networkPolicy={"enabled": True}), "NetworkPolicy")
    assert policy["spec"]["ingress"] == [{"ports": ports}]
    peers = [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    policy = named(old(networkPolicy={"enabled": True, "webhookFrom": peers}), "NetworkPolicy")
    assert policy["spec"]["ingress"] == [{"ports": ports, "from": peers}]


def test_on_host_networks_a_new_replica_takes_the_place_of_an_old_one(old: Render) -> None:
    objects = old(hostNetwork=True)
    assert webhook_pod(objects)["hostNetwork"] is True
    strategy = named(objects, "Deployment")["spec"]["strategy"]
    assert strategy == {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}


def test_where_webhook_pods_run_can_be_chosen(old: Render) -> None:
    affinity: Body = {"nodeAffinity": {}}
    spread = [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway"}]
    pod = webhook_pod(old(affinity=affinity, topologySpreadConstraints=spread, nodeSelector={"pool": "system"}))
    assert (pod["affinity"], pod["topologySpreadConstraints"]) == (affinity, spread)
    assert pod["nodeSelector"] == {"pool": "system"}


@pytest.mark.parametrize(
    "values",
    [
        {"nameOverride": "n" * 63},
        {"fullnameOverride": "f" * 63},
        {"release": "r" * 53},
        {"release": "r" * 53, "watchNamespaces": ["a", "b"], "namespace": "n" * 40},
        {"podLabels": {"app.kubernetes.io/name": "other"}, "commonLabels": {"app.kubernetes.io/instance": "other"}},
    ],
    ids="-".join,
)
def test_names_and_labels_of_a_users_choice_break_no_selector(old: Render, values: dict[str, Any]) -> None:
    objects = old(**values, injection={"webhook": {"certManager": {"enabled": True}}})
    for one in objects:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", one["metadata"]["name"])
        limit = 63 if one["kind"] in ("Deployment", "Service", "Certificate") else 253
        assert len(one["metadata"]["name"]) <= limit
        assert [value for value in one["metadata"].get("labels", {}).values() if len(value) > 63] == []
    (webhook,) = (one for one in of_kind(objects, "Deployment") if one["metadata"]["name"].endswith("-webhook"))
    labels = webhook["spec"]["template"]["metadata"]["labels"]
    assert webhook["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert len(labels["app.kubernetes.io/name"]) <= 63
