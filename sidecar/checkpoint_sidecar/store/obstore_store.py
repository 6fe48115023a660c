"""The adapter over obstore (the Rust crate object_store): S3, Google Cloud Storage and Azure Blob Storage."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import obstore
import obstore.exceptions

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.answers import explain_answer
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject
from checkpoint_sidecar.store.calls import LARGE_BODY, PATIENT, Calls, Fault, Patience, batches, name_keys
from checkpoint_sidecar.store.http_client import CHECK_CONNECTION, SILENT
from checkpoint_sidecar.store.listing import beginning
from checkpoint_sidecar.store.obstore_bodies import StreamedBodies
from checkpoint_sidecar.store.obstore_clients import Clients, open_clients
from checkpoint_sidecar.store.parts import PartedUpload
from checkpoint_sidecar.store.settings import StoreSettings
from checkpoint_sidecar.store.shared import SharedClients

if TYPE_CHECKING:
    from obstore import ObjectMeta

KEYS_PER_DELETE = 1000
"""What S3 accepts in one request."""

_ERRORS = (obstore.exceptions.BaseError, FileNotFoundError)

_STATUS = re.compile(r"status(?: code)?: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_TRANSPORT = re.compile(r"kind: (\w+)")
_METADATA_SERVICE = "169.254.169.254"
_CLIENTS = SharedClients(open_clients)


class ObstoreStore:
    """A ``Store`` in S3, Google Cloud Storage or Azure Blob Storage."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        patience: Patience = PATIENT,
        on_page: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._on_page = on_page
        self._location = parse_url(settings.url)
        self._prefix = self._location.prefix
        connect = functools.partial(_CLIENTS.get, settings, patience)
        renew = functools.partial(open_clients, settings, patience)
        self._calls = Calls(settings, connect=connect, errors=_ERRORS, explain=_explain, patience=patience, renew=renew)
        self._bodies = StreamedBodies(self, self._calls)

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
            return obstore.put(client, self._prefix + key, view, use_multipart=False)

        self._calls.write("write", key, request)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        path = self._prefix + key
        self._calls.create(
            "create", key, lambda c: obstore.put(c.requests, path, view, mode="create", use_multipart=False)
        )

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        def request(clients: Clients) -> StoredObject:
            # The body is still at the store here: it is fetched by ``bytes`` only.
            result = obstore.get(clients.requests, self._prefix + key)
            info = _info(key, result.meta)
            if info.size > max_bytes:
                raise ObjectTooLargeError(
                    "read", f"{self.url}/{key}", f"it has {info.size} bytes, more than {max_bytes}"
                )
            return StoredObject(info, result.bytes().to_bytes())

        return self._calls.run("read", key, request)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._bodies.read_into(key, start, buffers)

    def reconnect(self) -> None:
        """See ``Reconnects``."""
        self._calls.reconnect()

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._prefix + key
        try:
            return self._calls.run("look up", key, lambda c: _info(key, obstore.head(c.requests, path)))
        except ObjectNotFoundError:
            pass
        # A HEAD is answered without a body, so a missing bucket looks like a missing key; a GET tells them apart.
        try:
            return self._calls.run("look up", key, lambda c: _info(key, obstore.get(c.requests, path).meta))
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        folder = (self._prefix + prefix).rpartition("/")[0]
        start = beginning(after)
        offset = self._prefix + start if start else None

        def request(clients: Clients) -> list[ObjectInfo]:
            listed: list[ObjectInfo] = []
            for page in obstore.list(clients.requests, folder or None, offset=offset, chunk_size=1000):
                listed += [_info(meta["path"].removeprefix(self._prefix), meta) for meta in page]
                self._on_page(len(page))
            return listed

        found = self._calls.run("list", prefix, request)
        found = [info for info in found if info.key.startswith(prefix) and info.key > after]
        return iter(sorted(found, key=lambda info: info.key))

    def upload(self, key: str, size: int) -> PartedUpload:
        return self._bodies.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        for batch in batches(keys, KEYS_PER_DELETE):
            paths = [self._prefix + key for key in batch]
            self._calls.run("delete", name_keys(batch), functools.partial(_delete, paths))


def _delete(paths: Sequence[str], clients: Clients) -> None:
    try:
        obstore.delete(clients.requests, paths)
    except FileNotFoundError as error:
        if _explain(error).kind is BucketNotFoundError:
            raise
        # Google and Azure report a missing key and leave the rest of the batch in doubt.
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(clients.requests, path)


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
    "Connect": Fault(StoreError, "no connection to the store", CHECK_CONNECTION),
    "Timeout": SILENT,
    "Interrupted": Fault(StoreError, "the connection broke off", sent=True),
}


def _info(key: str, meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(key, meta["size"], meta["last_modified"].astimezone(dt.UTC))
