"""The adapter over obstore (the Rust crate object_store): S3, Google Cloud Storage and Azure Blob Storage."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import obstore
import obstore.exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ConfigurationError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store import settings as secret
from checkpoint_sidecar.store.answers import explain_answer
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject, UnfinishedUpload
from checkpoint_sidecar.store.calls import LARGE_BODY, LEAST_TRIES, PATIENT, Calls, Fault, Patience, batches, name_keys
from checkpoint_sidecar.store.http_connections import CONNECT_SECONDS
from checkpoint_sidecar.store.listing import beginning
from checkpoint_sidecar.store.obstore_bodies import Clients, StreamedBodies
from checkpoint_sidecar.store.parts import PartedUpload
from checkpoint_sidecar.store.s3_bodies import S3Bodies
from checkpoint_sidecar.store.s3_faults import NO_CONNECTION, SILENT
from checkpoint_sidecar.store.s3_signing import DEFAULT_REGION, S3Identity
from checkpoint_sidecar.store.settings import Credentials, StoreSettings, redacted

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import AzureConfig, GCSConfig, S3Config, S3Credential

KEYS_PER_DELETE = 1000
"""What S3 accepts in one request."""

_ERRORS = (obstore.exceptions.BaseError, FileNotFoundError)

_STATUS = re.compile(r"status(?: code)?: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_TRANSPORT = re.compile(r"kind: (\w+)")
_METADATA_SERVICE = "169.254.169.254"
_NO_CERTIFICATES = "No CA certificates were loaded"
_ADD_CERTIFICATES = "Install the package ca-certificates in the image, or give ca.crt with the credentials."
_DEBUG_SYNTAX = re.compile(r'[\s,(){}"]+')

_RETRIES = 10
IDLE_SECONDS = 45.0
"""How long a connection is kept for the next request."""

ROTATION = dt.timedelta(seconds=30)
"""How long credentials from a folder are used before they are read again: in the middle of an upload, too."""


class ObstoreStore:
    """A ``Store`` in S3, Google Cloud Storage or Azure Blob Storage."""

    def __init__(self, settings: StoreSettings, *, patience: Patience = PATIENT) -> None:
        self._settings = settings
        self._patience = patience
        self._location = parse_url(settings.url)
        self._calls = Calls(settings, connect=self._connect, errors=_ERRORS, explain=_explain, patience=patience)
        self._bodies: S3Bodies | StreamedBodies = (
            S3Bodies(settings, patience) if self._location.scheme == "s3" else StreamedBodies(self, self._calls)
        )

    def __reduce__(self) -> tuple[type[ObstoreStore], tuple[StoreSettings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        return f"ObstoreStore({self._settings!r})"

    @property
    def url(self) -> str:
        return self._location.url

    def put(self, key: str, data: Buffer) -> None:
        view = memoryview(data).cast("B")

        def request(clients: Clients) -> object:
            client = clients.bodies if view.nbytes > LARGE_BODY else clients.requests
            return obstore.put(client, key, view, use_multipart=False)

        self._calls.write("write", key, request)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._calls.create(
            "create", key, lambda c: obstore.put(c.requests, key, view, mode="create", use_multipart=False)
        )

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        def request(clients: Clients) -> StoredObject:
            # The body is still at the store here: it is fetched by ``bytes`` only.
            result = obstore.get(clients.requests, key)
            info = _info(key, result.meta)
            if info.size > max_bytes:
                raise ObjectTooLargeError(
                    "read", f"{self.url}/{key}", f"it has {info.size} bytes, more than {max_bytes}"
                )
            return StoredObject(info, result.bytes().to_bytes())

        return self._calls.run("read", key, request)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._bodies.read_into(key, start, buffers)

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            return self._calls.run("look up", key, lambda c: _info(key, obstore.head(c.requests, key)))
        except ObjectNotFoundError:
            pass
        # A HEAD is answered without a body, so a missing bucket looks like a missing key; a GET tells them apart.
        try:
            return self._calls.run("look up", key, lambda c: _info(key, obstore.get(c.requests, key).meta))
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]

        def request(clients: Clients) -> list[ObjectInfo]:
            pages = obstore.list(clients.requests, folder or None, offset=beginning(after) or None, chunk_size=1000)
            return [_info(meta["path"], meta) for page in pages for meta in page]

        found = self._calls.run("list", prefix, request)
        found = [info for info in found if info.key.startswith(prefix) and info.key > after]
        return iter(sorted(found, key=lambda info: info.key))

    def upload(self, key: str, size: int) -> PartedUpload:
        return self._bodies.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        for batch in batches(keys, KEYS_PER_DELETE):
            self._calls.run("delete", name_keys(batch), functools.partial(_delete, batch))

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        # Azure and Google Cloud Storage expire uncommitted blocks and resumable uploads after a week.
        return self._bodies.unfinished(prefix) if isinstance(self._bodies, S3Bodies) else iter(())

    def discard(self, upload: UnfinishedUpload) -> None:
        if isinstance(self._bodies, S3Bodies):
            self._bodies.discard(upload)

    def _connect(self, values: Mapping[str, str]) -> Clients:
        make = _MAKERS[self._location.scheme]
        never = {"max_retries": 0, "retry_timeout": dt.timedelta(0)}
        # Quick failures end by the number of retries at about the deadline, slow ones by the time.
        repeated = {
            "max_retries": _RETRIES,
            "retry_timeout": dt.timedelta(
                seconds=self._patience.deadline_seconds + LEAST_TRIES * self._patience.body_seconds
            ),
            "backoff": {
                "init_backoff": dt.timedelta(seconds=self._patience.deadline_seconds / 600),
                "max_backoff": dt.timedelta(seconds=self._patience.deadline_seconds / 4),
                "base": 2,
            },
        }

        def client(answer_seconds: float, retries: dict[str, Any]) -> obstore.store.ObjectStore:
            http: dict[str, Any] = {
                "allow_http": self._settings.endpoint.startswith("http://"),
                "connect_timeout": dt.timedelta(seconds=CONNECT_SECONDS),
                "read_timeout": dt.timedelta(seconds=answer_seconds),
                # Of a whole request with its body; the default is 30 s.
                "timeout": dt.timedelta(seconds=self._patience.body_seconds),
                # Short enough that of the connections of a busy moment only one outlives the operator's idle looks.
                "pool_idle_timeout": dt.timedelta(seconds=IDLE_SECONDS),
            }
            if certificate := values.get(secret.CA_CERTIFICATE):
                http["root_certificate"] = certificate
            options = {"prefix": self._location.path or None, "client_options": http, "retry_config": retries}
            return make(self._settings, self._location.bucket, values, options)

        try:
            return Clients(
                requests=client(self._patience.answer_seconds, never),
                open_bodies=lambda: client(self._patience.body_seconds, repeated),
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            text = str(error)
        # Raised outside the handler: the client's exception may quote secrets and must not hang on ours.
        if _NO_CERTIFICATES in text:
            cause, hint = "this image has no CA certificates", _ADD_CERTIFICATES
        else:
            cause = f"the client refuses these settings or credentials ({_redacted(text, values)})"
            hint = "Check endpoint, region, credentials and ca.crt."
        raise ConfigurationError("open the store", self.url, cause, hint)


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


def _delete(batch: Sequence[str], clients: Clients) -> None:
    try:
        obstore.delete(clients.requests, batch)
    except FileNotFoundError as error:
        if _explain(error).kind is BucketNotFoundError:
            raise
        # Google and Azure report a missing key and leave the rest of the batch in doubt.
        for key in batch:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(clients.requests, key)


def _explain(error: Exception) -> Fault:
    # The kind of failure is only in the text (obstore 0.12): the exceptions carry no fields.
    text = str(error)
    code = match[1] if (match := _CODE.search(text)) else ""
    if match := _STATUS.search(text):
        if "token request" in text:
            return Fault(AccessDeniedError, f"the identity provider answered {match[1]}", "Check the credentials.")
        return explain_answer(int(match[1]), code)
    if "BareRedirect" in text:
        return explain_answer(301, code)
    if _METADATA_SERVICE in text:
        return Fault(
            AccessDeniedError,
            "no credentials were found: neither in the environment, nor a workload identity, nor an instance role",
            "Give credentials, or run where the platform provides an identity.",
        )
    kind = match[1] if (match := _TRANSPORT.search(text)) else "Unknown"
    return _TRANSPORT_FAULTS.get(kind, Fault(StoreError, f"the connection failed ({kind})", sent=True))


_TRANSPORT_FAULTS = {
    "Connect": NO_CONNECTION,
    "Timeout": SILENT,
    "Interrupted": Fault(StoreError, "the connection broke off", sent=True),
}


def _redacted(text: str, values: Mapping[str, str]) -> str:
    """What the client says, in one line; what its builder says stands at the end of a dump of the error."""
    first = text.partition("\n")[0]
    if "builder error" in first:
        first = f"{first}: {_DEBUG_SYNTAX.sub(' ', text.rpartition('source:')[2]).strip()}"
    return redacted(first, values)


def _info(key: str, meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(key, meta["size"], meta["last_modified"].astimezone(dt.UTC))
