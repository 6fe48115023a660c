"""A DCP checkpoint directory as a run of its own: how a drop-in save begins, commits and cleans up.

``dcp.save(checkpoint_id=...)`` means "this directory holds this checkpoint". Each save is therefore an attempt that
replaces the directory's only checkpoint, recorded in a log inside the directory. No operator collects garbage there,
so each save also deletes the checkpoints that earlier ones replaced: between saves the directory holds at most two.
"""

from __future__ import annotations

import contextlib
import logging

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core import attempt as attempts
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.belongings import Belongings, belongings
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    CorruptSnapshotError,
    ForeignObjectError,
    LogError,
    StoreError,
)
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    Owner,
    PurgeStarted,
    RunClaimed,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotRetired,
    SnapshotVerified,
)
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.overwrite import existing_save
from checkpoint_sidecar.core.policy import OverwritePolicy
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.engine.pointer import publish, repair
from checkpoint_sidecar.engine.verify import check_sizes, read_manifest
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.runs.purge import delete_save
from checkpoint_sidecar.store.base import RestsOnFilesystem, Store

logger = logging.getLogger(__name__)

STEP = 0
"""The step of every save: a directory has no steps."""
WRITER = "checkpoint_sidecar drop-in"


class DirectorySave:
    """The save target of one drop-in save.

    Args:
        store: Opened at the checkpoint directory.
        overwrite: Whether to replace an existing checkpoint.
        world_size: Number of ranks that save.
    """

    def __init__(self, store: Store, *, overwrite: bool, world_size: int) -> None:
        self._store = store
        self._overwrite = overwrite
        self._world_size = world_size
        self._log = RunLog(store, writer=WRITER)
        self._owner = Owner("local", "local", store.url.rpartition("/")[2][-253:])

    def begin(self) -> NewSave:
        """Fence earlier saves of the directory and delete what they left behind.

        Raises:
            CheckpointExistsError: There is a checkpoint, and ``overwrite`` is False.
            PrefixClaimedError: The directory is the root of another run.
            NoConditionalWriteError, BrokenPromiseError: The filesystem cannot hold a checkpoint.
        """
        if not self._overwrite and not self._log.refresh().ever_committed and self._stock_checkpoint_exists():
            raise self._exists("a checkpoint that torch wrote")
        if isinstance(self._store, RestsOnFilesystem):
            probe(self._store)
        self._log.append(self._claim)
        if not self._log.run.identified:
            self._log.append(self._identify)
        started = self._log.append(self._start)
        assert started is not None
        assert isinstance(started.body, AttemptStarted)
        number = started.body.attempt
        try:
            self._clear(number)
        except (StoreError, LogError) as error:
            logger.warning("replaced checkpoints stay until the next save: %s", error)
        return NewSave(SaveFolder(None, number, layout.new_nonce(), self._log.run.short_identity), STEP)

    def commit(self, save: NewSave, manifest: Manifest, digest: str) -> None:
        """Commit, check the sizes of the stored files, publish the checkpoint for torch's reader, retire older ones.

        Raises:
            CheckpointExistsError, FencedError: Another save of the directory started or won meanwhile.
            CorruptSnapshotError: The store lost or cut a file; the previous checkpoint is unchanged.
        """
        draft = SnapshotCommitted(
            snapshot=save.snapshot,
            step=save.step,
            attempt=save.folder.attempt,
            path=save.folder.path,
            manifest_digest=digest,
            bytes=manifest.size,
            files=len(manifest.files),
            world_size=manifest.world_size,
        )
        policy: OverwritePolicy = "Replace" if self._overwrite else "Never"
        self._log.append(lambda run: attempts.commit(run, draft, overwrite=policy))
        try:
            self._verify(save, manifest)
            self._publish()
            for other in self._log.run.snapshots.values():
                if other.live and other.id != save.snapshot:
                    self._retire(other.id, "Replaced")
        except (StoreError, LogError, ForeignObjectError) as error:
            logger.warning("the checkpoint is committed, but torch's own reader may find the one before: %s", error)
            self._publish_unchecked()

    def abandon(self, save: NewSave) -> None:
        """Do nothing: the next save deletes what this one left behind."""

    def _stock_checkpoint_exists(self) -> bool:
        return self._store.stat(layout.METADATA_NAME) is not None

    def _exists(self, what: str) -> CheckpointExistsError:
        return CheckpointExistsError(
            "save", self._store.url, f"Checkpoint already exists: {what}", "Save elsewhere, or with overwrite=True."
        )

    def _claim(self, run: Run) -> RunClaimed | None:
        return attempts.claim(run, self._owner, url=self._store.url)

    def _identify(self, run: Run) -> SavesIdentified | None:
        attempts.check_owner(run, self._owner, url=self._store.url)
        return attempts.identify(run)

    def _publish(self) -> None:
        publish(self._store, self._log, None, replace_foreign=self._overwrite)

    def _start(self, run: Run) -> AttemptStarted:
        attempts.check_owner(run, self._owner, url=self._store.url)
        existing = existing_save(run, run.newest or "", STEP)
        if existing is not None and not self._overwrite:
            raise self._exists(f"snapshot {existing.id}")
        return attempts.start_over(run, world_size=self._world_size)

    def _verify(self, save: NewSave, manifest: Manifest) -> None:
        try:
            check_sizes(self._store, save.folder.path, manifest.files)
        except CorruptSnapshotError as error:
            found = SnapshotVerified(
                save.snapshot, "Sizes", passed=False, evidence=error.evidence, message=str(error)[:1024]
            )
            self._log.append(lambda _: found)
            # No reader may choose it: ours follows the log, torch's the pointer, which was not moved.
            self._retire(save.snapshot, "Damaged")
            raise
        self._log.append(lambda _: SnapshotVerified(save.snapshot, "Sizes", passed=True))

    def _publish_unchecked(self) -> None:
        """Let both readers choose the same snapshot, although its files could not be checked; older ones stay."""
        try:
            self._publish()
        except (CorruptSnapshotError, StoreError, LogError) as error:
            logger.warning("the pointer for torch's own reader is not up to date: %s", error)

    def _retire(self, snapshot: str, reason: str) -> None:
        self._log.append(lambda run: SnapshotRetired(snapshot, (reason,)) if run.snapshots[snapshot].live else None)

    def _clear(self, attempt: int) -> None:
        """Purge the snapshots that earlier saves retired, and delete files that they uploaded and never committed."""
        if attempt == 1:
            return  # there was no earlier save
        for snapshot in self._log.run.snapshots.values():
            if snapshot.state in (SnapshotState.RETIRED, SnapshotState.PURGING):
                self._purge(snapshot)
        # The log is read after the listing, or a save that another process commits now would look unfinished.
        keys = [info.key for info in self._store.list()]
        ours = belongings(self._log.refresh(), keys)
        if leftovers := [key for key in keys if _is_leftover(key, ours, below_attempt=attempt)]:
            self._store.delete(leftovers)

    def _purge(self, snapshot: Snapshot) -> None:
        manifest: Manifest | None = None
        try:
            manifest = read_manifest(self._store, snapshot.commit)
        except CorruptSnapshotError as error:
            # A purge deletes the manifest last: if it is missing, an earlier purge nearly finished.
            if error.evidence != "MissingObject":
                logger.warning("a replaced checkpoint stays, because its manifest is damaged: %s", error)
                return
        self._log.append(
            lambda run: PurgeStarted(snapshot.id) if run.snapshots[snapshot.id].state is SnapshotState.RETIRED else None
        )
        with contextlib.suppress(ForeignObjectError):
            repair(self._store, self._log, None)
        delete_save(self._store, layout.parse_save_folder(snapshot.commit.path), manifest)
        self._log.append(lambda _: SnapshotPurged(snapshot.id, manifest.size if manifest else 0))


def _is_leftover(key: str, ours: Belongings, *, below_attempt: int) -> bool:
    """Whether an object belongs to a save that an earlier attempt left unfinished and can no longer commit."""
    folder = ours.save_of(key)
    if folder is None or folder.step is not None or folder.attempt >= below_attempt:
        return False
    return folder.path not in ours.held
