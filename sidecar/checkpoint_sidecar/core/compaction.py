"""Compactions: ranges of log entries in one object each, so that reading a long log needs few requests.

A compaction is derived and optional: if it is missing, damaged or wrong, readers use the entries themselves, which are
kept. It holds them verbatim, including kinds that this version does not know, with the store's time of each. It is gzip
of ::

    {"format": "1.0", "first": 1, "last": 200, "sizes": [283, ...], "storedAt": [1767225600000000, ...]}\\n
    <bytes of entry 1><bytes of entry 2>...

Every 200 entries make a compaction, ten compactions make one of 2,000, and ten of those one of 20,000. These stay. Two
more grow with the log, so that a reader finds few objects and few entries behind them: each new version of them is an
object of its own, and replaces the one before::

    1 ......... 20,000 | 20,001 ......... 20,200 | 20,201 ... 20,296 | 20,297 20,298
    stays              | grows every 200 entries | every 4 entries   | read one by one

No reader holds more than ``MAX_COMPACTION_BYTES``.
"""

from __future__ import annotations

import datetime as dt
import gzip
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import msgspec

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.log import (
    MAX_ENTRY_BYTES,
    AttemptNumber,
    StoredEntry,
    decode,
)
from checkpoint_sidecar.core.log_format import FORMAT, Format, check_format
from checkpoint_sidecar.core.wire import decode_json

SPANS = (200, 2_000, 20_000)
"""Numbers of entries in a compaction that stays. It ends at a multiple of that."""

TAIL = 4
"""How often the shortest compaction grows; at most one entry fewer is read one by one."""

MAX_COMPACTION_BYTES = 64 * 1024 * 1024
"""Maximum size before compression: 200 entries of the largest size fit."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_GZIP = 16 + zlib.MAX_WBITS

Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_ENTRY_BYTES)]
_LATEST = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
"""Later than any store's clock, and early enough to add any duration of a policy."""
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=(_LATEST - _EPOCH) // _MICROSECOND)]


@dataclass(frozen=True, slots=True)
class RawEntry:
    """One log entry as the store holds it.

    Attributes:
        stored_at: The store's clock when the entry was created, timezone-aware UTC.
    """

    number: int
    data: bytes
    stored_at: dt.datetime

    def decode(self) -> StoredEntry:
        """Decode the entry.

        Raises:
            LogError: See ``core.log.decode``.
        """
        return decode(self.data, number=self.number, stored_at=self.stored_at)


@dataclass(frozen=True, slots=True, order=True)
class EntryRange:
    """The entries of one compaction, both ends included."""

    first: int
    last: int

    @property
    def key(self) -> str:
        return layout.compaction_key(self.first, self.last)

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def parts(self) -> tuple[EntryRange, ...]:
        """The smaller spans that stay and can be merged into this one; empty for the smallest."""
        index = SPANS.index(self.size)
        if index == 0:
            return ()
        size = SPANS[index - 1]
        return tuple(EntryRange(first, first + size - 1) for first in range(self.first, self.last, size))

    @property
    def stays(self) -> bool:
        """Whether it is never replaced by a longer one."""
        return self.size in SPANS and self.last % self.size == 0


def span_of(key: str) -> EntryRange | None:
    """Return the span of the compaction with this key, or None for other objects."""
    found = layout.compaction_range(key)
    span = EntryRange(*found) if found else None
    return span if span and (span.stays or _can_grow(span)) and span.first >= 1 else None


def _can_grow(span: EntryRange) -> bool:
    return span.first % SPANS[0] == 1 and 1 <= span.size <= SPANS[-1]


def longest_from(first: int, existing: Collection[EntryRange]) -> EntryRange | None:
    """Return the largest span that begins with entry ``first``."""
    return max((span for span in existing if span.first == first), default=None)


