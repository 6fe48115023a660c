"""Reading ranges of one file of a snapshot, each verified before it is handed out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from crc32c import crc32c

from checkpoint_sidecar.core.errors import CorruptSnapshotError, ObjectNotFoundError
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File
from checkpoint_sidecar.store.base import Store

REQUEST_BYTES = 16 * 1024 * 1024
"""Largest single request: what object stores serve best, and a multiple of every sensible block size."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A range of bytes of a file."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


def batches(spans: Iterable[Span], *, gap: int, budget: int) -> Iterator[list[Span]]:
    """Group spans, sorted by position, so that each group is worth reading in one sweep.

    Args:
        gap: Unneeded bytes between two spans that are cheaper to read than to skip.
        budget: Bytes a group may cover; a single larger span is a group of its own.
    """
    group: list[Span] = []
    reach = 0
    for span in sorted(spans):
        if group and (span.start > reach + gap or max(reach, span.end) - group[0].start > budget):
            yield group
            group, reach = [], 0
        group.append(span)
        reach = max(reach, span.end)
    if group:
        yield group


class FileReader:
    """Verified access to one object.

    Args:
        store: Opened at the run's root.
        key: The object.
        file: What the manifest says about it; None reads without verifying.
        block_bytes: The manifest's ``block_bytes``.
        pool: Runs the requests of one ``read`` side by side.
    """

    def __init__(
        self, store: Store, key: str, file: File | None, *, pool: Executor, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self._store = store
        self._key = key
        self._file = file
        self._block = block_bytes
        self._pool = pool

    def read(self, span: Span) -> memoryview:
        """Exactly these bytes; whole blocks around them are read and checked.

        Holds the widened span in memory, plus one request per thread of the pool.

        Raises:
            CorruptSnapshotError: A block's CRC32C differs, the object is gone, or the span lies outside of it.
            StoreError: The store failed, which says nothing about the object.
        """
        wide = span if self._file is None else self._widened(span, self._file)
        buffer = memoryview(bytearray(wide.length))
        # A multiple of the block size, so that every request can be verified on its own.
        step = max(REQUEST_BYTES // self._block, 1) * self._block
        requests = [Span(start, min(step, wide.end - start)) for start in range(wide.start, wide.end, step)]

        def fetch(request: Span) -> None:
            buffer[request.start - wide.start : request.end - wide.start] = self._fetch(request)

        for _ in map(fetch, requests) if len(requests) == 1 else self._pool.map(fetch, requests):
            pass
        return buffer[span.start - wide.start : span.end - wide.start]

    def _widened(self, span: Span, file: File) -> Span:
        if span.end > file.size:
            raise CorruptSnapshotError(
                "read a range",
                self._key,
                f"bytes {span.start} to {span.end} are wanted of a file of {file.size}",
                evidence="ManifestMismatch",
            )
        start = span.start // self._block * self._block
        end = min(-(-span.end // self._block) * self._block, file.size)
        return Span(start, end - start)

    def _fetch(self, span: Span) -> bytes:
        try:
            data = self._store.get_range(self._key, span.start, span.length)
        except ObjectNotFoundError as error:
            raise missing(self._key) from error
        if self._file is not None:
            self._check(span, data, self._file)
        return data

    def _check(self, span: Span, data: bytes, file: File) -> None:
        view = memoryview(data)
        for position in range(0, len(view), self._block):
            block = (span.start + position) // self._block
            if crc32c(view[position : position + self._block]) != file.block_checksum(block):
                start = block * self._block
                raise CorruptSnapshotError(
                    "read a range",
                    self._key,
                    f"the CRC32C of bytes {start} to {min(start + self._block, file.size)} is not what was committed",
                    evidence="ChecksumMismatch",
                )


def missing(key: str) -> CorruptSnapshotError:
    """The error for an object of a snapshot that does not exist."""
    return CorruptSnapshotError("read a file of the snapshot", key, "it does not exist", evidence="MissingObject")
