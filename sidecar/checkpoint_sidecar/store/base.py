"""What this project needs of an object store, and nothing else.

Two adapters implement it: fsspec (the default contract, every protocol) and obstore (s3, gs, az; the accelerator). One
conformance suite in ``tests/store`` runs against both and against the in-memory double.

Contract common to all verbs:

- Keys are relative to the store's root URL, use ``/``, and were made by ``core.layout``; adapters do not normalise
  them.
- Calls block and are safe from several threads at once. An instance must not be used across ``fork``; it can be
  pickled, and the copy opens its own connections.
- Failures raise a ``StoreError`` subclass. Transient failures are retried inside the adapter until its deadline, so
  an error that escapes is worth telling a human about. Errors never contain credentials.
- Nothing is cached: a call made after another writer's successful write sees that write.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as the store lists it.

    Attributes:
        key: Relative to the store's root.
        size: Bytes.
        modified: The *store's* clock at the last write, timezone-aware UTC. Writers' clocks are never trusted.
    """

    key: str
    size: int
    modified: dt.datetime


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A small object read whole, with what the store says about it."""

    info: ObjectInfo
    data: bytes


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """A large object whose writer is still writing, or was killed.

    Attributes:
        upload_id: The store's.
        begun: The store's clock.
    """

    key: str
    upload_id: str
    begun: dt.datetime


class Upload(Protocol):
    """A large object being written; visible to nobody before ``complete``."""

    def write(self, data: Buffer) -> None:
        """Append bytes. ``data`` may be reused by the caller as soon as this returns. Not for several threads at once.

        Raises:
            StoreError: A part written earlier failed.
        """

    def complete(self) -> None:
        """Publish the object. Idempotent; a no-op after ``abort``.

        Raises:
            StoreError: A part failed, so nothing is visible; or the last request did, with unknown outcome.
        """

    def abort(self) -> None:
        """Discard everything written, parts included. Never raises; idempotent; a no-op after ``complete``."""


@runtime_checkable
class Store(Protocol):
    """A folder in an object store."""

    @property
    def url(self) -> str:
        """The root URL, without credentials and without a trailing slash."""

    def put(self, key: str, data: Buffer) -> None:
        """Create or replace a small object in one request. Only for derived objects and hints: truth is put-if-absent.

        Raises:
            UnknownOutcomeError: The object may have been written.
        """

    def put_if_absent(self, key: str, data: Buffer) -> None:
        """Create an object unless the key is taken; of several concurrent callers exactly one succeeds.

        Never retried inside the adapter once a request may have reached the store, because a blind retry after a lost
        reply looks like losing the race. The caller settles it by reading back.

        Raises:
            ObjectExistsError: The key is taken.
            UnknownOutcomeError: It may have been written, and may still land later.
            NoConditionalWriteError: The store does not support conditional creation.
        """

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        """Read a whole object.

        Raises:
            ObjectNotFoundError: No such key.
            ObjectTooLargeError: It is larger than ``max_bytes``; nothing beyond the limit was read into memory.
        """

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from offset ``start``.

        Raises:
            ObjectNotFoundError: No such key.
            TruncatedObjectError: It ends earlier.
        """

    def stat(self, key: str) -> ObjectInfo | None:
        """What the store says about a key, or None when it does not exist. An error is never reported as None."""

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with ``prefix``, in lexicographic order of keys, later than ``after``.

        Complete or an exception. The listing is held in memory, about 200 bytes an object, because not every store
        lists in this order.
        """

    def upload(self, key: str) -> AbstractContextManager[Upload]:
        """Write a large object in parts.

        Leaving the block normally completes it, leaving it by an exception aborts it.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that does not exist is not an error.

        Raises:
            StoreError: At least one key was not deleted; the message names the first and counts the rest.
        """


@runtime_checkable
class KeepsUnfinished(Protocol):
    """A store in which the parts of killed writers stay, unseen and paid for, until somebody discards them."""

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        """Every unfinished upload whose key starts with ``prefix``. None in stores that expire them by themselves."""

    def discard(self, upload: UnfinishedUpload) -> None:
        """Delete its parts; it can no longer be completed. One that is over is no error.

        Raises:
            StoreError: It may still be there.
        """
