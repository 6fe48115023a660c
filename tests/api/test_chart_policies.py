"""Which admission policies the chart renders for which cluster."""

from __future__ import annotations

import pytest

from support.admission import Body
from support.charts import KINDS_KNOWN, POLICIES, HelmError, Render, of_kind

pytestmark = pytest.mark.api

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


def test_injection_is_for_the_namespaces_that_are_served(render: Render) -> None:
    (policy,) = of_kind(render(injection={"mode": "On"}, watchNamespaces=["team-a"]), "MutatingAdmissionPolicy")
    assert policy["spec"]["matchConstraints"]["namespaceSelector"] == {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}]
    }
