"""Chooses the proxy of a request from the environment, by the rules of Go's ``net/http``, for every client.

``HTTPS_PROXY`` and ``HTTP_PROXY`` apply by the scheme of the request, ``NO_PROXY`` has the exceptions, in upper or
lower case. Requests to this host never use a proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from checkpoint_sidecar.core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is used without TLS. ``str`` gives its host and port.

    Attributes:
        url: URL in the form of HTTP libraries, with user and password.
        authorization: Headers that authorize requests to it.
    """

    host: str
    port: int
    url: str = field(repr=False)
    authorization: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy for requests to a server, or None.

    Raises:
        ConfigurationError: The variable does not name a proxy.
    """
    name = f"{scheme}_proxy"
    text = _variable(name)
    if not text or _excepted(host.lower().rstrip("."), port, _variable("no_proxy")):
        return None
    try:
        return _parse(text)
    except ValueError:
        raise ConfigurationError(
            "connect to the store through the proxy in",
            name.upper(),
            "its value is not the URL of a proxy",
            "Set it to http://[<user>:<password>@]<host>:<port>, or remove it.",
        ) from None


def _parse(text: str) -> Proxy:
    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme != "http" or not url.hostname:
        raise ValueError
    authorization = {}
    if url.username is not None:
        user = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
        authorization["Proxy-Authorization"] = f"Basic {base64.b64encode(user).decode()}"
    return Proxy(url.hostname, url.port or 80, url.geturl(), authorization)


def _variable(name: str) -> str:
    return (os.environ.get(name.upper()) or os.environ.get(name) or "").strip()


def _excepted(host: str, port: int, exceptions: str) -> bool:
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_covers(entry.strip().lower(), host, address, port) for entry in exceptions.split(","))


def _covers(entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    """Return whether a part of ``NO_PROXY`` matches: ``*``, an address, network or domain, each perhaps with a port."""
    if entry == "*":
        return True
    network = _network(entry)
    if network is not None:
        return address is not None and address in network
    name, _, entry_port = entry.rpartition(":") if entry.rpartition(":")[2].isdigit() else (entry, "", "")
    if not name or (entry_port and int(entry_port) != port):
        return False
    if (named := _address(name.strip("[]"))) is not None:
        return named == address
    domain = name.removeprefix("*").rstrip(".")
    return host.endswith(domain) if domain.startswith(".") else host == domain or host.endswith(f".{domain}")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
