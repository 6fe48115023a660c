"""obstore's clients of one bucket: how patient they are, and who they say they are."""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import obstore
import obstore.exceptions
from obstore.store import AzureStore, GCSStore

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store import settings as secret
from checkpoint_sidecar.store.calls import LEAST_TRIES, Patience
from checkpoint_sidecar.store.http_connections import CONNECT_SECONDS
from checkpoint_sidecar.store.settings import StoreSettings, redacted

if TYPE_CHECKING:
    from obstore.store import AzureConfig, GCSConfig

_NO_CERTIFICATES = "No CA certificates were loaded"
_ADD_CERTIFICATES = "Install the package ca-certificates in the image, or give ca.crt with the credentials."
_DEBUG_SYNTAX = re.compile(r'[\s,(){}"]+')

_RETRIES = 10
IDLE_SECONDS = 45.0
"""How long a connection is kept for the next request."""


class Clients:
    """Two clients of one bucket.

    Args:
        open_bodies: Makes the second one when the first large object comes: a client takes memory of its own.

    Attributes:
        requests: Never repeats anything by itself: a lost reply to a create must not become a lost race.
    """

    def __init__(
        self, requests: obstore.store.ObjectStore, open_bodies: Callable[[], obstore.store.ObjectStore]
    ) -> None:
        self.requests = requests
        self._open_bodies = open_bodies

    @functools.cached_property
    def bodies(self) -> obstore.store.ObjectStore:
        """For large ones. It is patient, and repeats requests by itself: an upload's parts are out of our reach."""
        return self._open_bodies()


def open_clients(settings: StoreSettings, patience: Patience, values: Mapping[str, str]) -> Clients:
    """The clients of a bucket.

    Args:
        values: The credentials; empty for the ambient identity.

    Raises:
        ConfigurationError: They refuse the settings or the credentials.
        AccessDeniedError: There is no ambient identity.
    """
    location = parse_url(settings.url)
    make = _MAKERS[location.scheme]
    never = {"max_retries": 0, "retry_timeout": dt.timedelta(0)}
    # Quick failures end by the number of retries at about the deadline, slow ones by the time.
    repeated = {
        "max_retries": _RETRIES,
        "retry_timeout": dt.timedelta(seconds=patience.deadline_seconds + LEAST_TRIES * patience.body_seconds),
        "backoff": {
            "init_backoff": dt.timedelta(seconds=patience.deadline_seconds / 600),
            "max_backoff": dt.timedelta(seconds=patience.deadline_seconds / 4),
            "base": 2,
        },
    }

    def client(answer_seconds: float, retries: dict[str, Any]) -> obstore.store.ObjectStore:
        http: dict[str, Any] = {
            "allow_http": settings.endpoint.startswith("http://"),
            "connect_timeout": dt.timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": dt.timedelta(seconds=answer_seconds),
            # Of a whole request with its body; the default is 30 s.
            "timeout": dt.timedelta(seconds=patience.body_seconds),
            # Short enough that of the connections of a busy moment only one outlives the operator's idle looks.
            "pool_idle_timeout": dt.timedelta(seconds=IDLE_SECONDS),
        }
        if certificate := values.get(secret.CA_CERTIFICATE):
            http["root_certificate"] = certificate
        return make(settings, location.bucket, values, {"client_options": http, "retry_config": retries})

    try:
        return Clients(
            requests=client(patience.answer_seconds, never),
            open_bodies=lambda: client(patience.body_seconds, repeated),
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        text = str(error)
    # Raised outside the handler: the client's exception may quote secrets and must not hang on ours.
    if _NO_CERTIFICATES in text:
        cause, hint = "this image has no CA certificates", _ADD_CERTIFICATES
    else:
        cause = f"the client refuses these settings or credentials ({_redacted(text, values)})"
        hint = "Check endpoint, region, credentials and ca.crt."
    raise ConfigurationError("open the store", settings.url, cause, hint)


def _google(settings: StoreSettings, bucket: str, values: Mapping[str, str], options: dict[str, Any]) -> GCSStore:
    config: GCSConfig = {}
    if settings.endpoint:
        config["base_url"] = settings.endpoint.rstrip("/")
    if not settings.credentials.ambient:
        config["service_account_key"] = values[secret.GOOGLE_APPLICATION_CREDENTIALS_JSON]
    return GCSStore(bucket, config=config, **options)


def _azure(settings: StoreSettings, bucket: str, values: Mapping[str, str], options: dict[str, Any]) -> AzureStore:
    config: AzureConfig = {}
    if settings.endpoint:
        config["endpoint"] = settings.endpoint.rstrip("/")
    if not settings.credentials.ambient:
        config["account_name"] = values[secret.AZURE_STORAGE_ACCOUNT_NAME]
        if account_key := values.get(secret.AZURE_STORAGE_ACCOUNT_KEY):
            config["account_key"] = account_key
        else:
            config["sas_key"] = values[secret.AZURE_STORAGE_SAS_TOKEN]
    return AzureStore(bucket, config=config, **options)


_MAKERS: dict[str, Callable[[StoreSettings, str, Mapping[str, str], dict[str, Any]], obstore.store.ObjectStore]] = {
    "gs": _google,
    "az": _azure,
}


def _redacted(text: str, values: Mapping[str, str]) -> str:
    """What the client says, in one line; what its builder says stands at the end of a dump of the error."""
    first = text.partition("\n")[0]
    if "builder error" in first:
        first = f"{first}: {_DEBUG_SYNTAX.sub(' ', text.rpartition('source:')[2]).strip()}"
    return redacted(first, values)
