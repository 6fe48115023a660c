"""Makes a snapshot of the files that all ranks have written for a checkpoint, and commits it."""

from __future__ import annotations

import errno
import time
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
from checkpoint_sidecar.integrations.torch_checkpointing.attempt import SharedAttempt
from checkpoint_sidecar.integrations.torch_checkpointing.written import BLOCK_BYTES, Receipt, WrittenFiles
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.training.dcp.metadata_pickle import metadata_bytes


@dataclass(frozen=True)
class FilesCommit:
    """Commits saves of one attempt.

    Attributes:
        written: What all ranks have stored already.
    """

    session: AttemptSession
    attempt: SharedAttempt
    written: WrittenFiles

    def run(self, step: int) -> None:
        """Store the manifest of a step's files, append the commit to the run's log, and delete the receipts.

        Raises:
            FileNotFoundError: Nothing was written.
            FileExistsError: The step is saved, or may still be. What was written is certainly not committed, and is
                deleted.
            FencedError: A later attempt has started.
        """
        name, began = f"step-{step}", time.monotonic()
        save = NewSave(self.attempt.folder(step), step)
        receipts = self.written.of_all_ranks(step)
        if not receipts:
            raise FileNotFoundError(errno.ENOENT, "nothing was written for the checkpoint", name)
        try:
            self._admit(save)
            manifest = self._manifest(save, sorted(receipts.values(), key=lambda each: each.path))
            self._commit(save, manifest, began)
        except CheckpointExistsError as error:
            self.written.delete(self.written.removable(step, receipts))
            raise FileExistsError(errno.ENOTEMPTY, f"refusing to replace a checkpoint: {error}", name) from error
        self.written.delete(receipts)

    def _admit(self, save: NewSave) -> None:
        self.session.log.refresh()
        self.session.admit(save.step, "Manual")
        # A manifest is never written twice: a commit of the first one may be under way, and names its digest.
        if self.session.store.stat(save.folder.manifest) is not None:
            cause = "an earlier save of the step may still be committed"
            raise CheckpointExistsError("save", f"step {save.step}", cause, "Save another step.")

    def _commit(self, save: NewSave, manifest: Manifest, began: float) -> None:
        encoded = manifests.encode(manifest)
        write_object(self.session.store, save.folder.manifest, encoded)
        target = RunTarget(self.session, Draft(save.step, "Manual", began=began))
        failure: Exception | None = None
        try:
            target.commit(save, manifest, manifests.digest(encoded))
        except Exception as error:  # noqa: BLE001 - the log says whether the commit was made
            failure, _ = target.settle(error)
        if failure is not None:
            raise failure

    def _manifest(self, save: NewSave, receipts: list[Receipt]) -> Manifest:
        entries = (
            IndexEntry(each.path, size=each.file.size, object=each.file.name if each.file.size else "")
            for each in receipts
        )
        # Also DCP's metadata of a snapshot without tensors, which every reader of snapshots expects.
        metadata = metadata_bytes(Metadata({}), None)
        derived = {
            INDEX_NAME: folder_index.encode(FolderIndex((tuple(range(self.attempt.world_size)),), tuple(entries))),
            layout.METADATA_NAME: metadata,
            layout.STOCK_METADATA_NAME: metadata + Origin(save.folder.run, save.snapshot).encode(),
        }
        files = [each.file for each in receipts]
        for name, data in derived.items():
            files.append(upload_bytes(self.session.store, f"{save.folder.path}/{name}", data, block_bytes=BLOCK_BYTES))
        return Manifest(
            snapshot=save.snapshot,
            step=save.step,
            attempt=save.folder.attempt,
            world_size=self.attempt.world_size,
            files=tuple(sorted(files, key=lambda file: file.name)),
            versions={each: version(each) for each in ("torch", "torch-checkpointing", "checkpoint-operator")},
            block_bytes=BLOCK_BYTES,
            format=FILES_FORMAT,
        )
