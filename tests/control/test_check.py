"""`checkpoint-operator check`, which `helm test` runs: a real API server, the chart's own service account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_operator.check.requirements import Findings, complaints, rights
from checkpoint_operator.model.rights import Right
from support.admission import Namespace

RULES = [{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get"]}]
WHOLE = Findings(
    served=frozenset({"checkpoints", "checkpoints/status", "checkpointsnapshots", "checkpointsnapshots/status"}),
    available=1,
    missing=(),
)


def test_rules_are_rights_in_each_namespace_or_everywhere() -> None:
    assert [str(right) for right in rights(json.dumps(RULES), ["a", "b"])] == [
        "get pods in a",
        "get secrets in a",
        "get pods in b",
        "get secrets in b",
    ]
    assert [right.namespace for right in rights(json.dumps(RULES), [])] == ["", ""]


@pytest.mark.parametrize("rules", ["{", "[1]", '[{"apiGroups": [""]}]', '"text"'])
def test_what_is_no_list_of_rules_is_refused(rules: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        rights(rules, [])


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (WHOLE, []),
        (Findings(WHOLE.served - {"checkpoints/status"}, 1, ()), ["does not serve checkpoints/status of"]),
        (Findings(WHOLE.served, None, ()), ["no Deployment"]),
        (Findings(WHOLE.served, 0, ()), ["no pod of the operator is ready"]),
        (Findings(WHOLE.served, 1, (), webhook=2), []),
        (Findings(WHOLE.served, 1, (), webhook=0), ["no pod of the webhook is ready, so labelled pods are denied"]),
        (
            Findings(WHOLE.served, 1, (Right("get", "", "secrets", "a"), Right("list", "g.dev", "things"))),
            ["may not get secrets in a:", "may not list things.g.dev in all namespaces:"],
        ),
    ],
    ids=["whole", "no-crds", "no-deployment", "not-ready", "webhook", "webhook-not-ready", "rights"],
)
def test_what_is_wrong_is_said(findings: Findings, words: list[str]) -> None:
    said = list(complaints(findings))
    assert len(said) == len(words)
    for line, word in zip(said, words, strict=True):
        assert word in line


@pytest.mark.api
@pytest.mark.parametrize("everywhere", [False], ids=["in-one-namespace"])
def test_rights_that_the_operator_lacks_are_named_one_by_one(
    namespace: Namespace, chart_rights: Path, everywhere: bool
) -> None:
    (name,) = namespace.kubectl("get", "deployments", "--output=jsonpath={.items[*].metadata.name}").split()
    reader = ("create", "role", "deployments", "--verb=get", "--resource=deployments.apps")
    namespace.kubectl(*reader)
    account = namespace.kubectl("get", "deployments", "--output=jsonpath={..serviceAccountName}")
    namespace.kubectl(
        "create", "rolebinding", "deployments", "--role=deployments", f"--serviceaccount={namespace.name}:{account}"
    )
    wanted = [*RULES, {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]}]
    command = [sys.executable, "-m", "checkpoint_operator", "check", f"--deployment={namespace.name}/{name}"]
    command += [f"--rules={json.dumps(wanted)}", f"--namespace={namespace.name}"]
    done = subprocess.run(
        [*command, f"--cluster-rules={json.dumps(RULES)}"],
        env=os.environ | {"KUBECONFIG": str(chart_rights)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    # Nothing runs pods here; the kinds are served; what is granted is not complained of.
    assert [line.rpartition(": ")[0] for line in done.stdout.splitlines()] == [
        "wrong: no pod of the operator is ready",
        f"wrong: the operator may not patch deployments/scale.apps in {namespace.name}",
        "wrong: the operator may not get pods in all namespaces",
        "wrong: the operator may not get secrets in all namespaces",
    ]
