"""Records which bytes of a snapshot were compared with their checksums, so that it can be called verified."""

from __future__ import annotations

from collections.abc import Iterator

from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.engine.requests import ByteRange


class ComparedBytes:
    """Flags for the blocks of a snapshot, in the order of its manifest: 1 for each that was compared.

    Safe from several threads. Ranks that read parts of the same snapshot combine their ``flags`` by maximum.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._first: dict[str, int] = {}
        count = 0
        for file in manifest.files:
            self._first[file.name] = count
            count += len(file.block_crc32c) // 4
        self.flags = bytearray(count)

    def mark(self, name: str, span: ByteRange) -> None:
        """Record that these bytes were compared: whole blocks, except for the last one of the file."""
        first = self._first[name] + span.start // self._manifest.block_bytes
        last = self._first[name] + -(-span.end // self._manifest.block_bytes)
        self.flags[first:last] = b"\1" * (last - first)

    def left(self) -> Iterator[tuple[str, ByteRange]]:
        """Yield the spans of blocks that were not compared, each with its file's name."""
        size = self._manifest.block_bytes
        for file in self._manifest.files:
            first = self._first[file.name]
            end = first + len(file.block_crc32c) // 4
            start = self.flags.find(0, first, end)
            while start >= 0:
                stop = self.flags.find(1, start, end)
                stop = end if stop < 0 else stop
                offset = (start - first) * size
                yield file.name, ByteRange(offset, min((stop - first) * size, file.size) - offset)
                start = self.flags.find(0, stop, end)

    @property
    def bytes_left(self) -> int:
        return sum(span.length for _, span in self.left())
