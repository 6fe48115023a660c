"""Describes the contents of files before they are written, and cuts them into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

SMALL_BYTES = 64 * 1024
"""Smaller pieces are copied together with their neighbors, because each separate buffer costs the sender a call."""


class Segment(Protocol):
    """Successive bytes of a file."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def in_memory(self) -> bool:
        """Whether ``view`` needs no new memory."""

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes from ``start`` to ``stop``, in memory that does not change while the view is in use."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """A segment that is in memory."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def in_memory(self) -> bool:
        return True

    def view(self, start: int, stop: int) -> memoryview:
        return memoryview(self.data)[start:stop]


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file of a snapshot.

    Attributes:
        name: Inside the save's folder.
        segments: Its contents, one after the other.
    """

    name: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    @property
    def in_memory(self) -> bool:
        return all(segment.in_memory for segment in self.segments)


@dataclass(frozen=True, slots=True)
class SegmentPiece:
    """A range of a segment's bytes, not empty."""

    segment: Segment
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def is_small(self) -> bool:
        return self.size < SMALL_BYTES

    def view(self) -> memoryview:
        return self.segment.view(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class UploadPart:
    """A part of a file, sent in one request.

    Attributes:
        index: Number of the part, from 0.
        runs: Consecutive small pieces, or one large piece, that become one buffer.
    """

    index: int
    runs: tuple[tuple[SegmentPiece, ...], ...]

    @property
    def size(self) -> int:
        return sum(piece.size for run in self.runs for piece in run)

    @property
    def memory_bytes(self) -> int:
        """Memory that ``buffers`` allocates."""
        return sum(piece.size for run in self.runs for piece in run if len(run) > 1 or not piece.segment.in_memory)

    def buffers(self) -> list[memoryview]:
        """Return the part's bytes as consecutive buffers."""
        return [run[0].view() if len(run) == 1 else _joined(run) for run in self.runs]


def parts_of(file: FilePlan, part_bytes: int) -> Iterator[UploadPart]:
    """Cut a file into parts of ``part_bytes``, the last one shorter."""
    index, room, pieces = 0, part_bytes, list[SegmentPiece]()
    for segment in file.segments:
        start = 0
        while start < segment.size:
            stop = min(start + room, segment.size)
            pieces.append(SegmentPiece(segment, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield UploadPart(index, _runs(pieces))
                index, room, pieces = index + 1, part_bytes, []
    if pieces:
        yield UploadPart(index, _runs(pieces))


def _runs(pieces: Iterable[SegmentPiece]) -> tuple[tuple[SegmentPiece, ...], ...]:
    runs: list[tuple[SegmentPiece, ...]] = []
    small: list[SegmentPiece] = []
    for piece in pieces:
        if piece.is_small:
            small.append(piece)
            continue
        if small:
            runs.append(tuple(small))
            small = []
        runs.append((piece,))
    if small:
        runs.append(tuple(small))
    return tuple(runs)


def _joined(run: Iterable[SegmentPiece]) -> memoryview:
    buffer = memoryview(bytearray(sum(piece.size for piece in run)))
    end = 0
    for piece in run:
        start, end = end, end + piece.size
        buffer[start:end] = piece.view()
    return buffer
