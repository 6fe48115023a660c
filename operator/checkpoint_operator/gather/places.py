"""The server and the connection that a Checkpoint's settings lead to. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from checkpoint_operator.gather.endpoint_rules import Endpoint
from checkpoint_sidecar.core.api import Storage
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import (
    AZURE_STORAGE_ACCOUNT_NAME,
    CA_CERTIFICATE,
    GOOGLE_APPLICATION_CREDENTIALS_JSON,
    StoreSettings,
)
from checkpoint_sidecar.store.google.identity import named_server
from checkpoint_sidecar.store.s3.target import target_of

GOOGLE_BASE_URL = "gcs_base_url"

# Not all hosts below amazonaws.com are the cloud's: its customers' machines and load balancers have names there, too.
_CLOUDS = {
    "s3": re.compile(r"(.+\.)?s3[a-z0-9-]*(\.dualstack)?(\.[a-z]+(-[a-z]+)+-[0-9])?(\.vpce)?\.amazonaws\.com(\.cn)?"),
    "gs": re.compile(r"(.+\.)?storage\.googleapis\.com"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A host and port, or a cloud's own service; with Azure, an account there."""

    name: str
    account: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """All that decides whether a connection succeeds. Equal for Checkpoints that succeed or fail together."""

    server: Server
    bucket: str = ""
    certificate: str = ""


def server_of(settings: StoreSettings) -> Server:
    """Return the server that settings lead to. Names are compared, not addresses: one server may have several."""
    scheme = parse_url(settings.url).scheme
    values = settings.credentials.read()
    named = settings.endpoint
    if scheme == "gs" and not named:
        named = google_base_url(values.get(GOOGLE_APPLICATION_CREDENTIALS_JSON, ""))
    account = values.get(AZURE_STORAGE_ACCOUNT_NAME, "") if scheme == "az" else ""
    return Server(_server_name(scheme, named), account)


def server_without_secret(storage: Storage) -> Server | None:
    """Return the server that a spec leads to, or None if its Secret decides."""
    try:
        scheme = parse_url(storage.url).scheme
    except ConfigurationError:
        return None
    if scheme in ("az", "gs") and storage.credentials_secret is not None:
        return None
    return server_of(StoreSettings(storage.url, storage.endpoint))


def nowhere(reason: str) -> Server:
    """Return a server for a Checkpoint that leads to none; it equals no other one."""
    return Server("", reason)


def connection_of(settings: StoreSettings) -> Connection:
    """Return what connections with these settings depend on."""
    location = parse_url(settings.url)
    style, region = settings.addressing_style, settings.region
    target = target_of(location.bucket, style=style, region=region, endpoint=settings.endpoint)
    in_host = location.scheme == "s3" and target.virtual_hosted
    certificate = settings.credentials.read().get(CA_CERTIFICATE, "")
    return Connection(
        server_of(settings),
        bucket=location.bucket if in_host else "",
        certificate=hashlib.sha256(certificate.encode()).hexdigest() if certificate else "",
    )


def google_base_url(key: str) -> str:
    """Return the server that a Google key names, or an empty string."""
    try:
        return named_server(key)
    except ValueError:
        return ""  # the check of the servers refuses it


def _server_name(scheme: str, named: str) -> str:
    if not named:
        return scheme
    try:
        endpoint = Endpoint.parse(named)
    except ValueError:
        return named  # the check of the servers refuses it
    cloud = _CLOUDS.get(scheme)
    if cloud is not None and cloud.fullmatch(endpoint.host):
        return scheme
    return f"{endpoint.host}:{endpoint.port}"
