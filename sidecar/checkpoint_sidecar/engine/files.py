"""Files to be written, laid out before their first byte moves, and how they are cut into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

SMALL_BYTES = 64 * 1024
"""Less than this is copied together with its small neighbours: each buffer of its own costs the sender a call."""


class Segment(Protocol):
    """Successive bytes of a file."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def in_memory(self) -> bool:
        """Whether ``view`` costs no memory."""

    def view(self, start: int, stop: int) -> memoryview:
        """Its bytes from ``start`` to ``stop``, in memory that nobody changes while the view is in use."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """A segment that is at hand."""

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


@dataclass(frozen=True, slots=True)
class SegmentPiece:
    """Some bytes of a segment; in a part, never none."""

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
    """What is sent at once.

    Attributes:
        index: From 0.
        runs: Each becomes one buffer: small pieces that follow each other, or one large piece.
    """

    index: int
    runs: tuple[tuple[SegmentPiece, ...], ...]

    @property
    def size(self) -> int:
        return sum(piece.size for run in self.runs for piece in run)

    @property
    def memory_bytes(self) -> int:
        """What ``buffers`` costs."""
        return sum(piece.size for run in self.runs for piece in run if len(run) > 1 or not piece.segment.in_memory)

    def buffers(self) -> list[memoryview]:
        """The part's bytes, one buffer after the other."""
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
