from __future__ import annotations

import json

import pytest

from localcluster import versions
from localcluster.client import ApiServer, CommandError

pytestmark = pytest.mark.api


def test_the_server_is_the_version_that_is_pinned(api_server: ApiServer) -> None:
    assert json.loads(api_server.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"] == versions.KUBERNETES


def test_the_cluster_is_identified_by_its_system_namespace(api_server: ApiServer) -> None:
    assert api_server.uid == api_server.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")


def test_what_is_applied_can_be_read_back(api_server: ApiServer) -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"key": "value"}}
    api_server.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    assert api_server.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.key}") == "value"


def test_a_refused_command_says_what_was_refused_and_why(api_server: ApiServer) -> None:
    with pytest.raises(CommandError, match=r"(?s)kubectl get pod absent.*exit status 1.*NotFound"):
        api_server.kubectl("get", "pod", "absent")


def test_the_outcome_of_an_unchecked_command_includes_its_errors(api_server: ApiServer) -> None:
    assert "NotFound" in api_server.kubectl("get", "pod", "absent", check=False)


def test_pods_are_admitted_without_controllers(api_server: ApiServer) -> None:
    api_server.kubectl("run", "pod", "--image=localhost/none:1", "--restart=Never")
    assert api_server.kubectl("get", "pod", "pod", "-o", "jsonpath={.status.phase}") == "Pending"


def test_mutating_admission_policies_are_served(api_server: ApiServer) -> None:
    assert "mutatingadmissionpolicies" in api_server.kubectl("api-resources", "-o", "name")
