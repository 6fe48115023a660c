"""Free loopback ports and addresses."""

from __future__ import annotations

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
