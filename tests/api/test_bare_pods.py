"""A bare pod that a real API server admitted, scheduled and changed can be created again from its body."""

from __future__ import annotations

import json

import pytest

from checkpoint_operator.model.pod_body import RECREATED, created_again
from localcluster.client import ApiServer
from support.admission import Body, Namespace, RefusedError

pytestmark = pytest.mark.api

CLASSES = """
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: important}
value: 1000
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: sandbox}
handler: runsc
overhead: {podFixed: {memory: 64Mi}}
scheduling: {nodeSelector: {sandbox: "yes"}}
"""
SELECTOR = {"matchLabels": {"app": "train"}}
PODS: dict[str, Body] = {
    "the least": {},
    "a service account": {"automountServiceAccountToken": True, "serviceAccountName": "default"},
    "a priority class": {"priorityClassName": "important"},
    "a runtime class": {"runtimeClassName": "sandbox"},
    "spread by a label": {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "zone",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": SELECTOR,
                "matchLabelKeys": ["generation"],
            }
        ]
    },
    "together by a label": {
        "affinity": {
            "podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "rack", "labelSelector": SELECTOR, "matchLabelKeys": ["generation"]}
                ],
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "topologyKey": "zone",
                            "labelSelector": SELECTOR,
                            "mismatchLabelKeys": ["generation"],
                        },
                    }
                ],
            }
        }
    },
    "a volume of its own": {
        "volumes": [
            {
                "name": "scratch",
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                    }
                },
            }
        ]
    },
    "the host's network": {
        "hostNetwork": True,
        "containers": [{"name": "main", "image": "i", "ports": [{"containerPort": 29500}]}],
    },
    "pod-level resources": {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}},
    "init containers": {"initContainers": [{"name": "proxy", "image": "i", "restartPolicy": "Always"}]},
}


def submitted(spec: Body) -> Body:
    metadata = {"name": "trainer", "labels": {"app": "train", "generation": "7"}, "annotations": {"owner": "team"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "main", "image": "i"}], "automountServiceAccountToken": False, **spec},
    }


def live(namespace: Namespace) -> Body:
    found: Body = json.loads(namespace.kubectl("get", "pod", "trainer", "--output=json"))
    return found


def schedule_and_debug(namespace: Namespace) -> None:
    """What a scheduler and `kubectl debug` do to a pod."""
    path = f"/api/v1/namespaces/{namespace.name}/pods/trainer"
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "trainer"}, "target": {"name": "node-a"}}
    namespace.kubectl("create", f"--raw={path}/binding", "--filename=-", stdin=json.dumps(binding))
    debugger = {"spec": {"ephemeralContainers": [{"name": "debugger", "image": "i", "targetContainerName": "main"}]}}
    namespace.kubectl("patch", "pod", "trainer", "--subresource=ephemeralcontainers", f"--patch={json.dumps(debugger)}")


@pytest.mark.parametrize("spec", PODS.values(), ids=PODS)
def test_a_bare_pod_is_created_again_as_it_was_submitted(
    namespace: Namespace, api_server: ApiServer, spec: Body
) -> None:
    api_server.kubectl("apply", "--filename=-", stdin=CLASSES)
    try:
        first = namespace.create(submitted(spec))
    except RefusedError as error:
        if "unknown field" not in str(error):
            raise
        pytest.skip("this API server is older than a field of the pod")
    schedule_and_debug(namespace)
    again = created_again(live(namespace), failures=0)
    namespace.kubectl("delete", "pod", "trainer", "--force", "--grace-period=0")
    second = namespace.create(again)
    assert second["spec"] == first["spec"]
    assert second["metadata"]["labels"] == first["metadata"]["labels"]
    assert second["metadata"]["annotations"] == {"owner": "team", RECREATED: "1"}
