"""obstore's clients of one bucket: how patient they are, and who they say they are."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import obstore
import obstore.exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store import settings as secret
from checkpoint_sidecar.store.calls import LEAST_TRIES, Patience
from checkpoint_sidecar.store.http_connections import CONNECT_SECONDS
from checkpoint_sidecar.store.s3_signing import DEFAULT_REGION, S3Identity
from checkpoint_sidecar.store.settings import Credentials, StoreSettings, redacted

if TYPE_CHECKING:
    from obstore.store import AzureConfig, GCSConfig, S3Config, S3Credential

_NO_CERTIFICATES = "No CA certificates were loaded"
_ADD_CERTIFICATES = "Install the package ca-certificates in the image, or give ca.crt with the credentials."
_DEBUG_SYNTAX = re.compile(r'[\s,(){}"]+')

_RETRIES = 10
IDLE_SECONDS = 45.0
"""How long a connection is kept for the next request."""

ROTATION = dt.timedelta(seconds=30)
"""How long credentials from a folder are used before they are read again: in the middle of an upload, too."""


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


def _s3(settings: StoreSettings, bucket: str, values: Mapping[str, str], options: dict[str, Any]) -> S3Store:
    config: S3Config = {
        "conditional_put": "etag",
        "virtual_hosted_style_request": settings.virtual_hosted,
        "skip_signature": False,
    }
    # A provider replaces all of the job's own AWS_* variables; single values would mix with them.
    if settings.credentials.ambient:
        identity = S3Identity(settings, values)
        config["region"] = identity.region
        config["endpoint"] = _s3_endpoint(settings, identity.endpoint, bucket)
        http = options["client_options"] | {"allow_http": identity.endpoint.startswith("http://")}
        options = options | {"credential_provider": _AmbientIdentity(identity), "client_options": http}
    else:
        region = settings.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        config["region"] = region = region or DEFAULT_REGION
        # Else the client would take the job's own AWS_ENDPOINT_URL for a bucket that it has nothing to do with.
        standard = f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
        config["endpoint"] = _s3_endpoint(settings, settings.endpoint or standard, bucket)
        options = options | {"credential_provider": _GivenIdentity(settings.credentials, values)}
    return S3Store(bucket, config=config, **options)


def _s3_endpoint(settings: StoreSettings, endpoint: str, bucket: str) -> str:
    """The endpoint as the client wants it: with the bucket in the host name if the addressing style puts it there."""
    scheme, _, host = endpoint.rstrip("/").partition("://")
    return f"{scheme}://{bucket}.{host}" if settings.virtual_hosted else f"{scheme}://{host}"


class _AmbientIdentity:
    """Who we are by botocore, which renews what expires; asked for again as often as a folder is read again."""

    refresh_threshold = dt.timedelta(0)

    def __init__(self, identity: S3Identity) -> None:
        self._identity = identity

    def __call__(self) -> S3Credential:
        found = self._identity.frozen()
        return _for_now(found.access_key, found.secret_key, found.token)


class _GivenIdentity:
    """Who we are, as obstore asks for it whenever the last answer has expired."""

    refresh_threshold = dt.timedelta(0)

    def __init__(self, credentials: Credentials, values: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._values = values

    def __call__(self) -> S3Credential:
        # A Secret that is being replaced or was removed leaves the identity as it is, until the store denies it.
        with contextlib.suppress(ConfigurationError):
            self._values = self._credentials.read_for("s3")
        return _for_now(
            self._values[secret.AWS_ACCESS_KEY_ID],
            self._values[secret.AWS_SECRET_ACCESS_KEY],
            self._values.get(secret.AWS_SESSION_TOKEN),
        )


def _for_now(key: str, secret_key: str, token: str | None) -> S3Credential:
    """An identity that obstore asks for again after ``ROTATION``."""
    return {
        "access_key_id": key,
        "secret_access_key": secret_key,
        "token": token,
        "expires_at": dt.datetime.now(dt.UTC) + ROTATION,
    }


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
    "s3": _s3,
    "gs": _google,
    "az": _azure,
}


def _redacted(text: str, values: Mapping[str, str]) -> str:
    """What the client says, in one line; what its builder says stands at the end of a dump of the error."""
    first = text.partition("\n")[0]
    if "builder error" in first:
        first = f"{first}: {_DEBUG_SYNTAX.sub(' ', text.rpartition('source:')[2]).strip()}"
    return redacted(first, values)
