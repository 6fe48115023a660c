"""Free loopback ports and addresses, and the line in the hosts file."""

from __future__ import annotations

import fcntl
import random
import socket
from collections.abc import Iterator
from pathlib import Path

# Below Linux's default range of ephemeral ports: no outgoing connection takes a chosen port before its daemon does.
PORTS = range(20000, 32000)
HOSTS_FILE = Path("/etc/hosts")


def can_bind(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def free_ports() -> Iterator[int]:
    """Distinct ports that are free on loopback, in random order so that clusters that start together rarely meet."""
    return (port for port in random.sample(PORTS, len(PORTS)) if can_bind("127.0.0.1", port))


def service_network(port: int) -> str | None:
    """The first two octets `127.N` of a loopback network with `port` free on its first address; None if all are taken.

    Service addresses inside loopback are what lets pods with `hostNetwork` reach the API server at the address of the
    `kubernetes` service although no kube-proxy runs.
    """
    for second in random.sample(range(64, 250), 186):
        if can_bind(f"127.{second}.0.1", port):
            return f"127.{second}"
    return None


def add_hosts_line(names: list[str], marker: str) -> None:
    """Make `names` resolve to 127.0.0.1: the API server reaches kubelets (logs, exec) by host name."""
    _edit_hosts(marker, f"127.0.0.1 {' '.join(names)} # {marker}\n")


def remove_hosts_line(marker: str) -> None:
    if HOSTS_FILE.exists() and marker in HOSTS_FILE.read_text():
        _edit_hosts(marker, "")


def _edit_hosts(marker: str, line: str) -> None:
    # In place, not by rename: inside containers the hosts file is a bind mount.
    with HOSTS_FILE.open("r+") as hosts:
        fcntl.flock(hosts, fcntl.LOCK_EX)
        kept = [old for old in hosts.readlines() if not old.rstrip().endswith(f"# {marker}")]
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        hosts.seek(0)
        hosts.write("".join(kept) + line)
        hosts.truncate()
