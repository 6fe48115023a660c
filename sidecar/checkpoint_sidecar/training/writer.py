"""DCP storage that saves one snapshot: stock files, checksummed, in a fresh folder, committed last."""

from __future__ import annotations

from torch.distributed.checkpoint.storage import StorageWriter

from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.saves import SaveTarget


class SnapshotWriter(StorageWriter):
    """Saves into the folder its target picks and lets the target commit.

    Args:
        store: Opened at the run's root.
        target: Admits and commits the save; needed on the coordinator rank only.
    """

    def __init__(self, store: Store, target: SaveTarget | None) -> None:
        self._store = store
        self._target = target

    def discard(self) -> None:
        """Delete what this rank uploaded for a save that failed. Call it on every rank after DCP raised."""
        raise NotImplementedError