def uncompacted(first: int) -> int:
    """Return the last entry that is never compacted in a log that begins with ``first``; 0 if that is 1."""
    return -(-(first - 1) // SPANS[0]) * SPANS[0]


def due(head: int, existing: Collection[EntryRange], *, first: int = 1) -> tuple[EntryRange, ...]:
    """Return the compactions to write now: merged ones first, those that grow last.

    Args:
        head: Number of the log's last entry.
        existing: Compactions that are written already, or turned out to be impossible.
        first: Number of the log's first entry.
    """
    mergers = [
        span
        for size in SPANS[1:]
        for last in range(size, head + 1, size)
        if (span := EntryRange(last - size + 1, last)) not in existing and all(part in existing for part in span.parts)
    ]
    begin = end = uncompacted(max(first, 1))
    staying = [span for span in existing if span.stays]
    while (covering := longest_from(end + 1, staying)) is not None:
        end = covering.last
    size = SPANS[0]
    smallest = [EntryRange(last - size + 1, last) for last in range(end + size, head + 1, size)]
    return (*mergers, *smallest, *_growing(head, {*existing, *mergers, *smallest}, begin))


def _growing(head: int, existing: Collection[EntryRange], begin: int) -> Iterator[EntryRange]:
    """Yield those that have become longer; their predecessors are ``superseded``. Short logs have none."""
    whole = head - head % SPANS[0]
    if whole <= begin:
        return
    middle = max(whole - whole % SPANS[-1], begin)
    for span in (EntryRange(middle + 1, whole), EntryRange(whole + 1, head - head % TAIL)):
        known = longest_from(span.first, existing)
        if span.size > 0 and (known is None or known.last < span.last):
            yield span


def superseded(existing: Collection[EntryRange]) -> frozenset[EntryRange]:
    """Return the compactions that a longer one has replaced. Delete them with the next one that is written.

    Until then a reader whose listing is a little old still finds what it lists.
    """
    longest: dict[int, EntryRange] = {}
    for span in sorted(existing):
        longest[span.first] = span
    return frozenset(span for span in existing if not span.stays and span != longest[span.first])


def encode(entries: Sequence[RawEntry]) -> bytes | None:
    """Return the bytes of a compaction, or None if it would be too large; its parts are used instead.

    Args:
        entries: The entries, without gaps.
    """
    header = _Header(
        format=FORMAT,
        first=entries[0].number,
        last=entries[-1].number,
        sizes=tuple(len(entry.data) for entry in entries),
        stored_at=tuple((entry.stored_at - _EPOCH) // _MICROSECOND for entry in entries),
    )
    data = b"".join((msgspec.json.encode(header), b"\n", *(entry.data for entry in entries)))
    if len(data) > MAX_COMPACTION_BYTES:
        return None
    return gzip.compress(data, compresslevel=6, mtime=0)


def unpack(data: bytes, span: EntryRange) -> Iterator[RawEntry]:
    """Yield the entries of a compaction as bytes. This detects damage; readers that follow the chain detect forgery.

    Raises:
        LogError: It is not a compaction, has another span or a larger major format, or is too large.
    """
    operation = "read the compaction"
    try:
        plain = _inflate(data)
        line, _, rest = plain.partition(b"\n")
        check_format(line, operation, span.key)
        header = decode_json(line, _Header)
    except (ValueError, zlib.error) as error:
        raise LogError(operation, span.key, f"it is not a compaction: {error}") from error
    if (header.first, header.last) != (span.first, span.last):
        raise LogError(operation, span.key, f"it says that it holds entries {header.first} to {header.last}")
    if not len(header.sizes) == len(header.stored_at) == span.size or sum(header.sizes) != len(rest):
        raise LogError(operation, span.key, "its index does not match its content")
    return _slices(rest, header)


def check_chain(entries: Iterable[RawEntry]) -> None:
    """Raise an error unless each entry continues the one before it.

    Raises:
        LogError: One does not, or is not an entry.
    """
    for before, after in pairwise(entry.decode() for entry in entries):
        if after.previous != before.digest:
            raise LogError(
                "compact", f"entry {after.number} of the run log", f"it does not continue entry {before.number}"
            )


class _Header(msgspec.Struct, frozen=True, rename="camel"):
    format: Format
    first: AttemptNumber
    last: AttemptNumber
    sizes: tuple[Size, ...]
    stored_at: tuple[Microseconds, ...]


def _inflate(data: bytes) -> bytes:
    """Decompress into at most the memory that a compaction may take."""
    inflater = zlib.decompressobj(_GZIP)
    plain = inflater.decompress(data, MAX_COMPACTION_BYTES + 1)
    if not inflater.eof or len(plain) > MAX_COMPACTION_BYTES:
        raise ValueError("it is cut off or too large")
    if inflater.unused_data:
        raise ValueError("something follows it")
    return plain


def _slices(rest: bytes, header: _Header) -> Iterator[RawEntry]:
    start = 0
    for offset, (size, microseconds) in enumerate(zip(header.sizes, header.stored_at, strict=True)):
        yield RawEntry(header.first + offset, rest[start : start + size], _EPOCH + microseconds * _MICROSECOND)
        start += size
