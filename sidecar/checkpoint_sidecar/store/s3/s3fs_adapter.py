"""The adapter over fsspec: S3 through s3fs.

s3fs provides the client, its event loop, the configuration and the chain of credentials. Its file interface is not
used: it publishes truncated objects when an exception leaves a block, drops errors of single keys in bulk deletes, and
serves listings from a cache (s3fs 2026.9). This adapter calls the S3 operations instead; large objects bypass s3fs.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import aiohttp
import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import exceptions as boto
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConstantProvider
from crc32c import crc32c
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError

from checkpoint_sidecar.store import access as secret
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject
from checkpoint_sidecar.store.common.calls import (
    DEFAULT_TIMEOUTS,
    LARGE_BODY,
    Calls,
    ClientFault,
    Timeouts,
    name_keys,
)
from checkpoint_sidecar.store.common.ranges import check_fits
from checkpoint_sidecar.store.http.answers import not_deleted
from checkpoint_sidecar.store.http.bucket import BucketStore
from checkpoint_sidecar.store.http.certificates import certificate_bundle
from checkpoint_sidecar.store.http.client import SILENT, explain
from checkpoint_sidecar.store.http.connections import CONNECT_SECONDS
from checkpoint_sidecar.store.http.dialect import AnswerError, Page, UnreadableAnswerError, explanation_of
from checkpoint_sidecar.store.http.proxies import proxy_for
from checkpoint_sidecar.store.s3.faults import BOTO_ERRORS, explain_boto
from checkpoint_sidecar.store.s3.identity import S3Identity

KEYS_PER_DELETE = 1000
"""Maximum that S3 accepts in one request."""

Result = TypeVar("Result")

_ERRORS = (OSError, *BOTO_ERRORS, aiohttp.ClientError, FSTimeoutError, UnreadableAnswerError)


@dataclass(eq=False)
class _Clients:
    """Two clients of one bucket; ``bodies`` has longer timeouts, for requests with large bodies.

    Attributes:
        identity: Keeps the file of certificates.
    """

    requests: s3fs.S3FileSystem
    bodies: s3fs.S3FileSystem
    identity: S3Identity


class S3fsStore(BucketStore[_Clients]):
    """A ``Store`` in S3, or in a server with its protocol."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        on_page: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._values: Mapping[str, str] = {}
        self._asked = "the store"
        calls = Calls(settings, connect=self._connect, errors=_ERRORS, explain=self._explain, timeouts=timeouts)
        super().__init__(settings, calls, timeouts=timeouts, on_page=on_page)

    def put(self, key: str, data: Buffer) -> None:
        body = bytes(data)

        def request(clients: _Clients) -> object:
            client = clients.bodies if len(body) > LARGE_BODY else clients.requests
            return client.call_s3("put_object", **self._written(key, body))

        self._calls.write("write", key, request)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        body = bytes(data)
        self._calls.create(
            "create",
            key,
            lambda c: c.requests.call_s3("put_object", **self._written(key, body), IfNoneMatch="*"),
        )

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        async def request(fs: s3fs.S3FileSystem) -> StoredObject:
            answer = await fs._call_s3("get_object", **self._object(key))
            async with answer["Body"] as body:
                info = _described(key, answer)
                check_fits(info.size, max_bytes, f"{self.url}/{key}")
                return StoredObject(info, await body.read())

        return self._calls.run("read", key, lambda c: _in_loop(c.requests, request))

    def reconnect(self) -> None:
        """See ``Reconnects``."""
        self._calls.reconnect()
        self._bodies.reconnect()

    def _head(self, key: str, clients: _Clients) -> ObjectInfo:
        return _described(key, clients.requests.call_s3("head_object", **self._object(key)))

    def _open(self, key: str, clients: _Clients) -> ObjectInfo:
        async def request(fs: s3fs.S3FileSystem) -> ObjectInfo:
            answer = await fs._call_s3("get_object", **self._object(key))
            answer["Body"].close()
            return _described(key, answer)

        return _in_loop(clients.requests, request)

    def _page(self, prefix: str, after: str, token: str, clients: _Clients) -> Page:
        chosen = {"StartAfter": after, "ContinuationToken": token}
        query = {**self._bucket(), "Prefix": prefix, **{name: value for name, value in chosen.items() if value}}
        found = clients.requests.call_s3("list_objects_v2", **query)
        # Every listing has this field; an answer without it is empty, or not a listing.
        if "IsTruncated" not in found or (found["IsTruncated"] and not found.get("NextContinuationToken")):
            raise UnreadableAnswerError
        objects = [_info(item["Key"], item["Size"], item["LastModified"]) for item in found.get("Contents", ())]
        return Page(objects, found["NextContinuationToken"] if found["IsTruncated"] else "")

    def _delete(self, batch: Sequence[str], clients: _Clients) -> None:
        objects = [{"Key": self._prefix + key} for key in batch]
        # Not quiet: with it, an empty or unrelated answer would look like a deletion without errors.
        answer = clients.requests.call_s3("delete_objects", **self._bucket(), Delete={"Objects": objects})
        if failed := answer.get("Errors"):
            kept = [error["Key"].removeprefix(self._prefix) for error in failed]
            explanation = explanation_of(failed[0].get("Message", ""), self._values)
            raise not_deleted(f"{self.url}/{name_keys(kept)}", failed[0].get("Code", ""), explanation)
        if len(answer.get("Deleted", ())) < len(batch):
            raise UnreadableAnswerError

    def _bucket(self) -> dict[str, Any]:
        payer = {"RequestPayer": "requester"} if self._settings.requester_pays else {}
        return {"Bucket": self._location.bucket, **payer}

    def _object(self, key: str) -> dict[str, Any]:
        return {**self._bucket(), "Key": self._prefix + key}

    def _written(self, key: str, body: bytes) -> dict[str, Any]:
        settings = self._settings
        chosen = {
            "ServerSideEncryption": settings.server_side_encryption,
            "SSEKMSKeyId": settings.kms_key_id,
            "Tagging": urlencode(settings.tags),
        }
        return {
            **self._object(key),
            **{name: value for name, value in chosen.items() if value},
            "Body": body,
            "ChecksumCRC32C": base64.b64encode(crc32c(body).to_bytes(4, "big")).decode(),
        }

    def _explain(self, error: Exception) -> ClientFault:
        if isinstance(error, FSTimeoutError):
            return SILENT
        if isinstance(error, UnreadableAnswerError):
            return explain(error)
        # s3fs wraps the store's errors in an OSError, but not botocore's own errors.
        cause = error.__cause__ if isinstance(error.__cause__, boto.ClientError) else error
        return explain_boto(cause, self._values, self._asked)

    def _connect(self, values: Mapping[str, str]) -> _Clients:
        self._values = values
        identity = S3Identity(self._settings, values)
        self._asked = urlsplit(identity.target.base).netloc
        return _Clients(
            requests=self._client(values, identity, self._timeouts.answer_seconds),
            bodies=self._client(values, identity, self._timeouts.body_seconds),
            identity=identity,
        )

    def _client(self, values: Mapping[str, str], identity: S3Identity, answer_seconds: float) -> s3fs.S3FileSystem:
        target = identity.target
        at = urlsplit(target.base)
        proxy = proxy_for(at.scheme, at.hostname or "", at.port or (443 if at.scheme == "https" else 80))
        config: dict[str, Any] = {
            "retries": {"total_max_attempts": 1},
            "http_session_cls": _Session,
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": answer_seconds,
            "max_pool_connections": 64,
            "proxies": {at.scheme: proxy.url} if proxy else {},
            # Each request has our own checksums; these would cost more than the upload.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "virtual" if target.virtual_hosted else "path"},
        }
        options: dict[str, Any] = {}
        if not self._settings.credentials.ambient:
            options["session"] = _session_of_its_own()
            options["key"] = values[secret.AWS_ACCESS_KEY_ID]
            options["secret"] = values[secret.AWS_SECRET_ACCESS_KEY]
            options["token"] = values.get(secret.AWS_SESSION_TOKEN)
        fs = s3fs.S3FileSystem(
            **options,
            endpoint_url=target.endpoint,
            client_kwargs={"region_name": target.region, "verify": identity.ca_file or certificate_bundle()},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        # s3fs also repeats requests blindly.
        fs.retries = 1
        return fs


class _Session(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """A session without redirects and resends. aiohttp repeats even a create when a reused connection breaks.

    A server could redirect the client anywhere, and a lost reply would become a lost race.
    """

    async def _get_session(self, proxy_url: str | None) -> _OneRequest:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False
        return _OneRequest(session)


@dataclass
class _OneRequest:
    session: aiohttp.ClientSession

    async def request(self, method: str, **options: Any) -> aiohttp.ClientResponse:
        answer = await self.session.request(method, allow_redirects=False, **options)
        if 300 <= answer.status < 400:
            answer.close()
            # Raised here, because botocore would repeatedly look up the bucket's region after a redirect.
            raise AnswerError(answer.status, location=answer.headers.get("Location", ""), asked=answer.url.authority)
        return answer


def _session_of_its_own() -> AioSession:
    """Create a session that ignores the environment and configuration files."""
    session = AioSession()
    config = session.get_component("config_store")
    for name, (_, _, default, _) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        config.set_config_provider(name, ConstantProvider(default))
    for name in ("config_file", "credentials_file"):
        config.set_config_provider(name, ConstantProvider(os.devnull))
    return session


def _in_loop(fs: s3fs.S3FileSystem, request: Callable[[s3fs.S3FileSystem], Awaitable[Result]]) -> Result:
    """Run a request of several awaits in the client's event loop, which has its own thread."""
    result: Result = sync(fs.loop, request, fs)
    return result


def _described(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    try:
        return _info(key, answer["ContentLength"], answer["LastModified"])
    except KeyError:
        raise UnreadableAnswerError("the answer tells neither size nor time of an object") from None


def _info(key: str, size: int, modified: dt.datetime) -> ObjectInfo:
    return ObjectInfo(key, size, modified.astimezone(dt.UTC))
