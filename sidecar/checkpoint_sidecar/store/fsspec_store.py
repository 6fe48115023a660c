"""The adapter over fsspec: S3 through s3fs.

s3fs brings the client, its event loop, the configuration and the chain of credentials. Its file interface is not used:
it publishes truncated objects when a block is left by an exception, drops errors of single keys in bulk deletes, and
serves listings from a cache (s3fs 2026.9). The S3 operations themselves are called instead; large objects do not go
through it (``s3_bodies``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions as boto
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError

from checkpoint_sidecar.core.errors import ObjectNotFoundError, ObjectTooLargeError, RequestRefusedError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store import settings as secret
from checkpoint_sidecar.store.answers import explain_answer
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject, UnfinishedUpload
from checkpoint_sidecar.store.calls import LARGE_BODY, PATIENT, Calls, Fault, Patience, batches, name_keys
from checkpoint_sidecar.store.http_connections import CONNECT_SECONDS
from checkpoint_sidecar.store.listing import beginning
from checkpoint_sidecar.store.s3_bodies import S3Bodies, S3Upload
from checkpoint_sidecar.store.s3_faults import BOTO_ERRORS, SILENT, explain_boto
from checkpoint_sidecar.store.s3_signing import certificate_file, delete_with
from checkpoint_sidecar.store.settings import StoreSettings

KEYS_PER_DELETE = 1000
"""What S3 accepts in one request."""

Result = TypeVar("Result")


class _NoObjectError(Exception):
    """An answer describes no object: aiohttp follows redirects, and what it is led to may be any server."""


_ERRORS = (OSError, *BOTO_ERRORS, aiohttp.ClientError, FSTimeoutError, _NoObjectError)
_NO_OBJECT = Fault(
    RequestRefusedError,
    "the answer tells neither size nor time of an object",
    "Check that the endpoint is that of an object store.",
)


@dataclass(eq=False)
class _Clients:
    """Two clients of one bucket; ``bodies`` is the patient one, for requests with large bodies."""

    requests: s3fs.S3FileSystem
    bodies: s3fs.S3FileSystem


class FsspecStore:
    """A ``Store`` in S3, or in what speaks its protocol."""

    def __init__(self, settings: StoreSettings, *, patience: Patience = PATIENT) -> None:
        self._settings = settings
        self._patience = patience
        self._location = parse_url(settings.url)
        self._prefix = self._location.prefix
        self._calls = Calls(settings, connect=self._connect, errors=_ERRORS, explain=_explain, patience=patience)
        self._bodies = S3Bodies(settings, patience)

    def __reduce__(self) -> tuple[type[FsspecStore], tuple[StoreSettings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        return f"FsspecStore({self._settings!r})"

    @property
    def url(self) -> str:
        return self._location.url

    def put(self, key: str, data: Buffer) -> None:
        body = bytes(data)

        def request(clients: _Clients) -> object:
            client = clients.bodies if len(body) > LARGE_BODY else clients.requests
            return client.call_s3("put_object", **self._object(key), Body=body)

        self._calls.write("write", key, request)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        body = bytes(data)
        self._calls.create(
            "create",
            key,
            lambda c: c.requests.call_s3("put_object", **self._object(key), Body=body, IfNoneMatch="*"),
        )

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        async def request(fs: s3fs.S3FileSystem) -> StoredObject:
            answer = await fs._call_s3("get_object", **self._object(key))
            async with answer["Body"] as body:
                info = _described(key, answer)
                if info.size > max_bytes:
                    raise ObjectTooLargeError(
                        "read", f"{self.url}/{key}", f"it has {info.size} bytes, more than {max_bytes}"
                    )
                return StoredObject(info, await body.read())

        return self._calls.run("read", key, lambda c: _in_loop(c.requests, request))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._bodies.read_into(key, start, buffers)

    def stat(self, key: str) -> ObjectInfo | None:
        async def head(fs: s3fs.S3FileSystem) -> ObjectInfo:
            answer = await fs._call_s3("head_object", **self._object(key))
            return _described(key, answer)

        async def get(fs: s3fs.S3FileSystem) -> ObjectInfo:
            answer = await fs._call_s3("get_object", **self._object(key))
            answer["Body"].close()
            return _described(key, answer)

        with contextlib.suppress(ObjectNotFoundError):
            return self._calls.run("look up", key, lambda c: _in_loop(c.requests, head))
        # A HEAD is answered without a body, so a missing bucket looks like a missing key; a GET tells them apart.
        with contextlib.suppress(ObjectNotFoundError):
            return self._calls.run("look up", key, lambda c: _in_loop(c.requests, get))
        return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        found = [
            _info(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"])
            for page in self._pages(prefix, beginning(after))
            for item in page.get("Contents", ())
        ]
        # Not every S3 server lists in the order of keys (SeaweedFS sorts "a/b" before "a-b").
        return iter(sorted((info for info in found if info.key > after), key=lambda info: info.key))

    def _pages(self, prefix: str, start: str) -> Iterator[dict[str, Any]]:
        query = {"Bucket": self._location.bucket, "Prefix": self._prefix + prefix}
        if start:
            query["StartAfter"] = self._prefix + start
        while True:
            page: dict[str, Any] = self._calls.run(
                "list", prefix, lambda c: c.requests.call_s3("list_objects_v2", **query)
            )
            yield page
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def upload(self, key: str, size: int) -> S3Upload:
        return self._bodies.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        for batch in batches(keys, KEYS_PER_DELETE):
            self._calls.run("delete", name_keys(batch), functools.partial(self._delete, batch))

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        return self._bodies.unfinished(prefix)

    def discard(self, upload: UnfinishedUpload) -> None:
        self._bodies.discard(upload)

    def _delete(self, batch: Sequence[str], clients: _Clients) -> None:
        objects = [{"Key": self._prefix + key} for key in batch]
        answer = clients.requests.call_s3(
            "delete_objects", Bucket=self._location.bucket, Delete={"Objects": objects, "Quiet": True}
        )
        if failed := answer.get("Errors"):
            kept = [error["Key"].removeprefix(self._prefix) for error in failed]
            fault = explain_answer(500, failed[0].get("Code", ""))
            raise fault.kind("delete", f"{self.url}/{name_keys(kept)}", fault.cause, fault.hint)

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._prefix + key}

    def _connect(self, values: Mapping[str, str]) -> _Clients:
        bundle = certificate_file(values[secret.CA_CERTIFICATE]) if secret.CA_CERTIFICATE in values else None
        clients = _Clients(
            requests=self._client(values, bundle, self._patience.answer_seconds),
            bodies=self._client(values, bundle, self._patience.body_seconds),
        )
        if bundle:
            delete_with(clients, bundle)
        return clients

    def _client(self, values: Mapping[str, str], bundle: str | None, answer_seconds: float) -> s3fs.S3FileSystem:
        settings = self._settings
        config: dict[str, Any] = {
            "retries": {"total_max_attempts": 1},
            "http_session_cls": _Session,
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": answer_seconds,
            "max_pool_connections": 64,
            # Our manifest has checksums of all data; these would cost more than the upload and break older servers.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "virtual" if settings.virtual_hosted else "path"},
        }
        client: dict[str, Any] = {}
        options: dict[str, Any] = {}
        if settings.region:
            client["region_name"] = settings.region
        if settings.endpoint:
            options["endpoint_url"] = settings.endpoint
        if not settings.credentials.ambient:
            # Else the client would take the job's own AWS_ENDPOINT_URL for a bucket that it has nothing to do with.
            config["ignore_configured_endpoint_urls"] = True
            options["key"] = values[secret.AWS_ACCESS_KEY_ID]
            options["secret"] = values[secret.AWS_SECRET_ACCESS_KEY]
            options["token"] = values.get(secret.AWS_SESSION_TOKEN)
        if bundle:
            client["verify"] = bundle
        fs = s3fs.S3FileSystem(
            **options,
            client_kwargs=client,
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        # s3fs, too, repeats requests blindly.
        fs.retries = 1
        return fs


class _Session(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """aiohttp sends a PUT again when a kept connection breaks, a create too: a lost reply would become a lost race."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


def _in_loop(fs: s3fs.S3FileSystem, request: Callable[[s3fs.S3FileSystem], Awaitable[Result]]) -> Result:
    """Run a request of several awaits in the client's event loop, which lives in a thread of its own."""
    result: Result = sync(fs.loop, request, fs)
    return result


def _explain(error: Exception) -> Fault:
    if isinstance(error, FSTimeoutError):
        return SILENT
    if isinstance(error, _NoObjectError):
        return _NO_OBJECT
    # s3fs wraps what the store answered in an OSError, and botocore's own errors not at all.
    return explain_boto(error.__cause__ if isinstance(error.__cause__, boto.ClientError) else error)


def _described(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    try:
        return _info(key, answer["ContentLength"], answer["LastModified"])
    except KeyError:
        raise _NoObjectError from None


def _info(key: str, size: int, modified: dt.datetime) -> ObjectInfo:
    return ObjectInfo(key, size, modified.astimezone(dt.UTC))
