"""Makes a snapshot of the files that all ranks have written for a checkpoint, and commits it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

from torch.distributed.checkpoint.metadata import Metadata

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.attempt.save_target import Draft, RunTarget
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core import folder_index, layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import CheckpointExistsError
from checkpoint_sidecar.core.folder_index import INDEX_NAME, FolderIndex, IndexEntry
from checkpoint_sidecar.core.manifest import FILES_FORMAT, Manifest
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.engine.upload import upload_bytes
from checkpoint_sidecar.integrations.torch_checkpointing.written import BLOCK_BYTES, Receipt
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.training.dcp.metadata_pickle import metadata_bytes


@dataclass(frozen=True)
class FilesCommit:
    """The commit of one save.

    Attributes:
        save: Its folder has the files already.
        world_size: How many ranks have written them.
        began: ``time.monotonic()`` when the commit began.
    """

    session: AttemptSession
    save: NewSave
    world_size: int
    began: float

    def run(self, receipts: Iterable[Receipt]) -> None:
        """Store the manifest, and append the commit to the run's log.

        Args:
            receipts: What was written.

        Raises:
            CheckpointExistsError: The step is saved, or may still be. This save is certainly not committed.
            FencedError: A later attempt has started.
        """
        target = RunTarget(self.session, Draft(self.save.step, "Manual", began=self.began))
        self.session.log.refresh()
        self.session.admit(self.save.step, "Manual")
        self._check_new()
        manifest = self._manifest(sorted(receipts, key=lambda each: each.path))
        encoded = manifests.encode(manifest)
        write_object(self._store, self.save.folder.manifest, encoded)
        target.commit(self.save, manifest, manifests.digest(encoded))

    @property
    def _store(self) -> Store:
        return self.session.store

    def _check_new(self) -> None:
        """Refuse to write a manifest twice: a commit of the first one may be under way, and names its digest."""
        if self._store.stat(self.save.folder.manifest) is not None:
            cause = "an earlier save of the step may still be committed"
            raise CheckpointExistsError("save", f"step {self.save.step}", cause, "Save another step.")

    def _manifest(self, receipts: list[Receipt]) -> Manifest:
        entries = (
            IndexEntry(each.path, size=each.file.size, object=each.file.name if each.file.size else "")
            for each in receipts
        )
        # Also DCP's metadata of a snapshot without tensors, which every reader of snapshots expects.
        metadata = metadata_bytes(Metadata({}), None)
        derived = {
            INDEX_NAME: folder_index.encode(FolderIndex((tuple(range(self.world_size)),), tuple(entries))),
            layout.METADATA_NAME: metadata,
            layout.STOCK_METADATA_NAME: metadata + Origin(self.save.folder.run, self.save.snapshot).encode(),
        }
        files = [each.file for each in receipts]
        for name, data in derived.items():
            files.append(upload_bytes(self._store, f"{self.save.folder.path}/{name}", data, block_bytes=BLOCK_BYTES))
        return Manifest(
            snapshot=self.save.snapshot,
            step=self.save.step,
            attempt=self.save.folder.attempt,
            world_size=self.world_size,
            files=tuple(sorted(files, key=lambda file: file.name)),
            versions={each: version(each) for each in ("torch", "torch-checkpointing", "checkpoint-operator")},
            block_bytes=BLOCK_BYTES,
            format=FILES_FORMAT,
        )
