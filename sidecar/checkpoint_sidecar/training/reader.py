"""DCP storage that loads one snapshot, verified."""

from __future__ import annotations

from typing import Literal

from torch.distributed.checkpoint.storage import StorageReader

from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.store.base import Store

Trust = Literal["safe", "full"]


class SnapshotReader(StorageReader):
    """Loads from one save folder.

    Args:
        store: Opened at the run's root.
        folder_path: The save's folder, ``SaveFolder.path``.
        manifest: The committed manifest; None reads a stock checkpoint, which cannot be verified.
        verify: How far stored bytes are checked before they are used.
        trust: ``safe`` unpickles DCP's classes and what ``torch.load(weights_only=True)`` allows; ``full`` anything.

    Raises (from DCP, wrapped; see ``failures.raising_ours``):
        CorruptSnapshotError: Stored bytes are not what was committed; ``evidence`` says how.
        IncompatibleSnapshotError: The snapshot does not fit the state dict.
        UntrustedSnapshotError: It holds a class that ``trust="safe"`` refuses.
    """

    def __init__(
        self,
        store: Store,
        folder_path: str,
        manifest: Manifest | None,
        *,
        verify: VerifyLevel = "Checksums",
        trust: Trust = "safe",
    ) -> None:
        self._store = store
        self._folder_path = folder_path
        self._manifest = manifest
        self._verify = verify
        self._trust = trust
