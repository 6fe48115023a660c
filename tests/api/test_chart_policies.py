"""Which admission policies the chart renders for which cluster."""

from __future__ import annotations

import json
import re

import pytest

from support.admission import Body
from support.charts import KINDS_KNOWN, POLICIES, HelmError, Render, of_kind

pytestmark = pytest.mark.api

GUARDS = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"


@pytest.mark.parametrize(
    ("mode", "offered", "way"),
    [
        ("Auto", True, "Policy"),
        ("Auto", False, "Webhook"),
        ("Policy", False, "Policy"),
        ("On", False, "Policy"),
        ("Webhook", True, "Webhook"),
        ("Off", True, "none"),
    ],
)
def test_injection_follows_the_cluster_unless_told(render: Render, mode: str, offered: bool, way: str) -> None:
    objects = render(
        KINDS_KNOWN, *([POLICIES, GUARDS] if offered else []), injection={"mode": mode}, guardrails={"mode": "Off"}
    )
    kinds = [one["kind"] for one in objects]
    assert kinds.count("MutatingAdmissionPolicy") == kinds.count("MutatingAdmissionPolicyBinding") == (way == "Policy")
    assert kinds.count("MutatingWebhookConfiguration") == (way == "Webhook")
    assert kinds.count("Deployment") == (2 if way == "Webhook" else 1)
    by_policy = way == "Policy" or (way == "Webhook" and offered)
    assert kinds.count("ValidatingAdmissionPolicy") == kinds.count("ValidatingAdmissionPolicyBinding") == by_policy
    assert kinds.count("ValidatingWebhookConfiguration") == (way == "Webhook" and not offered)


def test_whatever_injects_the_same_policy_denies_pods_that_are_bare(render: Render) -> None:
    """While an upgrade replaces one way by the other, this object stays as it is."""
    by_policy, by_webhook = (
        [one for one in render(kube_version="1.36.0", injection={"mode": mode}) if "Validating" in one["kind"]]
        for mode in ("Policy", "Webhook")
    )
    assert by_policy == by_webhook
    assert "ckpt-checkpoint-operator-injection" in [one["metadata"]["name"] for one in by_webhook]


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
    for version in ("1.35.3", "1.30.0"):
        objects = render(kube_version=version)
        assert of_kind(objects, "MutatingAdmissionPolicy") == []
        assert of_kind(objects, "MutatingWebhookConfiguration") != []
    with pytest.raises(HelmError, match=r"Set guardrails\.mode to On or Off, or pass the version of your cluster"):
        render(kube_version="1.29.9")
    objects = render(kube_version="1.28.0", guardrails={"mode": "Off"})
    assert of_kind(objects, "MutatingWebhookConfiguration") != []
    with pytest.raises(HelmError, match=r"chart requires kubeVersion: >=1\.28\.0-0"):
        render(kube_version="1.27.9", guardrails={"mode": "Off"})
    off = render(kube_version="1.35.3", injection={"mode": "Off"})
    assert of_kind(off, "MutatingAdmissionPolicy") == of_kind(off, "MutatingWebhookConfiguration") == []


@pytest.mark.parametrize("kind", ["ValidatingAdmissionPolicy", "CustomResourceDefinition"])
def test_what_older_clusters_compile_uses_no_function_that_they_lack(render: Render, kind: str) -> None:
    """Two-variable comprehensions came with 1.33; the mutating policy may use them."""
    compiled = [json.dumps(one) for one in of_kind(render(kube_version="1.30.0"), kind)]
    assert compiled
    newer = re.compile(r"\.transform(Map|List|MapEntry)\(|\.(exists|all)\(\w+, \w+,")
    assert [one for one in compiled if newer.search(one)] == []


def test_injection_is_for_the_namespaces_that_are_served(render: Render) -> None:
    (policy,) = of_kind(render(injection={"mode": "On"}, watchNamespaces=["team-a"]), "MutatingAdmissionPolicy")
    assert policy["spec"]["matchConstraints"]["namespaceSelector"] == {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}]
    }
