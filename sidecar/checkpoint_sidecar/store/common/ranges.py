"""Reading ranges of bytes."""

from __future__ import annotations

from checkpoint_sidecar.store.base import Store


def read_range(store: Store, key: str, start: int, length: int) -> bytes:
    """Exactly ``length`` bytes from offset ``start``, which are in memory twice for a moment.

    Raises:
        ObjectNotFoundError: No such key.
        TruncatedObjectError: The object ends earlier.
        StoreError: The store failed.
    """
    data = bytearray(length)
    store.read_into(key, start, [memoryview(data)])
    return bytes(data)
