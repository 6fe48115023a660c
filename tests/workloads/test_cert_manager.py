"""cert-manager's own controllers issue and renew the webhook's certificate, and make API servers trust it.

On an API server without nodes: the webhook is a process, and what a kubelet would mount is copied.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.conftest import add_kinds
from checkpoint_sidecar.core import environment
from localcluster import controlplane, network, requirements, workspace
from localcluster.client import ApiServer, CommandError
from localcluster.fixtures import require
from support.admission import Body, Namespace, checkpoint, eventually, pod
from support.charts import of_kind, rendered
from support.webhooks import NAME, NAMESPACE, Replica, Webhooks, running
from workloads import build

ENABLED = {"certManager": {"enabled": True}}
CERTIFICATES = f"/apis/cert-manager.io/v1/namespaces/{NAMESPACE}/certificates"

Make = Callable[..., list[Body]]


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """An API server on which cert-manager works."""
    require(requirements.control_plane_problem())
    folder = build.cert_manager()
    require(build.problem(folder))
    with workspace.temporary("cert-manager") as place:
        api = controlplane.start(place, network.free_ports()).api
        api.kubectl("apply", "--server-side", f"--filename={folder}")
        add_kinds(api)
        api.kubectl("create", "namespace", NAMESPACE)
        place.daemons.start("cert-manager", [folder / "cert-manager"], environment=api.environment)
        yield api


@pytest.fixture(scope="module")
def make(server: ApiServer, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Renders the chart with these values of the webhook, as for a cluster without any admission policies."""
    scratch = tmp_path_factory.mktemp("values")

    def made(**webhook: Any) -> list[Body]:
        values: dict[str, Any] = {"guardrails": {"mode": "Off"}, "injection": {"webhook": webhook}}
        objects = rendered(helm, scratch, kube_version="1.28.0", clusterId=server.uid, **values)
        return [one for one in objects if one not in of_kind(objects, "CustomResourceDefinition")]

    return made


@dataclass(frozen=True)
class Installed:
    """The chart's webhook with one replica, which serves what is in a folder."""

    webhooks: Webhooks
    replica: Replica
    folder: Path

    def secret(self, name: str = f"{NAME}-tls") -> dict[str, bytes]:
        """Contents of a Secret of cert-manager's, once it is there."""
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets"

        def ask() -> Body:
            found = [one for one in self.webhooks.api.get(path)["items"] if one["metadata"]["name"] == name]
            return found[0].get("data", {}) if found else {}

        data = eventually(ask, lambda found: bool(found.get("tls.crt")), timeout_seconds=60)
        return {key: base64.b64decode(value) for key, value in data.items()}

    def mount(self) -> bytes:
        """Do what the kubelet does up to a minute after a change; return the certificate."""
        data = self.secret()
        for key, value in data.items():
            (self.folder / key).write_bytes(value)
        return data["tls.crt"]

    def renew(self, name: str) -> None:
        """Renew a certificate as `cmctl renew` does, and wait until it is in its Secret."""
        api, path = self.webhooks.api, f"{CERTIFICATES}/{name}"
        secret = api.get(path)["spec"]["secretName"]
        before = self.secret(secret)
        certificate = api.get(path)
        wanted = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by a test"}
        wanted["lastTransitionTime"] = certificate["metadata"]["creationTimestamp"]
        certificate["status"]["conditions"].append(wanted)
        assert api.send("PUT", f"{path}/status", certificate)[0] == 200
        eventually(lambda: self.secret(secret), lambda now: now["tls.crt"] != before["tls.crt"], timeout_seconds=60)

    def await_trust(self) -> None:
        """Wait until both configurations have the authority of the certificate in the Secret, perhaps beside others."""
        authority = self.secret()["ca.crt"]

        def trusted() -> list[bytes]:
            found = (self.webhooks.configuration(kind)["clientConfig"] for kind in ("mutating", "validating"))
            return [base64.b64decode(each.get("caBundle", "")) for each in found]

        eventually(trusted, lambda found: all(authority in each for each in found), timeout_seconds=60)


@pytest.fixture(scope="module")
def installed(server: ApiServer, make: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    server.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(make(**ENABLED)))
    scratch = tmp_path_factory.mktemp("webhook")
    folder = scratch / "certificate"
    folder.mkdir()
    with running(server, scratch, replicas=0) as webhooks:
        replica = webhooks.launch(f"--certificate-folder={folder}")
        found = Installed(webhooks, replica, folder)
        found.mount()
        webhooks.await_ready(replica)
        found.await_trust()
        yield found


@pytest.fixture
def team(installed: Installed) -> Namespace:
    """A namespace with the Checkpoint ``run``."""
    place = Namespace.fresh(installed.webhooks.api)
    place.create(checkpoint())
    return place


def is_injected(place: Namespace) -> bool:
    (container,) = place.admitted(pod())["containers"]
    return environment.URL in [entry["name"] for entry in container["env"]]


@pytest.mark.parametrize(
    "webhook",
    [
        ENABLED,
        ENABLED | {"certificateLifetime": "240h"},
        {"certManager": {"enabled": True, "issuerRef": {"name": "company", "kind": "ClusterIssuer"}}},
        {"certManager": {"enabled": True, "issuerRef": {"name": "v", "kind": "Issuer", "group": "example.com"}}},
    ],
    ids=["issuer of the chart", "lifetime", "ClusterIssuer", "issuer of another project"],
)
def test_the_schema_of_cert_manager_has_every_field_that_the_chart_sets(
    server: ApiServer, make: Make, webhook: dict[str, Any]
) -> None:
    ours = [one for one in make(**webhook) if one["apiVersion"] == "cert-manager.io/v1"]
    assert len(ours) == (1 if "issuerRef" in webhook["certManager"] else 4)
    checked = ("apply", "--dry-run=server", "--validate=strict", "--filename=-")
    server.kubectl(*checked, stdin=yaml.safe_dump_all(ours))
    certificate = of_kind(ours, "Certificate")[-1]["spec"]
    certificate["secret"] = certificate["secretName"]
    with pytest.raises(CommandError, match=r"unknown field \"spec\.secret\""):
        server.kubectl(*checked, stdin=yaml.safe_dump_all(ours))


def test_pods_are_injected_once_the_certificate_is_issued(installed: Installed, team: Namespace) -> None:
    assert installed.replica.certificate().encode() == installed.secret()["tls.crt"]
    assert is_injected(team)


def test_a_renewed_certificate_is_served_without_a_restart_and_refuses_no_pod(
    installed: Installed, team: Namespace
) -> None:
    before = installed.secret()
    installed.renew(NAME)
    assert installed.secret()["tls.key"] != before["tls.key"]
    assert installed.replica.certificate().encode() == before["tls.crt"], "the kubelet has not replaced the files"
    assert is_injected(team)
    renewed = installed.mount().decode()
    eventually(installed.replica.certificate, lambda served: served == renewed, timeout_seconds=30)
    assert is_injected(team)


def test_a_renewed_authority_is_trusted_before_the_kubelet_has_replaced_the_certificate(
    installed: Installed, team: Namespace
) -> None:
    served, authority = installed.replica.certificate(), installed.secret()["ca.crt"]
    installed.renew(f"{NAME}-ca")
    installed.renew(NAME)
    assert installed.secret()["ca.crt"] != authority
    installed.await_trust()
    assert installed.replica.certificate() == served
    assert is_injected(team)
