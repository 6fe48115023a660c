"""What the adapters of buckets have in common: folders within a bucket, listings, and the large bodies."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, Self, TypeVar

from checkpoint_sidecar.core.errors import ObjectNotFoundError, StoreError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import ObjectInfo, UnfinishedUpload
from checkpoint_sidecar.store.common.calls import Calls, Timeouts, batches, deleting, name_keys
from checkpoint_sidecar.store.common.listing import beginning
from checkpoint_sidecar.store.common.parts import PartedUpload
from checkpoint_sidecar.store.http.bodies import HttpBodies
from checkpoint_sidecar.store.http.dialect import Page

KEYS_PER_BATCH = 1000

Client = TypeVar("Client")


class BucketStore(ABC, Generic[Client]):
    """A store in a folder of a bucket, given the requests of one client. See ``Store`` for the methods.

    Args:
        calls: Runs requests with retries.
        on_page: Called with the number of objects of each page of a listing.
    """

    def __init__(
        self,
        settings: StoreSettings,
        calls: Calls[Client],
        *,
        timeouts: Timeouts,
        on_page: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._timeouts = timeouts
        self._on_page = on_page
        self._location = parse_url(settings.url)
        self._prefix = self._location.prefix
        self._calls = calls
        self._bodies = HttpBodies(settings, timeouts, on_page)

    def __reduce__(self) -> tuple[type[Self], tuple[StoreSettings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings!r})"

    @property
    def url(self) -> str:
        return self._location.url

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._bodies.read_into(key, start, buffers)

    def stat(self, key: str) -> ObjectInfo | None:
        # A HEAD is answered without a body, so a missing bucket looks like a missing key; a GET tells them apart.
        for request in (self._head, self._open):
            try:
                return replace(self._calls.run("look up", key, functools.partial(request, key)), key=key)
            except ObjectNotFoundError:
                continue
        return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        whole = self._prefix + prefix
        found = (
            replace(info, key=info.key.removeprefix(self._prefix))
            for page in self._pages(prefix, beginning(after))
            for info in page.objects
            if info.key.startswith(whole)
        )
        # Not every server lists in the order of keys (SeaweedFS sorts "a/b" before "a-b").
        return iter(sorted((info for info in found if info.key > after), key=lambda info: info.key))

    def upload(self, key: str, size: int) -> PartedUpload:
        return self._bodies.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        for batch in batches(keys, KEYS_PER_BATCH):
            with deleting():
                self._calls.run("delete", name_keys(batch), functools.partial(self._delete, batch))

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        return self._bodies.unfinished(prefix)

    def discard(self, upload: UnfinishedUpload) -> None:
        self._bodies.discard(upload)

    def _pages(self, prefix: str, start: str) -> Iterator[Page]:
        after, token = self._prefix + start if start else "", ""
        while True:
            request = functools.partial(self._page, self._prefix + prefix, after, token)
            page = self._calls.run("list", prefix, request)
            self._on_page(len(page.objects))
            yield page
            if not page.token:
                return
            if page.token == token:
                raise StoreError("list", f"{self.url}/{prefix}", "the store repeats a page of the listing")
            token = page.token

    @abstractmethod
    def _head(self, key: str, client: Client, /) -> ObjectInfo:
        """Request the description of an object without its bytes."""

    @abstractmethod
    def _open(self, key: str, client: Client, /) -> ObjectInfo:
        """Request an object, and read no bytes."""

    @abstractmethod
    def _page(self, prefix: str, after: str, token: str, client: Client, /) -> Page:
        """Request one page of a listing. Keys, ``prefix`` and ``after`` are relative to the bucket."""

    @abstractmethod
    def _delete(self, batch: Sequence[str], client: Client, /) -> None:
        """Delete at most ``KEYS_PER_BATCH`` keys; missing ones are no error."""
