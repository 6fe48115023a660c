"""Deleting the data of one snapshot, in the order that never leaves a manifest without its files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.store.base import Store


def delete_save(
    store: Store,
    folder: SaveFolder,
    manifest: Manifest | None,
    *,
    keep: Collection[str] = (),
    delete: Callable[[Iterable[str]], None] | None = None,
) -> None:
    """Delete exactly the manifest's files in this folder, then the manifest. Idempotent.

    The manifest goes last: after a crash in between it still says what is left to delete. For a snapshot, PurgeStarted
    must already be in the log.

    Args:
        manifest: None when it is gone (an earlier call was nearly done) or cannot be used. A save's folder is never
            shared by two saves, so then all files of saves in it belong to the snapshot.
        keep: Names of files that other snapshots share.
        delete: How to delete keys; by default as fast as the store can.

    Raises:
        StoreError: Something was not deleted; call again.
    """
    if manifest is not None:
        names = [file.name for file in manifest.files if not file.shared_in]
    else:
        listed = (info.key.removeprefix(f"{folder.path}/") for info in store.list(f"{folder.path}/"))
        names = [name for name in listed if layout.is_save_file(name) and name != layout.MANIFEST_NAME]
    delete = delete or store.delete
    delete([f"{folder.path}/{name}" for name in names if name not in keep])
    delete([folder.manifest])
