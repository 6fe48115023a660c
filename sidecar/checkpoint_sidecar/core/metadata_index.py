"""The index behind the pickle in ``.metadata``: the same contents for our own reader, in a hundredth of the bytes.

Torch's reader stops at the end of the pickle. Our own looks at the end of the file first.
"""

from __future__ import annotations

MARK = b"CKPTIDX1"
_LENGTH_BYTES = 8
_TRAILER_BYTES = _LENGTH_BYTES + len(MARK)


def with_index(pickled: bytes, index: bytes) -> bytes:
    """Return ``.metadata``: a pickle, an index, its length and a mark."""
    return b"".join([pickled, index, len(index).to_bytes(_LENGTH_BYTES, "little"), MARK])


def without_pickle(metadata: bytes) -> bytes:
    """Return what a reader needs of ``.metadata``: its end with the index, or all of it if it has none."""
    length = end_length(metadata)
    return metadata if length is None or length > len(metadata) else metadata[-length:]


def index_in(metadata: bytes) -> memoryview | None:
    """Return the index in ``.metadata``, or in the end of it; None if it has none."""
    length = end_length(metadata)
    if length is None or length > len(metadata):
        return None
    return memoryview(metadata)[-length:-_TRAILER_BYTES]


def end_length(end: bytes) -> int | None:
    """Return how many bytes the index takes at the end of ``.metadata``, with what follows it; None if it has none.

    Args:
        end: At least the last 16 bytes of the file, or all of them.
    """
    if len(end) < _TRAILER_BYTES or not end.endswith(MARK):
        return None
    return int.from_bytes(end[-_TRAILER_BYTES : -len(MARK)], "little") + _TRAILER_BYTES
