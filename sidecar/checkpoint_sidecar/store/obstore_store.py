"""The adapter over obstore (the Rust crate object_store): S3, Google Cloud Storage and Azure Blob Storage."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
    TruncatedObjectError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store import settings as secret
from checkpoint_sidecar.store.answers import explain_answer
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject, UnfinishedUpload
from checkpoint_sidecar.store.calls import LARGE_BODY, LEAST_TRIES, PATIENT, Calls, Fault, Patience, batches, name_keys
from checkpoint_sidecar.store.listing import beginning
from checkpoint_sidecar.store.parts import PartedUpload
from checkpoint_sidecar.store.s3_bodies import S3Bodies
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

_PARALLEL_PARTS = 8

ROTATION = dt.timedelta(seconds=30)
"""How long credentials from a folder are used before they are read again: in the middle of an upload, too."""


@dataclass(frozen=True, slots=True)
class _Clients:
    """Two clients of one bucket.

    Attributes:
        requests: Never repeats anything by itself: a lost reply to a create must not become a lost race.
        bodies: For large ones. It is patient, and repeats requests by itself: an upload's parts are out of our reach.
    """

    requests: obstore.store.ObjectStore
    bodies: obstore.store.ObjectStore


class ObstoreStore:
    """A ``Store`` in S3, Google Cloud Storage or Azure Blob Storage."""

    def __init__(self, settings: StoreSettings, *, patience: Patience = PATIENT) -> None:
        self._settings = settings
        self._patience = patience
        self._location = parse_url(settings.url)
        self._calls = Calls(settings, connect=self._connect, errors=_ERRORS, explain=_explain, patience=patience)
        self._s3_bodies = S3Bodies(settings, patience) if self._location.scheme == "s3" else None

    def __reduce__(self) -> tuple[type[ObstoreStore], tuple[StoreSettings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        return f"ObstoreStore({self._settings!r})"

    @property
    def url(self) -> str:
        return self._location.url

    def put(self, key: str, data: Buffer) -> None:
        view = memoryview(data).cast("B")

        def request(clients: _Clients) -> object:
            client = clients.bodies if view.nbytes > LARGE_BODY else clients.requests
            return obstore.put(client, key, view, use_multipart=False)

        self._calls.write("write", key, request)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._calls.create(
            "create", key, lambda c: obstore.put(c.requests, key, view, mode="create", use_multipart=False)
        )

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        def request(clients: _Clients) -> StoredObject:
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
        if self._s3_bodies is not None:
            self._s3_bodies.read_into(key, start, buffers)
        else:
            self._read_into(key, start, buffers)

    def _read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        length = sum(buffer.nbytes for buffer in buffers)
        if length == 0:
            return
        data = memoryview(
            self._calls.run(
                "read a range of", key, lambda c: obstore.get_range(c.requests, key, start=start, length=length)
            )
        )
        if data.nbytes != length:
            raise TruncatedObjectError(
                "read a range of", f"{self.url}/{key}", f"{data.nbytes} of {length} bytes at offset {start} exist"
            )
        position = 0
        for buffer in buffers:
            buffer.cast("B")[:] = data[position : position + buffer.nbytes]
            position += buffer.nbytes

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

        def request(clients: _Clients) -> list[ObjectInfo]:
            pages = obstore.list(clients.requests, folder or None, offset=beginning(after) or None, chunk_size=1000)
            return [_info(meta["path"], meta) for page in pages for meta in page]

        found = self._calls.run("list", prefix, request)
        found = [info for info in found if info.key.startswith(prefix) and info.key > after]
        return iter(sorted(found, key=lambda info: info.key))

    def upload(self, key: str, size: int) -> PartedUpload:
        return self._s3_bodies.upload(key, size) if self._s3_bodies is not None else StreamedUpload(self, key, size)

    def delete(self, keys: Iterable[str]) -> None:
        for batch in batches(keys, KEYS_PER_DELETE):
            self._calls.run("delete", name_keys(batch), functools.partial(_delete, batch))

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        # Azure and Google Cloud Storage expire uncommitted blocks and resumable uploads after a week.
        return iter(()) if self._s3_bodies is None else self._s3_bodies.unfinished(prefix)

    def discard(self, upload: UnfinishedUpload) -> None:
        if self._s3_bodies is not None:
            self._s3_bodies.discard(upload)

    def _connect(self, values: Mapping[str, str]) -> _Clients:
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
                "connect_timeout": dt.timedelta(seconds=5),
                "read_timeout": dt.timedelta(seconds=answer_seconds),
                # Of a whole request with its body; the default is 30 s.
                "timeout": dt.timedelta(seconds=self._patience.body_seconds),
            }
            if certificate := values.get(secret.CA_CERTIFICATE):
                http["root_certificate"] = certificate
            options = {"prefix": self._location.path or None, "client_options": http, "retry_config": retries}
            return make(self._settings, self._location.bucket, values, options)

        try:
            return _Clients(
                requests=client(self._patience.answer_seconds, never),
                bodies=client(self._patience.body_seconds, repeated),
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


class StreamedUpload(PartedUpload):
    """Feeds the parts, in order, to obstore, which runs in a thread of ours: given an iterator it sends some of them at
    a time, and aborts the upload if one fails or the iterator raises. (Its file-like writer cannot be aborted once it
    failed.) A part counts as written when so many later ones were asked for that it must be stored, or nearly.
    """

    def __init__(self, store: ObstoreStore, key: str, size: int) -> None:
        super().__init__(f"{store.url}/{key}", size)
        self._store = store
        self._key = key
        self._waiting: dict[int, Sequence[memoryview]] = {}
        self._fed = 0
        self._thread: ThreadPoolExecutor | None = None
        self._sending: Future[object] | None = None

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        with self._changed:
            self._waiting[index] = views
            if self._parts == 1:
                return
            if self._sending is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
                self._sending = self._thread.submit(self._send)
                self._sending.add_done_callback(self._ended)
            self._changed.notify_all()
            self._changed.wait_for(lambda: index < self._fed or self._over(self._sending))
            taken = index < self._fed
        if not taken:
            if self._open and self._sending is not None:
                self._sending.result()
            raise self._aborted()

    def _publish(self) -> None:
        if self._sending is None:
            self._store.put(self._key, b"".join(self._waiting.get(0, ())))
            return
        try:
            self._sending.result()
        except (ObjectNotFoundError, UnknownOutcomeError):
            # Perhaps the upload was completed and the answer lost: then the client has found nothing to abort.
            info = self._store.stat(self._key)
            if info is None or info.size != self._size:
                raise
        finally:
            self._join()

    def _interrupt(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _discard(self) -> None:
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _over(self, sending: Future[object] | None) -> bool:
        return not self._open or (sending is not None and sending.done())

    def _ended(self, _: Future[object]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _send(self) -> object:
        return self._store._calls.once(
            "upload",
            self._key,
            lambda c: obstore.put(
                c.bodies,
                self._key,
                self._feed(),
                use_multipart=True,
                chunk_size=self._part_bytes,
                max_concurrency=_PARALLEL_PARTS,
            ),
        )

    def _feed(self) -> Iterator[memoryview]:
        for index in range(self._parts):
            with self._changed:
                self._changed.wait_for(lambda: index in self._waiting or not self._open)  # noqa: B023 - used at once
                if not self._open:
                    raise _AbortedError
                views = self._waiting.pop(index)
            yield from views
            with self._changed:
                self._fed = index + 1
                self._changed.notify_all()


class _AbortedError(Exception):
    """Makes obstore abort the upload."""


def _s3(settings: StoreSettings, bucket: str, values: Mapping[str, str], options: dict[str, Any]) -> S3Store:
    config: S3Config = {
        "conditional_put": "etag",
        "virtual_hosted_style_request": settings.virtual_hosted,
        "skip_signature": False,
    }
    if settings.region:
        config["region"] = settings.region
    if endpoint := _s3_endpoint(settings, bucket):
        config["endpoint"] = endpoint
    if not settings.credentials.ambient:
        # A provider replaces all of the job's own AWS_* variables; single values would mix with them.
        options = options | {"credential_provider": _S3Identity(settings.credentials, values)}
    return S3Store(bucket, config=config, **options)


class _S3Identity:
    """Who we are, as obstore asks for it whenever the last answer has expired."""

    refresh_threshold = dt.timedelta(0)

    def __init__(self, credentials: Credentials, values: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._values = values

    def __call__(self) -> S3Credential:
        # A Secret that is being replaced or was removed leaves the identity as it is, until the store denies it.
        with contextlib.suppress(ConfigurationError):
            self._values = self._credentials.read_for("s3")
        return {
            "access_key_id": self._values[secret.AWS_ACCESS_KEY_ID],
            "secret_access_key": self._values[secret.AWS_SECRET_ACCESS_KEY],
            "token": self._values.get(secret.AWS_SESSION_TOKEN),
            "expires_at": dt.datetime.now(dt.UTC) + ROTATION,
        }


def _s3_endpoint(settings: StoreSettings, bucket: str) -> str:
    """The endpoint as the client wants it: with the bucket in the host name if the addressing style puts it there."""
    endpoint = settings.endpoint.rstrip("/")
    if not endpoint and not settings.credentials.ambient:
        # Else the client would take the job's own AWS_ENDPOINT_URL for a bucket that it has nothing to do with.
        region = settings.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        endpoint = f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    if not endpoint or not settings.virtual_hosted:
        return endpoint
    scheme, _, host = endpoint.partition("://")
    return f"{scheme}://{bucket}.{host}"


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


def _delete(batch: Sequence[str], clients: _Clients) -> None:
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
    "Connect": Fault(StoreError, "no connection to the store", "Check endpoint, proxy, DNS and certificates."),
    "Timeout": Fault(StoreError, "the store did not answer in time", sent=True),
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
