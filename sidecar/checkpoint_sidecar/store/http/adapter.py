"""The adapter that implements the protocols of S3, Google Cloud Storage and Azure, over its own connections.

This way, one place decides on the server, identity, proxy and certificates, and ensures that answers never redirect
requests to another server.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from crc32c import crc32c

from checkpoint_sidecar.core.errors import ObjectNotFoundError, StoreError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject, UnfinishedUpload
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS, LARGE_BODY, Calls, Timeouts, batches, name_keys
from checkpoint_sidecar.store.common.listing import beginning
from checkpoint_sidecar.store.common.parts import PartedUpload
from checkpoint_sidecar.store.common.ranges import check_fits
from checkpoint_sidecar.store.http.answers import not_deleted
from checkpoint_sidecar.store.http.bodies import HttpBodies
from checkpoint_sidecar.store.http.client import ERRORS, HttpClient, connecting, explain
from checkpoint_sidecar.store.http.dialect import (
    MOST_PAGE_BYTES,
    AnswerError,
    Page,
    UnreadableAnswerError,
    described_by_headers,
    explanation_of,
)

_KEYS_PER_BATCH = 1000
_DELETES_AT_ONCE = 8


class HttpStore:
    """A ``Store`` in S3, Google Cloud Storage or Azure Blob Storage."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        on_page: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._timeouts = timeouts
        self._on_page = on_page
        self._location = parse_url(settings.url)
        self._prefix = self._location.prefix
        self._calls: Calls[HttpClient] = Calls(
            settings, connect=connecting(settings, timeouts), errors=ERRORS, explain=explain, timeouts=timeouts
        )
        self._bodies = HttpBodies(settings, timeouts, on_page)

    def __reduce__(self) -> tuple[type[HttpStore], tuple[StoreSettings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings!r})"

    @property
    def url(self) -> str:
        return self._location.url

    def put(self, key: str, data: Buffer) -> None:
        self._calls.write("write", key, functools.partial(self._put, key, memoryview(data).cast("B"), create=False))

    def put_if_absent(self, key: str, data: Buffer) -> None:
        self._calls.create("create", key, functools.partial(self._put, key, memoryview(data).cast("B"), create=True))

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        def request(client: HttpClient) -> StoredObject:
            message = client.dialect.get(self._prefix + key)
            answer = client.send(message, self._timeouts.answer_seconds, limit=max_bytes)
            info = replace(described_by_headers(answer), key=key)
            check_fits(info.size, max_bytes, f"{self.url}/{key}")
            if len(answer.body) != info.size:
                raise UnreadableAnswerError
            return StoredObject(info, answer.body)

        return self._calls.run("read", key, request)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._bodies.read_into(key, start, buffers)

    def reconnect(self) -> None:
        """See ``Reconnects``."""
        self._calls.with_client(HttpClient.reconnect)
        self._bodies.reconnect()

    def stat(self, key: str) -> ObjectInfo | None:
        def head(client: HttpClient) -> ObjectInfo:
            answer = client.send(client.dialect.head(self._prefix + key), self._timeouts.answer_seconds)
            return described_by_headers(answer)

        def get(client: HttpClient) -> ObjectInfo:
            answer = client.send(client.dialect.get(self._prefix + key), self._timeouts.answer_seconds, limit=0)
            return described_by_headers(answer)

        # A HEAD is answered without a body, so a missing bucket looks like a missing key; a GET tells them apart.
        for request in (head, get):
            try:
                return replace(self._calls.run("look up", key, request), key=key)
            except ObjectNotFoundError:
                continue
        return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        start = beginning(after)
        offset = self._prefix + start if start else ""
        found: list[ObjectInfo] = []
        token = ""
        while True:
            page = self._calls.run("list", prefix, functools.partial(self._page, self._prefix + prefix, offset, token))
            self._on_page(len(page.objects))
            found += page.objects
            if not page.token:
                break
            if page.token == token:
                raise StoreError("list", f"{self.url}/{prefix}", "the store repeats a page of the listing")
            token = page.token
        ours = (replace(info, key=info.key.removeprefix(self._prefix)) for info in found if self._is_ours(info, prefix))
        # Not every server lists in the order of keys (SeaweedFS sorts "a/b" before "a-b").
        return iter(sorted((info for info in ours if info.key > after), key=lambda info: info.key))

    def upload(self, key: str, size: int) -> PartedUpload:
        return self._bodies.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        for batch in batches(keys, _KEYS_PER_BATCH):
            self._calls.run("delete", name_keys(batch), functools.partial(self._delete, batch))

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        return self._bodies.unfinished(prefix)

    def discard(self, upload: UnfinishedUpload) -> None:
        self._bodies.discard(upload)

    def _put(self, key: str, view: memoryview, client: HttpClient, *, create: bool) -> None:
        checksum = crc32c(view)
        message = client.dialect.put(self._prefix + key, [view] if view else [], checksum, create=create)
        large = view.nbytes > LARGE_BODY
        answer = client.send(message, self._timeouts.body_seconds if large else self._timeouts.answer_seconds)
        client.dialect.check_written(answer, checksum)

    def _page(self, prefix: str, after: str, token: str, client: HttpClient) -> Page:
        message = client.dialect.list(prefix, after, token)
        return client.dialect.listed(client.send(message, self._timeouts.answer_seconds, limit=MOST_PAGE_BYTES))

    def _is_ours(self, info: ObjectInfo, prefix: str) -> bool:
        return info.key.startswith(self._prefix + prefix)

    def _delete(self, batch: Sequence[str], client: HttpClient) -> None:
        paths = [self._prefix + key for key in batch]
        if client.dialect.keys_per_delete == 1:
            with ThreadPoolExecutor(min(_DELETES_AT_ONCE, len(paths)), thread_name_prefix="delete") as pool:
                for _ in pool.map(lambda path: self._delete_one(client, path), paths):
                    pass
            return
        answer = client.send(client.dialect.delete(paths), self._timeouts.answer_seconds, limit=MOST_PAGE_BYTES)
        if kept := client.dialect.kept(answer):
            first = kept[0]
            names = [each.key.removeprefix(self._prefix) for each in kept]
            explanation = explanation_of(first.explanation, client.dialect.secrets)
            raise not_deleted(f"{self.url}/{name_keys(names)}", first.code, explanation)

    def _delete_one(self, client: HttpClient, path: str) -> None:
        try:
            client.send(client.dialect.delete([path]), self._timeouts.answer_seconds)
        except AnswerError as error:
            if explain(error).kind is not ObjectNotFoundError:
                raise
