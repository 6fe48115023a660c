"""Checks with real requests that a store keeps what commits rest on, before anything is entrusted to it."""

from __future__ import annotations

import secrets

from checkpoint_sidecar.conformance.promises import probed
from checkpoint_sidecar.conformance.suite import BrokenPromiseError, Trial, cleaned
from checkpoint_sidecar.core.errors import NoConditionalWriteError, ObjectNotFoundError
from checkpoint_sidecar.core.layout import PROBE_FOLDER
from checkpoint_sidecar.store.base import RestsOnFilesystem, Store


def probe(store: Store) -> None:
    """Run those checks of the conformance suite that cost little, all verbs among them; leaves nothing behind.

    A store that fails them is tried a second time: the deletion of a run at the same prefix takes trial objects along.

    Raises:
        NoConditionalWriteError: A second creation succeeded: two writers could commit under one number.
        AccessDeniedError: Credentials are missing, wrong, or do not allow one of the verbs; the message names it.
        BucketNotFoundError: The bucket does not exist.
        BrokenPromiseError: The store does not return or list what was written.
        StoreError: The store failed.
    """
    # Some stores (SeaweedFS, for one) create a missing bucket on the first write: ask before anything is written.
    next(iter(store.list(PROBE_FOLDER)), None)
    try:
        _try_out(store)
    except (NoConditionalWriteError, BrokenPromiseError, ObjectNotFoundError):
        _try_out(store)


def _try_out(store: Store) -> None:
    # Another client, because a lock in this one would hide that its creates are not atomic.
    other = store.another_client() if isinstance(store, RestsOnFilesystem) else store
    trial = Trial(store, other, f"{PROBE_FOLDER}{secrets.token_hex(8)}/")
    with cleaned(trial):
        for check in probed(store):
            check.run(trial)
