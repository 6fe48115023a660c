"""The webhook that injects, as users run it: pods of the chart's Deployment, from the operator's image."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from checkpoint_sidecar.core import environment
from cluster.conftest import NAMESPACE, Start
from cluster.interrupting import evicted_without_loss
from demo import comparison, installation, manifests
from demo.training import TrainingRun, wait_for
from localcluster import network
from localcluster.client import CommandError
from localcluster.cluster import Cluster
from support.webhooks import Forwarder

pytestmark = [pytest.mark.cluster, pytest.mark.evictions, pytest.mark.timeout(420)]

NAME = f"{installation.RELEASE}-webhook"
PROBE = "probe"


@pytest.fixture(scope="module")
def webhook(operator: Cluster) -> Iterator[Cluster]:
    """The cluster, which injects by a replica of the webhook: a second one would need the same port of this machine."""
    port = next(network.free_ports())
    with contextlib.ExitStack() as opened:
        opened.callback(installation.upgrade, operator, injection={"mode": "Auto"})
        probed = manifests.checkpoint(PROBE, "s3://probe/probe", operator.object_store)
        operator.kubectl(f"--namespace={NAMESPACE}", "apply", "--filename=-", stdin=manifests.to_stdin(probed))
        opened.callback(operator.kubectl, f"--namespace={NAMESPACE}", "delete", "checkpoint", PROBE)
        installation.upgrade(operator, injection={"mode": "Webhook", "webhook": {"replicas": 1, "port": port}})
        service = ("get", "service", NAME, "--output=jsonpath={.spec.clusterIP}")
        forwarder = Forwarder(operator.kubectl(f"--namespace={installation.NAMESPACE}", *service), 443)
        opened.callback(forwarder.close)
        forwarder.ports.append(port)
        wait_for("the webhook to inject", lambda: is_injected(operator), timeout=60)
        yield operator


def is_injected(cluster: Cluster) -> bool:
    """Whether the API server would create a labelled pod, with our variables."""
    metadata = {"name": PROBE, "labels": {environment.POD_LABEL: PROBE}}
    pod = {"kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "main", "image": "i"}]}}
    create = ("create", "--filename=-", "--dry-run=server", "--output=json")
    try:
        made = cluster.kubectl(f"--namespace={NAMESPACE}", *create, stdin=json.dumps({"apiVersion": "v1", **pod}))
    except CommandError:
        return False
    return environment.URL in made


def pods_of(cluster: Cluster) -> list[dict[str, Any]]:
    selector = f"--selector=app.kubernetes.io/name={NAME}"
    listed = cluster.kubectl(f"--namespace={installation.NAMESPACE}", "get", "pods", selector, "--output=json")
    return [pod for pod in json.loads(listed)["items"] if "deletionTimestamp" not in pod["metadata"]]


def test_a_run_that_the_webhook_injected_loses_nothing_in_an_eviction(
    webhook: Cluster,
    start: Start,
    undisturbed: comparison.State,
    final_state: Callable[[TrainingRun], comparison.State],
) -> None:
    policies = webhook.kubectl("get", "mutatingadmissionpolicies", "--output=name")
    assert "checkpoint-operator" not in policies, "nothing but the webhook injects"
    run = start("by-webhook")
    evicted_without_loss(run)
    run.wait_finished()
    compared = comparison.compare(final_state(run), undisturbed)
    assert compared.identical, compared.differing


def test_the_webhooks_pod_is_replaced_and_injects_again_with_the_same_certificate(webhook: Cluster) -> None:
    secret = ("get", "secret", NAME, f"--namespace={installation.NAMESPACE}", "--output=jsonpath={.data}")
    before = webhook.kubectl(*secret)
    (pod,) = pods_of(webhook)
    webhook.kubectl(f"--namespace={installation.NAMESPACE}", "delete", "pod", pod["metadata"]["name"])

    def replaced() -> bool:
        found = pods_of(webhook)
        return len(found) == 1 and found[0]["metadata"]["uid"] != pod["metadata"]["uid"]

    wait_for("another pod", replaced, timeout=60)
    wait_for("the webhook to inject", lambda: is_injected(webhook), timeout=60)
    assert webhook.kubectl(*secret) == before
