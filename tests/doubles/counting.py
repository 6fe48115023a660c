"""A store that counts the requests its user makes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from checkpoint_sidecar.store.base import Buffer, ObjectInfo, Store, StoredObject, Upload

KEYS_PER_PAGE = 1000
"""What S3 gives in one answer to a listing."""


class CountingStore:
    """Forwards to a real store. A listing counts as the pages that S3 would need for it.

    Args:
        store: The store behind.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        """Bytes by key, of ranges."""

    @property
    def url(self) -> str:
        return self._store.url

    def put(self, key: str, data: Buffer) -> None:
        self._count("put")
        self._store.put(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        self._count("put_if_absent")
        self._store.put_if_absent(key, data)

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        self._count("get")
        return self._store.get(key, max_bytes=max_bytes)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._count("get")
        with self._lock:
            self.read[key] += sum(buffer.nbytes for buffer in buffers)
        self._store.read_into(key, start, buffers)

    def stat(self, key: str) -> ObjectInfo | None:
        self._count("stat")
        return self._store.stat(key)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        found = list(self._store.list(prefix, after=after))
        self._count("list", max(1, -(-len(found) // KEYS_PER_PAGE)))
        return iter(found)

    def upload(self, key: str, size: int) -> AbstractContextManager[Upload]:
        self._count("upload")
        return self._store.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        self._count("delete")
        self._store.delete(keys)

    def _count(self, verb: str, requests: int = 1) -> None:
        with self._lock:
            self.requests[verb] += requests
