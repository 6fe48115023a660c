"""Plans which requests read a set of wanted bytes. Pure.

A request may read more than is wanted: whole blocks where checksums are compared, and gaps that are cheaper to read
than a request of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

REQUEST_BYTES = 16 * 1024 * 1024
"""Largest request, unless a single block is larger: the size that object stores serve best."""

GAP_BYTES = 64 * 1024
"""Unwanted bytes between two wanted ranges that are cheaper to read than to skip."""


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """A range of bytes of a file."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class RequestPiece:
    """Bytes of one wanted span that one request reads.

    Attributes:
        want: Index of the wanted span.
        span: Position in the file.
    """

    want: int
    span: ByteRange


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """One read of a file.

    Attributes:
        span: The bytes to read: whole blocks, the last one of the file possibly shorter.
        pieces: The wanted bytes among them, by position; pieces of different wants may overlap.
    """

    span: ByteRange
    pieces: tuple[RequestPiece, ...]


def plan_requests(wanted: Sequence[ByteRange], *, block_bytes: int = 1, size: int | None = None) -> list[RangeRequest]:
    """Return the requests that read every wanted byte exactly once, in order of position.

    None is larger than ``REQUEST_BYTES``, unless one block is.

    Args:
        wanted: Spans of one file, in any order; they may overlap, and empty ones are left out.
        block_bytes: Only whole blocks of this size are read.
        size: Length of the file, where its last block ends; needed unless ``block_bytes`` is 1.
    """
    step = max(REQUEST_BYTES // block_bytes, 1) * block_bytes

    def widened(start: int, end: int) -> ByteRange:
        start -= start % block_bytes
        end += -end % block_bytes
        return ByteRange(start, (end if size is None else min(end, size)) - start)

    order = sorted((want for want, span in enumerate(wanted) if span.length), key=wanted.__getitem__)
    requests: list[RangeRequest] = []
    for stretch in _stretches(order, wanted, widened):
        whole = widened(wanted[stretch[0]].start, max(wanted[want].end for want in stretch))
        arriving, open_wants = iter(stretch), list[int]()
        upcoming = next(arriving, None)
        for start in range(whole.start, whole.end, step):
            end = min(start + step, whole.end)
            open_wants = [want for want in open_wants if wanted[want].end > start]
            while upcoming is not None and wanted[upcoming].start < end:
                open_wants.append(upcoming)
                upcoming = next(arriving, None)
            pieces = tuple(RequestPiece(want, _clipped(wanted[want], start, end)) for want in open_wants)
            if pieces:
                first, last = pieces[0].span.start, max(piece.span.end for piece in pieces)
                requests.append(RangeRequest(widened(first, last), pieces))
    return requests


def _stretches(
    order: Sequence[int], wanted: Sequence[ByteRange], widened: Callable[[int, int], ByteRange]
) -> Iterator[list[int]]:
    """Yield groups of wants, by position, with gaps between them that are too large to read."""
    stretch: list[int] = []
    reach = 0
    for want in order:
        span = widened(wanted[want].start, wanted[want].end)
        if stretch and span.start > reach + GAP_BYTES:
            yield stretch
            stretch, reach = [], 0
        stretch.append(want)
        reach = max(reach, span.end)
    if stretch:
        yield stretch


def _clipped(span: ByteRange, start: int, end: int) -> ByteRange:
    first = max(span.start, start)
    return ByteRange(first, min(span.end, end) - first)
