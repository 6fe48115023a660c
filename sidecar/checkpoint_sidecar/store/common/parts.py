"""Divides objects into parts of equal size; the common base of their uploads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.base import Buffer, Store

PART_BYTES = 32 * 1024 * 1024
"""Minimum size of a part."""

WIDE_PART_BYTES = 64 * 1024 * 1024
"""Maximum size of a wide part, below the number of parts that a store allows."""

WIDE_PARTS = 64
"""Number of wide parts, unless they reach their maximum size: four for each of 16 connections, which then finish an
object at about the same time."""

MOST_PARTS = 9_000
"""S3 allows 10,000."""

_ALIGNMENT = 4 * 1024 * 1024


def part_bytes_for(size: int) -> int:
    """Return the part size of an object of ``size`` bytes; a multiple of 4 MiB, and so of the checksum blocks."""
    units = -(-size // (MOST_PARTS * _ALIGNMENT))
    return max(PART_BYTES, units * _ALIGNMENT)


def wide_part_bytes_for(size: int) -> int:
    """Return the part size of a large object that is in memory; see ``WidensParts``."""
    even = -(-size // (WIDE_PARTS * _ALIGNMENT)) * _ALIGNMENT
    return max(part_bytes_for(size), min(even, WIDE_PART_BYTES))


def write_object(store: Store, key: str, data: Buffer) -> None:
    """Write an object from memory, part after part.

    Raises:
        StoreError: The write failed. The object is not visible, except perhaps after an ``UnknownOutcomeError``.
    """
    view = memoryview(data).cast("B")
    with store.upload(key, view.nbytes) as upload:
        for index, start in enumerate(range(0, view.nbytes, upload.part_bytes)):
            upload.write_part(index, [view[start : start + upload.part_bytes]])


class PartedUpload(ABC):
    """An ``Upload`` that tracks its parts, ends once, and waits for its writers. Subclasses write to a store.

    Args:
        subject: Name of the object in errors.
        size: Size in bytes.
    """

    def __init__(self, subject: str, size: int) -> None:
        self._subject = subject
        self._size = size
        self._cut_into(part_bytes_for(size))
        self._changed = threading.Condition()
        self._writers = 0
        self._open = True

    @property
    def part_bytes(self) -> int:
        return self._part_bytes

    def _cut_into(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._missing = set(range(-(-self._size // part_bytes)))
        self._parts = len(self._missing)

    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        views = [view for buffer in buffers if (view := memoryview(buffer).cast("B"))]
        self._check_size(index, sum(view.nbytes for view in views))
        with self._writing():
            self._write(index, views)
            self._missing.discard(index)

    def complete(self) -> None:
        if not self._open:
            return
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {self._parts} parts of {self._subject} were not written")
        self._publish()
        self._open = False

    def abort(self) -> None:
        with self._changed:
            if not self._open:
                return
            self._open = False
        self._interrupt()
        with self._changed:
            self._changed.wait_for(lambda: self._writers == 0)
        self._discard()

    def __enter__(self) -> PartedUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.complete()
        finally:
            self.abort()

    @abstractmethod
    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        """Store one part. The views are in bytes and not empty."""

    @abstractmethod
    def _publish(self) -> None:
        """Make the object visible, after all parts are written."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Make ``_write`` return soon in other threads."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove all parts. Called after the last writer has returned. Does not raise."""

    def _aborted(self) -> StoreError:
        return StoreError("upload", self._subject, "the upload was aborted")

    def _check_size(self, index: int, size: int) -> None:
        if not 0 <= index < self._parts:
            raise ValueError(f"{self._subject} has {self._parts} parts; part {index} does not exist")
        wanted = min(self._part_bytes, self._size - index * self._part_bytes)
        if size != wanted:
            raise ValueError(f"part {index} of {self._subject} has {wanted} bytes, and {size} were given")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._changed:
            if not self._open:
                raise self._aborted()
            self._writers += 1
        try:
            yield
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()
