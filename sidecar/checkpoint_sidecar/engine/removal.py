"""Deletes the data of one snapshot. PurgeStarted must be in the log, or the run given up. Everything blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.runs.purge import delete_save
from checkpoint_sidecar.store.base import Store


def delete_data(
    store: Store,
    commit: SnapshotCommitted,
    *,
    keep: Collection[str] = (),
    delete: Callable[[Iterable[str]], None] | None = None,
) -> None:
    """Delete exactly the objects that a snapshot has stored by its manifest, and the manifest last. Idempotent.

    Args:
        keep: Names of files that other snapshots share.
        delete: How to delete keys; by default as fast as the store can.

    Raises:
        StoreError: Something was not deleted; call again.
    """
    try:
        manifest = read_manifest(store, commit)
    except (CorruptSnapshotError, IncompatibleSnapshotError):
        manifest = None
    delete_save(store, layout.parse_save_folder(commit.path), manifest, keep=keep, delete=delete)
