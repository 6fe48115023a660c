"""A node: containerd and a kubelet in process and mount namespaces of their own, like a small machine.

Ending its first process is pulling the plug: the kernel ends everything on the node, pods included, and its mounts go
with it. Inside, every path is the usual one (/var/lib/kubelet, /run/containerd, ...); outside, all of them lie in the
node's folder, and nothing of the host is written to except that missing mount points are created (empty folders).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import cgroups, images, requirements
from localcluster.client import run_command
from localcluster.controlplane import ControlPlane
from localcluster.processes import Daemon, ProcessError
from localcluster.workspace import Workspace

SOCKET = "/run/containerd/containerd.sock"

INIT = Path(__file__).with_name("node.sh")

_PRIVATE_FOLDERS = (
    "/run/containerd",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)

_SYSCTLS = {
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/panic_on_oom": "0",
    "/proc/sys/kernel/panic": "10",
    "/proc/sys/kernel/panic_on_oops": "1",
    "/proc/sys/kernel/keys/root_maxkeys": "1000000",
    "/proc/sys/kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet insists on. It gets files that say so: the settings of the host are none of its business."""


@dataclass(frozen=True)
class Node:
    """A node of a cluster: on, or off."""

    name: str
    place: Workspace

    @property
    def folder(self) -> Path:
        return self.place.directory / self.name

    @property
    def cgroup(self) -> str:
        return f"{self.place.cgroup}/{self.name}"

    @property
    def daemon(self) -> Daemon:
        return self.place.daemons.daemon(self.name)

    def configure(self, plane: ControlPlane, ports: Iterator[int]) -> None:
        """Write everything that the node needs into its folder."""
        self.folder.mkdir(exist_ok=True)
        authority = plane.authority
        serving = authority.issue(f"{self.name}-serving", user=self.name, hosts=(self.name,))
        client = authority.issue(self.name, user=f"system:node:{self.name}", group="system:nodes")
        authority.kubeconfig(self.folder / "kubeconfig", server=plane.api.url, client=client)
        kubelet = _kubelet_configuration(
            port=next(ports),
            cgroup_root=f"/{self.cgroup}",
            authority=authority.certificate,
            certificate=serving.certificate,
            key=serving.key,
        )
        (self.folder / "kubelet.json").write_text(json.dumps(kubelet, indent=1))
        network = self.folder / "network"
        network.mkdir(exist_ok=True)
        (network / "loopback.conflist").write_text(json.dumps(_NETWORK))
        (self.folder / "containerd.toml").write_text(_containerd_configuration(network))
        for name, value in _SYSCTLS.items():
            file = self.folder / f"private{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value + "\n")

    def power_on(self) -> None:
        """Start the node; pods that were on it when it was switched off start again."""
        shutil.rmtree(self.folder / "private" / "run", ignore_errors=True)
        mounts = [(f"private{target}", target) for target in _PRIVATE_FOLDERS]
        for source, target in mounts:
            (self.folder / source).mkdir(parents=True, exist_ok=True)
            Path(target).mkdir(parents=True, exist_ok=True)
        mounts += [(f"private{target}", target) for target in _SYSCTLS if Path(target).exists()]
        (self.folder / "mounts").write_text("".join(f"{source} {target}\n" for source, target in mounts))
        cgroups.create(self.cgroup)
        namespaces = ["--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"]
        kubelet = requirements.binary("kubelet")
        if kubelet is None:
            raise FileNotFoundError("kubelet is not built: run `python -m localcluster.build`")
        containerd_log = self.place.daemons.daemon(f"{self.name}-containerd").log
        arguments: list[str | Path] = [self.place.directory / IMAGES, kubelet, self.name, containerd_log]
        self.place.daemons.start(
            self.name,
            ["unshare", *namespaces, f"--wd={self.folder}", "sh", INIT, *arguments],
            cgroup=cgroups.daemons_folder(self.cgroup),
        )

    def power_off(self) -> None:
        """Pull the plug: everything on the node is gone at once, without a signal that it could handle."""
        self.place.daemons.stop(self.name, grace=0)
        cgroups.remove(self.cgroup)

    def load_images(self, archive: Path) -> None:
        """Give the node the images in an archive. Raises `CommandError`, or `ProcessError` if the node is off."""
        first = self.daemon.identity
        if first is None:
            raise ProcessError(f"{self.name} is off")
        inside = [requirements.find_program("nsenter") or "nsenter", f"--target={first.pid}", "--mount"]
        command = ["ctr", "--namespace=k8s.io", "images", "import", "--snapshotter=native", str(archive)]
        run_command([*inside, *command], stdin=None, environment={}, check=True)


IMAGES = "images.tar"

_NETWORK = {"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]}
"""Pods use the host's network; the runtime only wants to see that there is a configuration."""


def _containerd_configuration(network: Path) -> str:
    return f"""
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs"]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
restrict_oom_score_adj = true
disable_tcp_service = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{requirements.cni_folder()}"
conf_dir = "{network}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""


def _kubelet_configuration(
    *, port: int, cgroup_root: str, authority: Path, certificate: Path, key: Path
) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": port,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "nodeStatusUpdateFrequency": "4s",
        "nodeStatusReportFrequency": "4s",
        # The disk is the host's: how full it is says nothing about the tests, and images must not be collected.
        "evictionHard": {"memory.available": "64Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 50,
        "registerNode": True,
    }
