"""A store whose requests fail as told: each fault gets the real request and decides what becomes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from checkpoint_sidecar.core.errors import UnknownOutcomeError
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, Store, StoredObject, Upload

Fault: TypeAlias = Callable[[Callable[[], Any]], Any]

_UNKNOWN = UnknownOutcomeError("create", "an object", "the reply was lost")


def passes(request: Callable[[], Any]) -> Any:
    return request()


def loses_the_reply(request: Callable[[], Any]) -> Any:
    request()
    raise _UNKNOWN


def loses_the_request(request: Callable[[], Any]) -> Any:
    raise _UNKNOWN


def fails_with(error: Exception) -> Fault:
    def fault(request: Callable[[], Any]) -> Any:
        raise error

    return fault


class LandsLate:
    """The reply is lost and the request is still under way: it takes effect when ``land`` is called."""

    def __init__(self) -> None:
        self._request: Callable[[], Any] | None = None

    def __call__(self, request: Callable[[], Any]) -> Any:
        self._request = request
        raise _UNKNOWN

    def land(self) -> None:
        assert self._request is not None, "the request was not made yet"
        self._request()


class FaultyStore:
    """Forwards to a real store, one fault per request in the order given; afterwards everything passes.

    Args:
        store: The store behind.
        puts: Faults of successive ``put_if_absent`` requests.
        gets: Faults of successive ``get`` requests.
    """

    def __init__(self, store: Store, *, puts: Iterable[Fault] = (), gets: Iterable[Fault] = ()) -> None:
        self._store = store
        self.puts = deque(puts)
        self.gets = deque(gets)

    @property
    def url(self) -> str:
        return self._store.url

    def put(self, key: str, data: Buffer) -> None:
        self._store.put(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        fault = self.puts.popleft() if self.puts else passes
        fault(lambda: self._store.put_if_absent(key, data))

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        fault = self.gets.popleft() if self.gets else passes
        found: StoredObject = fault(lambda: self._store.get(key, max_bytes=max_bytes))
        return found

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._store.read_into(key, start, buffers)

    def stat(self, key: str) -> ObjectInfo | None:
        return self._store.stat(key)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix, after=after)

    def upload(self, key: str, size: int) -> AbstractContextManager[Upload]:
        return self._store.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        self._store.delete(keys)
