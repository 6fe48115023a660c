"""Composes large objects of ranges that the store copies by itself, and of parts that are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from checkpoint_sidecar.core.errors import RequestRefusedError
from checkpoint_sidecar.store.http.client import HttpClient
from checkpoint_sidecar.store.http.dialect import PartsDialect, StoredPart
from checkpoint_sidecar.store.http.upload import PartsUpload

if TYPE_CHECKING:
    from checkpoint_sidecar.store.http.bodies import HttpBodies


class ComposedUpload(PartsUpload):
    """See ``Composition``."""

    def __init__(self, bodies: HttpBodies, key: str, source: HttpBodies, part_sizes: Sequence[int]) -> None:
        super().__init__(bodies, key, sum(part_sizes))
        self._source = source
        self._sizes = part_sizes
        self._missing = set(range(len(part_sizes)))
        self._parts = len(part_sizes)

    def copy_part(self, index: int, key: str, start: int) -> None:
        """See ``Composition``."""
        length = self._sizes[index]
        source = f"{self._source.bucket}/{self._source.prefix}{key}"

        def request(client: HttpClient) -> StoredPart:
            dialect = client.dialect
            assert isinstance(dialect, PartsDialect)
            message = dialect.copied_part(self._path, self._upload_id, index, source, start, length)
            if message is None:
                raise RequestRefusedError("copy a range to", self._subject, "this store does not copy ranges")
            return dialect.stored_copy(self._bodies.send(client, message, self._cancellation))

        with self._writing():
            self._begun()
            self._stored[index] = self._calls.write(
                f"copy part {index + 1} of", self._key, request, cancelled=self._cancellation.cancelled
            )
            self._missing.discard(index)

    def part_checksum(self, index: int) -> int | None:
        """Return the CRC32C of a part; None if the store did not report that of a copied one."""
        known = self._checksums.get(index)
        return self._stored[index].crc32c if known is None else known

    def _check_size(self, index: int, size: int) -> None:
        if not 0 <= index < self._parts or size != self._sizes[index]:
            raise ValueError(f"part {index} of {self._subject} was planned otherwise, and {size} bytes were given")
