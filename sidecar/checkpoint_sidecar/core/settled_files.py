"""The list of its tensors at the end of a settled file, behind the last archive, where no reader of tensors looks.

A process that has restored a snapshot learns from it what the snapshot's files hold: which tensors, in which order, and
the digest of each. The next save compares the digests with those of the tensors in memory.

The list is JSON, followed by its length as a big-endian 32-bit number and by ``MARK``.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from checkpoint_sidecar.core.layout import settled_place
from checkpoint_sidecar.core.unchanged import SettledFile, SettledPart
from checkpoint_sidecar.core.wire import Count, UndecodableError, decode_json

MARK = b"settled1"
FOOTER_BYTES = 4 + len(MARK)
MOST_BYTES = 64 * 1024 * 1024
"""Maximum length of a list that is read."""


class _Row(msgspec.Struct, frozen=True, array_like=True):
    name: str
    offsets: tuple[Count, ...]
    size: Count
    digest: bytes


def encode(parts: Iterable[SettledPart]) -> bytes:
    """Return the end of a settled file. Equal tensors give equal bytes."""
    rows = [_Row(*each.part, each.size, each.digest) for each in parts]
    data = msgspec.json.encode(rows)
    return data + len(data).to_bytes(4, "big") + MARK


def length(end: bytes) -> int | None:
    """Return the length of the list, without its footer; None if the file has none.

    Args:
        end: The last bytes of a file.
    """
    footer = end[-FOOTER_BYTES:]
    size = int.from_bytes(footer[:4], "big")
    return size if footer[4:] == MARK and size <= MOST_BYTES else None


def list_in(end: bytes) -> bytes:
    """Return the list in the last bytes of a file; empty if there is none, or not all of it."""
    size = length(end)
    return end[-FOOTER_BYTES - size : -FOOTER_BYTES] if size and size + FOOTER_BYTES <= len(end) else b""


def decode(name: str, data: bytes, file_bytes: int) -> SettledFile | None:
    """Return a settled file; None if the list does not describe a file of this size.

    Args:
        name: The file's.
        data: Its list, without the footer.
        file_bytes: Size of the whole file.
    """
    try:
        rows = decode_json(data, tuple[_Row, ...])
    except UndecodableError:
        return None
    parts = tuple(SettledPart((row.name, row.offsets), row.size, row.digest) for row in rows)
    file = SettledFile(name, parts)
    distinct = len({each.part for each in parts}) == len(parts)
    return file if parts and distinct and file.size + len(data) + FOOTER_BYTES == file_bytes else None


def rank_of(name: str) -> int | None:
    """Return the rank whose settled file has this name; None for other files."""
    place = settled_place(name)
    return place[0] if place else None
