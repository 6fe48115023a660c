"""The interface between DCP storage and the code that admits and commits its saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.policy import UnchangedPolicy


@dataclass(frozen=True, slots=True)
class NewSave:
    """A save that was admitted and may upload.

    Attributes:
        folder: A new folder that only this save writes.
        step: Optimizer step of the state.
        unchanged: What to do with tensors that have not changed; see ``SavePolicy``.
        copy_from: Folder of the snapshot that this one descends from, whose files may be copied or shared. Empty if
            there is none, something is known against it, or everything is to be sent.
        copied_bytes: Bytes of all files that the store copied; known at the commit.
    """

    folder: SaveFolder
    step: int
    unchanged: UnchangedPolicy = "Send"
    copy_from: str = ""
    copied_bytes: int = 0

    @property
    def snapshot(self) -> str:
        """Id of the snapshot that a commit makes of it."""
        return layout.snapshot_id(self.step, self.folder.attempt, self.folder.nonce)


class SaveTarget(Protocol):
    """Decides whether and where a save goes, and commits it.

    Called on the coordinator rank only, by ``SnapshotWriter``, in the thread or process in which DCP saves. For
    ``async_save`` in a process, it is pickled with the writer.
    """

    def begin(self) -> NewSave:
        """Admit the save and choose a new folder, before anything is uploaded.

        Raises:
            CheckpointExistsError, FencedError: The save is refused. Every rank then fails with this error.
        """

    def commit(self, save: NewSave, manifest: Manifest, digest: str) -> None:
        """Commit the save as a snapshot, after all its files and its manifest are stored.

        Args:
            digest: SHA-256 of the manifest.

        Raises:
            CheckpointExistsError, FencedError, PrefixClaimedError: The save is certainly not committed; the writer
                deletes its files. Raise these in no other case.
            CheckpointError: Any other failure: the save may be committed, and the files stay.
        """

    def abandon(self, save: NewSave) -> None:
        """Handle the failure of a rank before ``commit``. Called at most once per save; must not raise."""
