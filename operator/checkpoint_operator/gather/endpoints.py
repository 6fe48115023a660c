"""Checks the servers that a store's settings lead to, before the first request. Resolves names, so it blocks."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from checkpoint_operator.gather.endpoint_rules import Address, Endpoint, refusal
from checkpoint_operator.gather.places import GOOGLE_BASE_URL
from checkpoint_operator.gather.run_store import Rules, StorageFaultError
from checkpoint_operator.model.observed import StoreFault
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import (
    AZURE_STORAGE_ACCOUNT_NAME,
    GOOGLE_APPLICATION_CREDENTIALS_JSON,
    StoreSettings,
)
from checkpoint_sidecar.store.azure.identity import ACCOUNT
from checkpoint_sidecar.store.google.identity import named_server
from checkpoint_sidecar.store.s3.target import target_of


def check_servers(settings: StoreSettings, rules: Rules) -> None:
    """Refuse settings that would send the operator where it must not go.

    The client resolves names again when it connects; this cannot catch a name whose answer changes in between.

    Raises:
        StorageFaultError: An endpoint is not allowed, or a value of the Secret that becomes part of one makes no sense.
    """
    for named, url in _named(settings):
        try:
            endpoint = Endpoint.parse(url)
        except ValueError as error:
            raise StorageFaultError(StoreFault(Reason.INVALID_SPEC, f"{named}: {error}.", stalled=True)) from error
        addresses = [address for host in _hosts(endpoint, settings) for address in _resolve(host)]
        why = refusal(endpoint, addresses, allowed=rules.endpoints, api_server=rules.api_server)
        if why:
            message = (
                f"The operator sends nothing to {named} {endpoint}: {why}. Use another endpoint, or have the "
                "administrator list this one."
            )
            raise StorageFaultError(StoreFault(Reason.ENDPOINT_NOT_ALLOWED, message, stalled=True))


def _named(settings: StoreSettings) -> Iterator[tuple[str, str]]:
    """Yield each setting that names a server, and its URL. Users do not choose the names of the cloud's own servers."""
    scheme = parse_url(settings.url).scheme
    values = settings.credentials.read()
    if settings.endpoint:
        yield "spec.storage.endpoint", settings.endpoint
    key = values.get(GOOGLE_APPLICATION_CREDENTIALS_JSON)
    if scheme == "gs" and key is not None:
        base_url = _server_of(key)
        if base_url:
            yield f"{GOOGLE_BASE_URL} in {GOOGLE_APPLICATION_CREDENTIALS_JSON}", base_url
    account = values.get(AZURE_STORAGE_ACCOUNT_NAME)
    if scheme == "az" and account is not None and not ACCOUNT.fullmatch(account):
        # It becomes a part of the host's name.
        message = f"{AZURE_STORAGE_ACCOUNT_NAME} is not an account name. Use 3 to 24 lowercase letters and digits."
        raise StorageFaultError(StoreFault(Reason.INVALID_CREDENTIALS, message))


def _server_of(key: str) -> str:
    try:
        return named_server(key)
    except ValueError as error:
        # What cannot be read here must not be read elsewhere: a client that reads more might connect to more.
        message = f"{GOOGLE_APPLICATION_CREDENTIALS_JSON} cannot be used: {error}."
        raise StorageFaultError(StoreFault(Reason.INVALID_CREDENTIALS, message)) from None


def _hosts(endpoint: Endpoint, settings: StoreSettings) -> tuple[str, ...]:
    location = parse_url(settings.url)
    style, region = settings.addressing_style, settings.region
    target = target_of(location.bucket, style=style, region=region, endpoint=settings.endpoint)
    # With wildcard DNS a bucket of the user's choice makes a host of the user's choice.
    if location.scheme == "s3" and target.virtual_hosted:
        return endpoint.host, f"{location.bucket}.{endpoint.host}"
    return (endpoint.host,)


def _resolve(host: str) -> list[Address]:
    """Resolve a name; empty if that is impossible here, for example because a proxy resolves names."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: an invalid host name, such as one with an empty label
        return []
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
