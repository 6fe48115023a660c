"""A store in memory that keeps the whole contract of ``store.base``; the conformance suite runs against it too."""

from __future__ import annotations

import bisect
import datetime as dt
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from checkpoint_sidecar.core.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    TruncatedObjectError,
)
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject, Upload
from checkpoint_sidecar.store.common.parts import PartedUpload


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class MemoryStore:
    """Objects in a dictionary, shared by every thread that holds this instance.

    Args:
        url: What ``url`` returns.
        clock: The store's own clock, which stamps ``ObjectInfo.modified``; timezone-aware UTC.
    """

    def __init__(self, url: str = "s3://memory/run", *, clock: Callable[[], dt.datetime] = utc_now) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, StoredObject] = {}

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: Buffer) -> None:
        with self._lock:
            self._write(key, bytes(data))

    def put_if_absent(self, key: str, data: Buffer) -> None:
        with self._lock:
            if key in self._objects:
                raise ObjectExistsError("create", f"{self._url}/{key}", "the key is taken")
            self._write(key, bytes(data))

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        stored = self._stored("read", key)
        if stored.info.size > max_bytes:
            raise ObjectTooLargeError("read", f"{self._url}/{key}", f"it is larger than {max_bytes} bytes")
        return stored

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        data = memoryview(self._stored("read a range of", key).data)
        end = start + sum(buffer.nbytes for buffer in buffers)
        if end > data.nbytes:
            raise TruncatedObjectError(
                "read a range of", f"{self._url}/{key}", f"it has {data.nbytes} bytes; {start} to {end} were wanted"
            )
        for buffer in buffers:
            buffer.cast("B")[:] = data[start : start + buffer.nbytes]
            start += buffer.nbytes

    def stat(self, key: str) -> ObjectInfo | None:
        with self._lock:
            stored = self._objects.get(key)
        return stored.info if stored else None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            keys = sorted(self._objects)
            infos = [self._objects[key].info for key in keys[bisect.bisect_right(keys, after) :]]
        return (info for info in infos if info.key.startswith(prefix))

    def upload(self, key: str, size: int) -> AbstractContextManager[Upload]:
        return _Upload(self, key, size)

    def delete(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)

    def corrupt(self, key: str, data: Buffer) -> None:
        """Replace an object's bytes behind the contract's back, leaving its date alone: rot on a disk."""
        with self._lock:
            old = self._objects[key].info
            self._objects[key] = StoredObject(ObjectInfo(key, len(data), old.modified), bytes(data))

    def _write(self, key: str, data: bytes) -> None:
        self._objects[key] = StoredObject(ObjectInfo(key, len(data), self._clock()), data)

    def _stored(self, operation: str, key: str) -> StoredObject:
        with self._lock:
            stored = self._objects.get(key)
        if stored is None:
            raise ObjectNotFoundError(operation, f"{self._url}/{key}", "no such object")
        return stored


class _Upload(PartedUpload):
    def __init__(self, store: MemoryStore, key: str, size: int) -> None:
        super().__init__(f"{store.url}/{key}", size)
        self._store = store
        self._key = key
        self._data: dict[int, bytes] = {}

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        self._data[index] = b"".join(views)

    def _publish(self) -> None:
        self._store.put(self._key, b"".join(self._data[index] for index in sorted(self._data)))

    def _interrupt(self) -> None:
        pass

    def _discard(self) -> None:
        self._data.clear()
