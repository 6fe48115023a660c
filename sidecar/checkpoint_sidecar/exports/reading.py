"""Reads the bytes of an exported file out of a snapshot: any span of it, in bounded memory, each block verified."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError
from checkpoint_sidecar.core.pickles import MalformedError
from checkpoint_sidecar.engine.boxes import Box
from checkpoint_sidecar.engine.delivery import Assembly, Want
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.safetensors import DTYPES
from checkpoint_sidecar.exports.archives import HEAD_BYTES, payload_offset
from checkpoint_sidecar.exports.choosing import ExportedTensor
from checkpoint_sidecar.exports.contents import ArchivePlace, StoredShard, StoredTensor
from checkpoint_sidecar.exports.files import ExportFile

Cast: TypeAlias = Callable[[memoryview, str, str], memoryview]
"""Returns elements in another dtype, given their bytes and torch's names of both dtypes."""

PIECE_BYTES = 4 * 1024 * 1024
"""Maximum size of elements that are assembled: cast, or taken out of a shard with gaps between them."""


@dataclass(frozen=True, slots=True)
class SnapshotReading:
    """A snapshot that is read.

    Attributes:
        files: Its files.
        payloads: Where the bytes of each tensor's archive begin in their file.
        staging_bytes: Memory for what is assembled; see ``Files.read``.
        cast: Casts elements; needed only if a tensor gets another dtype.
    """

    files: Files
    payloads: Mapping[ArchivePlace, int]
    staging_bytes: int
    cast: Cast | None = None

    def fill(self, file: ExportFile, start: int, into: memoryview) -> None:
        """Fill memory with the bytes of an exported file from ``start``.

        Raises:
            CorruptSnapshotError, StoreError: See ``Files.read``.
        """
        wants: list[Want] = []
        for piece, first, last, begins in file.within(start, start + len(into)):
            target = into[begins + first - start : begins + last - start]
            if isinstance(piece, bytes):
                target[:] = piece[first:last]
            else:
                wants += self._wants(piece, first, last, target)
        if wants:
            self.files.read(wants, staging_bytes=self.staging_bytes)

    def _wants(self, tensor: ExportedTensor, first: int, last: int, into: memoryview) -> Iterator[Want]:
        """Yield what to read for a span of a tensor's exported bytes."""
        stored, written = DTYPES[tensor.stored.dtype].bytes, DTYPES[tensor.dtype].bytes
        for shard in tensor.stored.shards:
            begin, end = shard.box.within(first // written, -(-last // written))
            if begin == end:
                continue
            payload = self.payloads[shard.place]
            _, position, count = next(shard.box.spans(begin, end))
            offset = position * written - first
            whole = count == end - begin and offset >= 0 and offset + count * written <= len(into)
            if whole and not tensor.is_cast:
                target = into[offset : offset + count * written]
                yield Want(shard.place.file, ByteRange(payload + begin * stored, len(target)), target)
                continue
            step = max(PIECE_BYTES // max(stored, written), 1)
            for at in range(begin, end, step):
                stop = min(at + step, end)
                deliver = functools.partial(self._scatter, tensor, shard.box, (at, stop), first, into)
                span = ByteRange(payload + at * stored, (stop - at) * stored)
                yield Want(shard.place.file, span, Assembly(deliver))

    def _scatter(
        self,
        tensor: ExportedTensor,
        box: Box,
        elements: tuple[int, int],
        first: int,
        into: memoryview,
        data: memoryview,
    ) -> None:
        """Copy elements of a shard to their places; those outside of ``into`` are cut off."""
        written = DTYPES[tensor.dtype].bytes
        if tensor.is_cast:
            assert self.cast is not None, tensor.name
            data = self.cast(data, tensor.stored.dtype, tensor.dtype)
        for at, position, count in box.spans(*elements):
            offset, source = position * written - first, (at - elements[0]) * written
            cut = max(-offset, 0)
            length = min(count * written, len(into) - offset)
            if cut < length:
                into[offset + cut : offset + length] = data[source + cut : source + length]


class FileBytes:
    """The contents of an exported file: a ``Segment``."""

    in_memory = False

    def __init__(self, file: ExportFile, reading: SnapshotReading) -> None:
        self._file = file
        self._reading = reading
        self._size = file.size

    @property
    def size(self) -> int:
        return self._size

    def view(self, start: int, stop: int) -> memoryview:
        memory = memoryview(bytearray(stop - start))
        self._reading.fill(self._file, start, memory)
        return memory


def locate_payloads(files: Files, tensors: Iterable[StoredTensor], *, subject: str) -> dict[ArchivePlace, int]:
    """Return where the bytes of each shard begin in its file, from the heads of archives.

    One process wrote a file, so archives of one dtype, shape and size in it have equal heads: one of them is read.

    Raises:
        IncompatibleSnapshotError: A tensor is not stored as ``torch.save`` stores plain ones.
        CorruptSnapshotError, StoreError: See ``Files.read``.
    """
    alike: dict[tuple[str, str, tuple[int, ...], int], list[tuple[StoredTensor, StoredShard]]] = {}
    for tensor in tensors:
        for shard in tensor.shards:
            key = (shard.place.file, tensor.dtype, shard.box.sizes, shard.place.span.length)
            alike.setdefault(key, []).append((tensor, shard))
    heads: dict[ArchivePlace, int] = {}
    wants = []
    for group in alike.values():

        def locate(data: memoryview, group: Sequence[tuple[StoredTensor, StoredShard]] = group) -> None:
            for tensor, shard in group:
                heads[shard.place] = shard.place.span.start + _offset(bytes(data), tensor, shard, subject)

        _, first = group[0]
        span = ByteRange(first.place.span.start, min(HEAD_BYTES, first.place.span.length))
        wants.append(Want(first.place.file, span, Assembly(locate)))
    files.read(wants, staging_bytes=len(wants) * HEAD_BYTES)
    return heads


def _offset(head: bytes, tensor: StoredTensor, shard: StoredShard, subject: str) -> int:
    cause = "its archive is too short"
    try:
        offset = payload_offset(head, shard.box.sizes)
        if offset + shard.box.count * DTYPES[tensor.dtype].bytes <= shard.place.span.length:
            return offset
    except MalformedError as error:
        cause = str(error)
    raise IncompatibleSnapshotError(
        "export", f"{tensor.name} of {subject}", f"it is not stored as a plain tensor: {cause}"
    )
