"""Writing one file of a snapshot, with its checksums computed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crc32c import crc32c

from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File
from checkpoint_sidecar.store.base import Buffer, Store
from checkpoint_sidecar.store.parts import write_object


class FileWriter:
    """A write-only stream; as much of a file as ``torch.save`` needs. It holds the data: uploads want their size."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._size = 0
        self._checksum = 0
        self._block_checksum = 0
        self._finished_blocks = bytearray()

    def write(self, data: Buffer) -> int:
        """Append all of ``data``; returns its length in bytes."""
        view = memoryview(data).cast("B")
        self.data += view
        self._checksum = crc32c(view, self._checksum)
        for part in self._at_block_ends(view):
            self._block_checksum = crc32c(part, self._block_checksum)
            self._size += len(part)
            if self._size % BLOCK_BYTES == 0:
                self._finish_block()
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def flush(self) -> None:
        """Nothing is buffered here; streams are expected to have this."""

    def describe(self, name: str) -> File:
        """The manifest's line for what was written."""
        blocks = bytes(self._finished_blocks)
        if self._size % BLOCK_BYTES:
            blocks += self._block_checksum.to_bytes(4, "big")
        return File(name=name, size=self._size, crc32c=self._checksum, block_crc32c=blocks)

    def _at_block_ends(self, view: memoryview) -> Iterator[memoryview]:
        start, room = 0, BLOCK_BYTES - self._size % BLOCK_BYTES
        while start < len(view):
            yield view[start : start + room]
            start, room = start + room, BLOCK_BYTES

    def _finish_block(self) -> None:
        self._finished_blocks += self._block_checksum.to_bytes(4, "big")
        self._block_checksum = 0


@contextmanager
def upload_file(store: Store, key: str) -> Iterator[FileWriter]:
    """Write one object. It becomes visible when the block ends normally; any exception discards it.

    Raises:
        StoreError: A part failed; nothing is visible.
    """
    stream = FileWriter()
    yield stream
    write_object(store, key, stream.data)


def upload_bytes(store: Store, key: str, data: Buffer) -> File:
    """Write one object that is already in memory.

    Raises:
        StoreError: See ``upload_file``.
    """
    with upload_file(store, key) as stream:
        stream.write(data)
    return stream.describe(key.rpartition("/")[2])
