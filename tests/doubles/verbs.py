"""Every kind of request that a store makes, for tests of behavior that they share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from checkpoint_sidecar.store.base import KeepsUnfinished, Store, UnfinishedUpload
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from support.s3servers import SMALLEST_PART


def _discard(store: Store) -> None:
    assert isinstance(store, KeepsUnfinished)
    store.discard(UnfinishedUpload("key", "id", dt.datetime.now(dt.UTC)))


def _unfinished(store: Store) -> None:
    assert isinstance(store, KeepsUnfinished)
    list(store.unfinished())


REQUESTS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("key", max_bytes=100),
    "stat": lambda store: store.stat("key"),
    "list": lambda store: list(store.list()),
    "put": lambda store: store.put("key", b"data"),
    "create": lambda store: store.put_if_absent("key", b"data"),
    "delete": lambda store: store.delete(["key", "other"]),
    "read_into": lambda store: read_range(store, "key", 0, 10),
    "upload": lambda store: write_object(store, "key", b"data"),
    "upload in parts": lambda store: write_object(store, "key", bytes(SMALLEST_PART + 1)),
}

OF_UNFINISHED_UPLOADS: dict[str, Callable[[Store], object]] = {"unfinished": _unfinished, "discard": _discard}
"""Only S3 is asked for these."""
