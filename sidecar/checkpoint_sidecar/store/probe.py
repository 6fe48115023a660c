"""Does this store keep what commits rest on? Asked once, with real requests, before anything is entrusted to it."""

from __future__ import annotations

import contextlib
import secrets

from checkpoint_sidecar.core.errors import NoConditionalWriteError, ObjectExistsError, StoreError
from checkpoint_sidecar.core.layout import PROBE_FOLDER
from checkpoint_sidecar.store.base import Store

_OPERATION = "try out the store"


def probe(store: Store) -> None:
    """Create an object, try to create it again, read, list and delete it.

    Raises:
        NoConditionalWriteError: The second creation succeeded: two writers could commit under one number.
        AccessDeniedError: Credentials are missing, wrong, or do not allow one of the verbs; the message names it.
        BucketNotFoundError: There is no such bucket.
        StoreError: The store failed, or does not return what was written.
    """
    key = f"{PROBE_FOLDER}{secrets.token_hex(8)}"
    first, second = b"first " + secrets.token_bytes(16), b"second " + secrets.token_bytes(16)
    store.put_if_absent(key, first)
    try:
        _try_out(store, key, first, second)
    except BaseException:
        with contextlib.suppress(StoreError):
            store.delete([key])
        raise
    store.delete([key])


def _try_out(store: Store, key: str, first: bytes, second: bytes) -> None:
    where = f"{store.url}/{key}"
    with contextlib.suppress(ObjectExistsError):
        store.put_if_absent(key, second)
    held = store.get(key, max_bytes=1024).data
    if held == second:
        raise NoConditionalWriteError(
            _OPERATION,
            where,
            "creating an object that exists replaced it",
            "Use a store that honours If-None-Match on PUT.",
        )
    if held != first:
        raise StoreError(_OPERATION, where, "it returned something else than was written", "Do not use this store.")
    if [info.key for info in store.list(key)] != [key]:
        raise StoreError(_OPERATION, where, "a listing lacks an object just written", "Do not use this store.")
