"""Cutting what is written into parts of equal size, which is what every store accepts in a multipart upload."""

from __future__ import annotations

from collections.abc import Iterator

from checkpoint_sidecar.store.base import Buffer

PART_BYTES = 32 * 1024 * 1024
"""Times the 10,000 parts that S3 allows: objects of up to 312 GiB."""

PARALLEL_PARTS = 4
"""Parts of one upload that are under way at once; with the one being filled they bound its memory."""


class PartBuffer:
    """Collects bytes until they make a part. What is added is copied."""

    def __init__(self) -> None:
        self._part = bytearray()

    def add(self, data: Buffer) -> Iterator[bytearray]:
        """Add bytes; yields each part that they complete."""
        view = memoryview(data).cast("B")
        while view:
            taken = view[: PART_BYTES - len(self._part)]
            self._part += taken
            view = view[len(taken) :]
            if len(self._part) == PART_BYTES:
                yield self.rest()

    def rest(self) -> bytearray:
        """Take what has been collected since the last whole part."""
        part, self._part = self._part, bytearray()
        return part
