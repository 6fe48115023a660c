"""Plans how each wanted byte reaches its destination: the one place that decides between direct and buffered. Pure.

=========  =========================================  ==========================================================
route      the bytes are received in                  chosen for
=========  =========================================  ==========================================================
direct     the destination itself                     large pieces whose destination is host memory
buffered   a buffer that each thread reuses           small pieces, pieces that overlap others, other destinations
assembled  staging memory, until they are complete    destinations that take all of their bytes at once
=========  =========================================  ==========================================================

``plan_waves`` fits assembled destinations into the staging memory. ``plan_delivery`` then divides each request between
direct and buffered; staging memory counts as host memory there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from checkpoint_sidecar.engine.budget import groups_within
from checkpoint_sidecar.engine.requests import ByteRange, RangeRequest, RequestPiece

DIRECT_BYTES = 64 * 1024
"""Size from which a separate buffer is worth its system call; smaller pieces are cheaper to copy."""

_ALIGNMENT = 64
"""Alignment of assembled bytes in staging memory, enough for every dtype."""


class Sink(Protocol):
    """A destination outside host memory that takes bytes as they arrive."""

    def accept(self, offset: int, data: memoryview) -> None:
        """Accept verified bytes.

        Several threads call it, in any order; every byte is passed once.

        Args:
            offset: Position of the first byte in the wanted range.
            data: Any number of bytes, valid during the call only.
        """


@dataclass(frozen=True, slots=True)
class Assembly:
    """A destination that takes all of its bytes at once.

    Attributes:
        deliver: Called once, by the thread that reads, with verified bytes that are valid during the call only.
    """

    deliver: Callable[[memoryview], None]


Destination: TypeAlias = memoryview | Sink | Assembly


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes of a file, and where they go.

    Attributes:
        name: The file's name in the snapshot's folder.
        span: The bytes' position in the file.
        into: Writable memory of ``span.length`` bytes, or another destination. After an error the contents of memory
            are undefined.
    """

    name: str
    span: ByteRange
    into: Destination


@dataclass(frozen=True, slots=True)
class Wave:
    """Wants that are read together.

    Attributes:
        ready: Indexes of the wants that need no staging memory; only the first wave has any.
        assembled: Offset in staging memory of each want that is assembled, by index.
        staging_bytes: Staging memory that the wave needs.
    """

    ready: tuple[int, ...]
    assembled: Mapping[int, int]
    staging_bytes: int


@dataclass(frozen=True, slots=True)
class BufferSlot:
    """Part of a request, received in the memory of a want, or in a reused buffer if ``want`` is None."""

    span: ByteRange
    want: int | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the bytes of one request are received.

    Attributes:
        slots: Cover the request's span without overlap, in order of position.
        copies: Pieces that are received elsewhere and copied from there.
    """

    slots: tuple[BufferSlot, ...]
    copies: tuple[RequestPiece, ...]

    @property
    def buffered_bytes(self) -> int:
        """Size of the reused buffer that the request needs."""
        return sum(slot.span.length for slot in self.slots if slot.want is None)


def plan_waves(wants: Sequence[Want], staging_bytes: int) -> list[Wave]:
    """Divide wants into waves, of which each needs at most ``staging_bytes``, or holds one assembled want only."""
    ready = tuple(index for index, want in enumerate(wants) if not isinstance(want.into, Assembly))
    assembled = [index for index, want in enumerate(wants) if isinstance(want.into, Assembly)]

    def footprint(index: int) -> int:
        length = wants[index].span.length
        return length + -length % _ALIGNMENT

    waves: list[Wave] = []
    for group in groups_within(staging_bytes, assembled, footprint):
        offsets: dict[int, int] = {}
        end = 0
        for index in group:
            offsets[index] = end
            end += footprint(index)
        waves.append(Wave(() if waves else ready, offsets, end))
    return waves or [Wave(ready, {}, 0)]


def plan_delivery(request: RangeRequest, in_memory: Callable[[int], bool]) -> Delivery:
    """Receive large pieces directly in their destinations, and everything else in a buffer.

    Of pieces that overlap, only the first one is received directly.

    Args:
        in_memory: Whether a want's destination is memory; takes the want's index.
    """
    slots: list[BufferSlot] = []
    copies: list[RequestPiece] = []
    reached = request.span.start

    def buffer_up_to(position: int) -> None:
        if position > reached:
            slots.append(BufferSlot(ByteRange(reached, position - reached), None))

    for piece in request.pieces:
        span = piece.span
        if span.length >= DIRECT_BYTES and span.start >= reached and in_memory(piece.want):
            buffer_up_to(span.start)
            slots.append(BufferSlot(span, piece.want))
            reached = span.end
        else:
            copies.append(piece)
    buffer_up_to(request.span.end)
    return Delivery(tuple(slots), tuple(copies))
