"""The interface of an object store, with only the operations that this project needs.

Four adapters implement it: ``http`` (s3, gs, az, over connections of its own), ``local``, ``fsspec`` (any filesystem)
and ``s3.s3fs_adapter`` (s3 through s3fs). One conformance suite runs against all of them and the in-memory double.

Contract common to all verbs:

- Keys are relative to the store's root URL, use ``/``, and were made by ``core.layout``; adapters do not normalise
  them.
- Calls block and are safe from several threads at once. An instance must not be used across ``fork``; it can be
  pickled, and the copy opens its own connections.
- Failures raise a ``StoreError`` subclass. Transient failures are retried inside the adapter until its deadline, so
  an error that escapes should be reported to the user. Errors never contain credentials.
- Nothing is cached: a call made after another writer's successful write sees that write.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
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
        upload_id: The store's id for it.
        begun: When it began, by the store's clock.
    """

    key: str
    upload_id: str
    begun: dt.datetime


class Upload(Protocol):
    """A large object being written in parts; invisible before ``complete``."""

    @property
    def part_bytes(self) -> int:
        """The size of every part but the last, which is shorter; a multiple of 4 MiB."""

    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        """Write one part, whose bytes lie one after the other in ``buffers``; returns when the store has them.

        From several threads at once, in any order, as long as every part is begun at some time: where the store takes
        a stream, a part waits for the parts before it. An object of one part is sent by ``complete``.

        Args:
            index: From 0.
            buffers: Not copied: they must stay as they are until ``complete`` or ``abort`` has returned.

        Raises:
            StoreError: The store does not have the part. Also of parts under way when another thread calls ``abort``.
            ValueError: The object does not have such a part, or the part has another size.
        """

    def complete(self) -> None:
        """Publish the object. Idempotent; a no-op after ``abort``.

        Raises:
            StoreError: The object is not visible, unless it is an ``UnknownOutcomeError``.
            ValueError: A part was not written.
        """

    def abort(self) -> None:
        """Discard everything written; parts that other threads are writing are cut off and waited for.

        Never raises; idempotent; a no-op after ``complete``.
        """


@runtime_checkable
class VerifiesParts(Protocol):
    """An ``Upload`` to a store that verifies checksums."""

    def expect(self, index: int, crc32c: int) -> None:
        """Announce the CRC32C of a part before it is written, which saves computing it in one more pass."""


@runtime_checkable
class WidensParts(Protocol):
    """An ``Upload`` whose parts may be larger, so that a large object takes fewer requests."""

    def widen_parts(self) -> None:
        """Enlarge ``part_bytes``, before the first part is written.

        For contents that are in memory. Others need memory for a part on each connection, so that larger parts would
        leave a memory budget for fewer connections.
        """


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

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the object's bytes from offset ``start``.

        Args:
            buffers: Writable and contiguous. After an error their contents are undefined.

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

    def upload(self, key: str, size: int) -> AbstractContextManager[Upload]:
        """Write a large object of ``size`` bytes in parts.

        Leaving the block normally completes it, leaving it by an exception aborts it.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that does not exist is not an error.

        Raises:
            DeletionRefusedError: The store does not let this client delete them. Other verbs may work.
            StoreError: At least one key was not deleted; the message names the first and counts the rest.
        """


class Composition(Protocol):
    """A large object that is put together from ranges of stored objects and from memory; invisible before ``complete``.

    Parts come from several threads at once, in any order.
    """

    def copy_part(self, index: int, key: str, start: int) -> None:
        """Let the store copy a part out of an object of the source.

        Args:
            index: From 0.
            key: In the source.
            start: Where the part's bytes begin in that object.

        Raises:
            StoreError: The store does not have the part. ``RequestRefusedError`` or ``AccessDeniedError`` mean that it
                cannot copy.
        """

    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        """Write one part from memory; see ``Upload.write_part``."""

    def complete(self) -> None:
        """Publish the object; see ``Upload.complete``."""

    def abort(self) -> None:
        """Discard everything; see ``Upload.abort``."""

    def part_checksum(self, index: int) -> int | None:
        """Return the CRC32C of a part that the store has; None if the store did not report that of a copied one."""


LEAST_PART_BYTES = 5 * 1024 * 1024
"""Minimum size of all parts of a composition but the last one; S3's."""
COPIED_PART_BYTES = 256 * 1024 * 1024
"""A larger range is copied in several parts, at the same time; S3's own maximum is 5 GiB."""


@runtime_checkable
class ComposesObjects(Protocol):
    """A store that can copy ranges of objects by itself, so that their bytes do not pass through this process."""

    def can_compose_from(self, source: Store) -> bool:
        """Return whether objects of another store can be copied: the same service, reached by the same identity."""

    def compose(self, key: str, source: Store, part_sizes: Sequence[int]) -> AbstractContextManager[Composition]:
        """Write a large object in parts of these sizes.

        Leaving the block normally completes it, leaving it by an exception aborts it.

        Args:
            part_sizes: In bytes. Stores have limits, see ``exports.parts``.
        """


@runtime_checkable
class CopiesObjects(Protocol):
    """A store that can copy a whole object by itself in one request."""

    def can_copy_from(self, source: Store) -> bool:
        """Return whether objects of another store can be copied: the same service, reached by the same identity."""

    def copy_object(self, key: str, source: Store, source_key: str) -> int | None:
        """Create or replace an object.

        Args:
            source_key: In the source.

        Returns:
            The CRC32C that the store reports of the copy; None if it reports none.

        Raises:
            ObjectNotFoundError: The source does not have this object.
            StoreError: The copy may exist. ``RequestRefusedError`` or ``AccessDeniedError`` mean that the store cannot
                copy.
        """


@runtime_checkable
class LinksObjects(Protocol):
    """A store that can give an object a second name, so that both are the same bytes on the disk."""

    def link(self, key: str, source_key: str) -> ObjectInfo:
        """Create an object that is another one of this store, until either is replaced or deleted.

        Raises:
            ObjectExistsError: The key is taken.
            ObjectNotFoundError: There is no object to link.
            AccessDeniedError, RequestRefusedError: The file system has no hard links.
        """


@runtime_checkable
class Reconnects(Protocol):
    """A store that is reached over connections, which stay open between requests."""

    def reconnect(self) -> None:
        """Send all later requests over new connections.

        Requests that are under way are not disturbed.
        """


@runtime_checkable
class KeepsUnfinished(Protocol):
    """A store that keeps the parts of killed writers, invisible and billed, until they are discarded."""

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        """Every unfinished upload whose key starts with ``prefix``. None in stores that expire them by themselves."""

    def discard(self, upload: UnfinishedUpload) -> None:
        """Delete its parts; it cannot be completed afterwards. An upload that has ended already is not an error.

        Raises:
            StoreError: It may still be there.
        """


@runtime_checkable
class RestsOnFilesystem(Protocol):
    """A store over a third-party filesystem, which the probe tests more thoroughly."""

    @property
    def filesystem_name(self) -> str:
        """The class of the filesystem, as errors name it."""

    def another_client(self) -> Store:
        """The same store over connections of its own, as another process would have it."""
