"""Decides which servers ``spec.storage.endpoint`` may name. Pure: the caller has resolved the names.

Users write endpoints, and the operator can reach servers that users cannot: the cluster's API, and, through the node,
the service that hands out the machine's cloud identity.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from checkpoint_sidecar.core.location import parse_endpoint

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+"
_PATTERN = re.compile(rf"(?:(https?)://)?(\*|(?:\*\.)?(?:{_HOST}))(?::([0-9]{{1,5}}))?/?")
_PORTS = {"http": 80, "https": 443}

_IDENTITY_NAMES = frozenset({"metadata", "metadata.google.internal"})
# Those that are not link-local: AWS and Google over IPv6, Alibaba, Azure, Oracle.
_IDENTITY_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in ("fd00:ec2::/32", "fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that a spec or a Secret names. ``str`` gives it as a URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """From ``http(s)://<host>[:<port>]``.

        Raises:
            ValueError: It is something else.
        """
        scheme, host, port = parse_endpoint(url)
        return cls(scheme, _plain(host), _PORTS[scheme] if port is None else port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A rule for endpoints that an administrator allows.

    Attributes:
        scheme, port: Empty and None for any.
        host: A host, ``*.example.com`` for every name that ends so, or ``*``.
    """

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From ``[http(s)://]<host>[:<port>]``.

        Raises:
            ValueError: It is something else.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not [http(s)://]<host>[:<port>]; <host> may be * or begin with *.")
        return cls(match[1] or "", _plain(match[2]), int(match[3]) if match[3] else None)

    @property
    def names_one_host(self) -> bool:
        return not self.host.startswith("*")

    def covers(self, endpoint: Endpoint) -> bool:
        if self.scheme not in ("", endpoint.scheme) or self.port not in (None, endpoint.port):
            return False
        if self.names_one_host:
            return endpoint.host == self.host
        return endpoint.host.endswith(self.host.removeprefix("*"))


def refusal(
    endpoint: Endpoint, addresses: Iterable[Address], *, allowed: Sequence[Pattern] = (), api_server: str = ""
) -> str:
    """Return why the operator sends nothing to an endpoint, or an empty string.

    Args:
        addresses: Every address that a connection to it may reach.
        allowed: If there are any, an endpoint must be one of them. Where one names this very host, the administrator
            has decided; else what is never an object store is refused.
        api_server: Address of the cluster's own API, as pods know it.
    """
    covering = [pattern for pattern in allowed if pattern.covers(endpoint)]
    if any(pattern.names_one_host for pattern in covering):
        return ""
    if allowed and not covering:
        return "it is not among the endpoints that the operator's administrator allows"
    if endpoint.host in _IDENTITY_NAMES:
        return "it is where clouds give a machine its identity"
    for address in addresses:
        what = _never_a_store(_unwrapped(address), api_server)
        if what:
            return f"it leads to {address}, {what}"
    return ""


def _never_a_store(address: Address, api_server: str) -> str:
    if address.is_loopback or address.is_unspecified:
        return "the operator's own host"
    if address.is_link_local or any(address in network for network in _IDENTITY_NETWORKS):
        return "where clouds give a machine its identity"
    if address.is_multicast:
        return "a multicast address"
    return "the cluster's own API" if str(address) == api_server else ""


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 one, if there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()
