"""What a save is to DCP storage, and who decides about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import Manifest


@dataclass(frozen=True, slots=True)
class NewSave:
    """A save that was admitted and may upload.

    Attributes:
        folder: Fresh; nobody else writes there, and it is never written again.
        step: Optimizer step the state belongs to.
    """

    folder: SaveFolder
    step: int

    @property
    def snapshot(self) -> str:
        """Id of the snapshot it becomes when it is committed."""
        return layout.snapshot_id(self.step, self.folder.attempt, self.folder.nonce)


class SaveTarget(Protocol):
    """Decides whether and where a save goes, and commits it.

    Called on the coordinator rank only, by ``SnapshotWriter``, from whatever thread or process DCP saves in. For
    ``async_save`` in a process it is pickled together with the writer.
    """

    def begin(self) -> NewSave:
        """Admit the save and pick a fresh folder, before anything is uploaded.

        Raises:
            CheckpointExistsError, FencedError: It may not happen. Every rank then fails with this error.
        """

    def commit(self, save: NewSave, manifest: Manifest, digest: str) -> None:
        """Make it a snapshot. All its files and its manifest are stored; ``digest`` is the manifest's SHA-256.

        Raises:
            CheckpointExistsError, FencedError, PrefixClaimedError: It certainly was not committed; the writer deletes
                the save's files. Raise these for nothing else.
            CheckpointError: Anything else: it may be committed, and the files stay.
        """

    def abandon(self, save: NewSave) -> None:
        """Some rank failed before ``commit`` was tried. Called at most once per save; must not raise."""
