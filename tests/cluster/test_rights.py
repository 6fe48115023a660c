"""What Kubernetes' own roles allow in a namespace once the chart's are aggregated into them, by the real controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localcluster.cluster import Cluster
from support.admission import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TENANT = "tenant"
READ = ["get checkpoints", "list checkpointsnapshots", "watch checkpoints"]
WRITE = ["create checkpoints", "patch checkpoints", "delete checkpoints", "patch checkpointsnapshots"]
DANGEROUS = ["takeover checkpoints", "purge checkpoints"]
OPERATORS_OWN = ["create checkpointsnapshots", "patch checkpoints/status", "patch checkpointsnapshots/status"]


@pytest.fixture(scope="module")
def tenant(operator: Cluster) -> Iterator[Cluster]:
    """A namespace in which users named like roles have just these roles."""
    operator.kubectl("create", "namespace", TENANT)
    for role in ("view", "edit", "admin"):
        operator.kubectl(
            f"--namespace={TENANT}", "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}"
        )
    yield operator
    operator.kubectl("delete", "namespace", TENANT, "--wait=false")


def may(cluster: Cluster, user: str, right: str, namespace: str = TENANT) -> bool:
    verb, _, resource = right.partition(" ")
    resource, _, subresource = resource.partition("/")
    command = ["auth", "can-i", verb, f"{resource}.checkpoint-operator.dev", f"--as={user}", f"--namespace={namespace}"]
    if subresource:
        command.append(f"--subresource={subresource}")
    # kubectl warns of verbs that it does not know.
    return "yes" in cluster.kubectl(*command, check=False).splitlines()


@pytest.mark.parametrize(
    ("user", "rights"),
    [("view", READ), ("edit", READ + WRITE), ("admin", READ + WRITE + DANGEROUS)],
)
def test_each_of_the_usual_roles_allows_what_its_holder_needs_and_no_more(
    tenant: Cluster, user: str, rights: list[str]
) -> None:
    everything = READ + WRITE + DANGEROUS + OPERATORS_OWN
    eventually(lambda: [right for right in everything if may(tenant, user, right)], lambda found: found == rights)


def test_a_role_in_one_namespace_says_nothing_about_another(tenant: Cluster) -> None:
    assert not [right for right in READ + WRITE + DANGEROUS if may(tenant, "admin", right, namespace="default")]
