"""Reads ranges of bytes, and raises every adapter's errors about sizes."""

from __future__ import annotations

from checkpoint_sidecar.core.errors import ObjectTooLargeError, TruncatedObjectError
from checkpoint_sidecar.store.base import Store


def read_range(store: Store, key: str, start: int, length: int) -> bytes:
    """Read exactly ``length`` bytes from offset ``start``; they are in memory twice for a moment.

    Raises:
        ObjectNotFoundError: The key does not exist.
        TruncatedObjectError: The object ends earlier.
        StoreError: The store failed.
    """
    data = bytearray(length)
    store.read_into(key, start, [memoryview(data)])
    return bytes(data)


def check_fits(size: int, max_bytes: int, subject: str) -> None:
    """Refuse to read an object that is larger than the caller wants in memory.

    Raises:
        ObjectTooLargeError: ``size`` is above ``max_bytes``.
    """
    if size > max_bytes:
        raise ObjectTooLargeError("read", subject, f"it has {size} bytes, more than {max_bytes}")


def truncated(length: int, start: int, subject: str) -> TruncatedObjectError:
    """Return the error for an object that ends before the end of a range."""
    cause = f"only part of the {length} bytes at offset {start} exists"
    return TruncatedObjectError("read a range of", subject, cause)
