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
    index = index_in(metadata)
    return metadata if index is None else bytes(memoryview(metadata)[-len(index) - _TRAILER_BYTES :])


def index_in(metadata: bytes) -> memoryview | None:
    """Return the index in ``.metadata``, or in the end of it; None if it has none."""
    view = memoryview(metadata)
    if len(view) < _TRAILER_BYTES or view[-len(MARK) :] != MARK:
        return None
    end = len(view) - _TRAILER_BYTES
    length = int.from_bytes(view[end : end + _LENGTH_BYTES], "little")
    return view[end - length : end] if length <= end else None
