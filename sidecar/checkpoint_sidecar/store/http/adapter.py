"""The adapter that implements the protocols of S3, Google Cloud Storage and Azure, over its own connections.

This way, one place decides on the server, identity, proxy and certificates, and ensures that answers never redirect
requests to another server.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from crc32c import crc32c

from checkpoint_sidecar.core.errors import ObjectNotFoundError, RequestRefusedError
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, Store, StoredObject
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS, LARGE_BODY, Calls, Timeouts, name_keys
from checkpoint_sidecar.store.common.ranges import check_fits
from checkpoint_sidecar.store.http.answers import not_deleted
from checkpoint_sidecar.store.http.bucket import BucketStore
from checkpoint_sidecar.store.http.client import ERRORS, HttpClient, connecting, explain
from checkpoint_sidecar.store.http.compose import ComposedUpload
from checkpoint_sidecar.store.http.dialect import (
    MOST_PAGE_BYTES,
    AnswerError,
    Page,
    UnreadableAnswerError,
    described_by_headers,
    explanation_of,
)

_DELETES_AT_ONCE = 8


class HttpStore(BucketStore[HttpClient]):
    """A ``Store`` in S3, Google Cloud Storage or Azure Blob Storage."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        on_page: Callable[[int], None] = lambda _: None,
    ) -> None:
        calls: Calls[HttpClient] = Calls(
            settings, connect=connecting(settings, timeouts), errors=ERRORS, explain=explain, timeouts=timeouts
        )
        super().__init__(settings, calls, timeouts=timeouts, on_page=on_page)

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

    def can_compose_from(self, source: Store) -> bool:
        """See ``ComposesObjects``."""
        return self._of_one_service(source, ("s3",))

    def compose(self, key: str, source: Store, part_sizes: Sequence[int]) -> ComposedUpload:
        """See ``ComposesObjects``."""
        if not (isinstance(source, HttpStore) and self.can_compose_from(source)):
            raise ValueError(f"{self.url} cannot copy from {source.url}")
        return self._bodies.compose(key, source._bodies, part_sizes)

    def can_copy_from(self, source: Store) -> bool:
        """See ``CopiesObjects``."""
        return self._of_one_service(source, ("s3", "gs"))

    def copy_object(self, key: str, source: Store, source_key: str) -> int | None:
        """See ``CopiesObjects``."""
        if not (isinstance(source, HttpStore) and self.can_copy_from(source)):
            raise ValueError(f"{self.url} cannot copy from {source.url}")
        original = f"{source._location.bucket}/{source._prefix}{source_key}"

        def request(client: HttpClient) -> int | None:
            message = client.dialect.copy(self._prefix + key, original)
            if message is None:
                raise RequestRefusedError("copy", f"{self.url}/{key}", "this store does not copy objects")
            return client.dialect.copied(client.send(message, self._timeouts.body_seconds))

        return self._calls.write("copy", key, request)

    def reconnect(self) -> None:
        """See ``Reconnects``."""
        self._calls.with_client(HttpClient.reconnect)
        self._bodies.reconnect()

    def _of_one_service(self, source: Store, schemes: Collection[str]) -> bool:
        if not isinstance(source, HttpStore) or self._location.scheme not in schemes:
            return False
        mine, theirs = (replace(each, url="", tags=()) for each in (self._settings, source._settings))
        return self._location.scheme == source._location.scheme and mine == theirs

    def _head(self, key: str, client: HttpClient) -> ObjectInfo:
        return described_by_headers(client.send(client.dialect.head(self._prefix + key), self._timeouts.answer_seconds))

    def _open(self, key: str, client: HttpClient) -> ObjectInfo:
        message = client.dialect.get(self._prefix + key)
        return described_by_headers(client.send(message, self._timeouts.answer_seconds, limit=0))

    def _put(self, key: str, view: memoryview, client: HttpClient, *, create: bool) -> None:
        checksum = crc32c(view)
        message = client.dialect.put(self._prefix + key, [view] if view else [], checksum, create=create)
        large = view.nbytes > LARGE_BODY
        answer = client.send(message, self._timeouts.body_seconds if large else self._timeouts.answer_seconds)
        client.dialect.check_written(answer, checksum)

    def _page(self, prefix: str, after: str, token: str, client: HttpClient) -> Page:
        message = client.dialect.list(prefix, after, token)
        return client.dialect.listed(client.send(message, self._timeouts.answer_seconds, limit=MOST_PAGE_BYTES))

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
