"""Deleting the data of one snapshot, in the order that never leaves a manifest without its files."""

from __future__ import annotations

from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.store.base import Store


def delete_save(store: Store, folder: SaveFolder, manifest: Manifest) -> None:
    """Delete exactly the manifest's files, then the manifest. Idempotent.

    The manifest goes last: after a crash in between it still says what is left to delete. For a snapshot, PurgeStarted
    must already be in the log.

    Raises:
        StoreError: Something was not deleted; call again.
    """
    store.delete(f"{folder.path}/{file.name}" for file in manifest.files)
    store.delete([folder.manifest])
