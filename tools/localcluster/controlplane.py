"""etcd and kube-apiserver; for a whole cluster also kube-controller-manager and kube-scheduler."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localcluster import network, requirements
from localcluster.client import ApiServer
from localcluster.pki import Authority
from localcluster.processes import Daemon, Daemons
from localcluster.workspace import Workspace

STARTUP_SECONDS = 90.0

NODE_MONITOR_GRACE_SECONDS = 16
"""How long a silent node is believed to be well. The kubelets here report every 4 s."""
UNREACHABLE_TOLERATION_SECONDS = 5
"""How long pods stay on a lost node. (The default of five minutes is for real networks.)"""


@dataclass(frozen=True)
class ControlPlane:
    api: ApiServer
    authority: Authority


def start(
    place: Workspace, ports: Iterator[int], *, port: int | None = None, node_names: Sequence[str] = ()
) -> ControlPlane:
    """Start etcd and kube-apiserver and wait until they answer.

    `port` 443 (needs root) makes the client configuration that pods find in their environment work on host networks.
    `node_names` are the kubelets that the API server will find on 127.0.0.1; with none it is a server for API tests
    only, which admits pods without their service accounts (no controller makes those).
    Raises `ProcessError` with the end of the log if one does not come up.
    """
    port = port or next(ports)
    loopback = network.service_network(port)
    if loopback is None:
        raise OSError(f"port {port} is taken on every loopback network tried: are many clusters running?")
    address = f"{loopback}.0.1"
    authority = Authority(place.directory / "pki")
    api = ApiServer(place.directory, f"https://{address}:{port}")
    admin = authority.issue("admin", user="admin", group="system:masters")
    authority.kubeconfig(api.kubeconfig, server=api.url, client=admin)

    etcd, etcd_url = _start_etcd(place.daemons, ports)
    command = _apiserver_command(authority, address, port, etcd_url, place.directory)
    if node_names:
        command = [*_with_hosts(place.directory, node_names), *command]
        command.append(f"--default-unreachable-toleration-seconds={UNREACHABLE_TOLERATION_SECONDS}")
        command.append(f"--default-not-ready-toleration-seconds={UNREACHABLE_TOLERATION_SECONDS}")
    else:
        command.append("--disable-admission-plugins=ServiceAccount")
    etcd.wait_ready(lambda: _healthy(etcd_url), STARTUP_SECONDS)
    server = place.daemons.start("kube-apiserver", command)
    server.wait_ready(api.answers, STARTUP_SECONDS)
    # Ready comes a moment before the server has made its own namespaces.
    for namespace in ("kube-system", "default"):
        server.wait_ready(partial(api.answers, f"/api/v1/namespaces/{namespace}"), STARTUP_SECONDS)
    return ControlPlane(api, authority)


def start_controllers(place: Workspace, plane: ControlPlane, ports: Iterator[int]) -> None:
    """Start kube-controller-manager and kube-scheduler; they are at work once the API shows what they do."""
    pki = plane.authority.directory
    manager: list[str | Path] = [
        f"--service-account-private-key-file={pki / 'service-accounts.key'}",
        f"--root-ca-file={plane.authority.certificate}",
        "--use-service-account-credentials",
        f"--node-monitor-grace-period={NODE_MONITOR_GRACE_SECONDS}s",
        "--node-monitor-period=2s",
    ]
    arguments = {"kube-controller-manager": manager, "kube-scheduler": []}
    for name, own in arguments.items():
        pair = plane.authority.issue(name, user=f"system:{name}")
        kubeconfig = place.directory / f"{name}.kubeconfig"
        plane.authority.kubeconfig(kubeconfig, server=plane.api.url, client=pair)
        common = [f"--kubeconfig={kubeconfig}", "--bind-address=127.0.0.1", f"--secure-port={next(ports)}"]
        place.daemons.start(name, [_binary(name), *common, "--leader-elect=false", *own])


def _binary(name: str) -> Path:
    program = requirements.binary(name)
    if program is None:
        raise FileNotFoundError(f"{name} is not built: run `python -m localcluster.build`")
    return program


def _start_etcd(daemons: Daemons, ports: Iterator[int]) -> tuple[Daemon, str]:
    client, peer = (f"http://127.0.0.1:{next(ports)}" for _ in range(2))
    command: list[str | Path] = [_binary("etcd"), f"--data-dir={daemons.directory / 'etcd'}", "--unsafe-no-fsync"]
    command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    command += [f"--initial-cluster=default={peer}"]
    return daemons.start("etcd", command), client


def _healthy(etcd_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{etcd_url}/health", timeout=1):
            return True
    except OSError:
        return False


def _apiserver_command(
    authority: Authority, address: str, port: int, etcd_url: str, directory: Path
) -> list[str | Path]:
    names = ("127.0.0.1", address, "localhost", "kubernetes.default.svc")
    serving = authority.issue("kube-apiserver", user="kube-apiserver", hosts=names)
    kubelet_client = authority.issue("kubelet-client", user="kube-apiserver-kubelet-client", group="system:masters")
    tokens = authority.signing_key("service-accounts")
    return [
        _binary("kube-apiserver"),
        f"--etcd-servers={etcd_url}",
        # The server listens on the first address of the service network: the address of the service `kubernetes`.
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--service-cluster-ip-range={address.rpartition('.')[0]}.0/24",
        "--endpoint-reconciler-type=none",  # the others refuse loopback addresses
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--cert-dir={directory / 'apiserver'}",
        f"--client-ca-file={authority.certificate}",
        f"--kubelet-client-certificate={kubelet_client.certificate}",
        f"--kubelet-client-key={kubelet_client.key}",
        f"--kubelet-certificate-authority={authority.certificate}",
        "--kubelet-preferred-address-types=Hostname",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={tokens}",
        f"--service-account-signing-key-file={tokens}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]


def _with_hosts(directory: Path, node_names: Sequence[str]) -> list[str | Path]:
    """The start of a command that runs with a hosts file of its own, in which `node_names` are 127.0.0.1.

    The API server reaches kubelets (logs, exec) by host name; the machine's own hosts file stays as it is.
    """
    hosts = directory / "hosts"
    hosts.write_text(f"{network.HOSTS_FILE.read_text()}\n127.0.0.1 {' '.join(node_names)}\n")
    script = f'mount --bind "$0" {network.HOSTS_FILE} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, hosts]
