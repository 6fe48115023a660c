"""Reads the index of the files in a snapshot."""

from __future__ import annotations

from checkpoint_sidecar.core.errors import CorruptSnapshotError
from checkpoint_sidecar.core.folder_index import INDEX_NAME, MAX_INDEX_BYTES, FolderIndex, decode
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.verify import read_file
from checkpoint_sidecar.store.base import Store


def read_index(
    store: Store, folder: str, manifest: Manifest, *, level: VerifyLevel, settings: EngineSettings
) -> FolderIndex | None:
    """Return the index of the files in a snapshot, or None if it has none.

    Args:
        folder: ``SaveFolder.path``.

    Raises:
        CorruptSnapshotError: It differs from what was committed.
        IncompatibleSnapshotError: A newer version wrote it, or it names places outside of a folder.
        StoreError: The store failed.
    """
    file = manifest.file(INDEX_NAME)
    if file is None:
        return None
    subject = f"{folder}/{INDEX_NAME}"
    if file.size > MAX_INDEX_BYTES:
        raise CorruptSnapshotError("read the file", subject, f"it has {file.size} bytes", evidence="ManifestMismatch")
    data = read_file(store, folder, manifest, INDEX_NAME, level=level, settings=settings)
    return decode(data, sizes={each.name: each.size for each in manifest.files}, subject=subject)
