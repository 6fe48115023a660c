"""One save at a time per rank: copied to host memory at once, uploaded and committed in the background.

The background is a thread that ends with its save. A process waits for it before it exits. A process that must exit
sooner cancels the save, which aborts its uploads and deletes its files.

Ranks synchronize twice. In ``Checkpointer`` they agree that all of them have staged the state and started their
threads; only then do the threads enter DCP's collectives. There, a failure of one rank is raised on all of them, and a
rank that fails outside DCP's error handling closes its connections, so that no other rank waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn import Module

from checkpoint_sidecar.attempt.save_target import RunTarget, SaveNotNeeded
from checkpoint_sidecar.core.errors import CheckpointError, RankLostError, SaveStalledError
from checkpoint_sidecar.core.failures import described, portable
from checkpoint_sidecar.core.schedule import RESERVE_SECONDS
from checkpoint_sidecar.core.termination import CLEANUP_SECONDS
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.unchanged import UnchangedFiles
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training import exits
from checkpoint_sidecar.training.agreement import Agreement, rank_lost
from checkpoint_sidecar.training.dcp.errors import unwrap
from checkpoint_sidecar.training.dcp.replicas import buffers_among
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner, History
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from checkpoint_sidecar.training.folders import FolderSave, RunFolder
from checkpoint_sidecar.training.staging import HostCopy
from checkpoint_sidecar.training.state.frozen import frozen_among
from checkpoint_sidecar.training.transfers import Transfers
from checkpoint_sidecar.training.vote import Stop

logger = logging.getLogger(__name__)

CANCELLED_SECONDS = 10.0
"""How long the exit of the interpreter waits for a cancelled save; one that hangs in a request is abandoned."""

_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    """How a save ended on one rank.

    Attributes:
        error: The reason for a failure, or None.
        committed: Whether the snapshot is certainly in the log; only rank 0 checks.
        broken: Whether the rank left a collective before its end, so that all ranks need a new group.
        step: The saved step; None if no save has ended.
    """

    error: Exception | None = None
    committed: bool = False
    broken: bool = False
    step: int | None = None


class BackgroundSave:
    """Uploads staged state dicts. Call all methods from the training thread.

    Args:
        agreement: A group for the background thread alone, so that its collectives never mix with those of training.
        transfers: Shows running saves.
        settings: Limits of the transfer.
        stop: Returns the rest of the grace period, if this process was asked to terminate.
        folder: A trainer's folder, whose files are saved too.
    """

    def __init__(
        self,
        store: Store,
        agreement: Agreement,
        transfers: Transfers,
        settings: EngineSettings,
        *,
        stop: Callable[[], Stop | None],
        folder: RunFolder | None = None,
    ) -> None:
        self._store = store
        self._agreement = agreement
        self._transfers = transfers
        self._settings = settings
        self._stop = stop
        self.stall_seconds = settings.stall_seconds
        self._copy = HostCopy()
        self._compared = History()
        self._buffers: dict[str, set[str]] = {}
        self._frozen: set[str] = set()
        self.unchanged = UnchangedFiles()
        self._folder = folder
        self._files: FolderSave | None = None
        self._save: _Save | None = None
        self.debt: Exception | None = None
        self.last_seconds: float | None = None

    @property
    def running(self) -> bool:
        return self._save is not None and self._save.running

    @property
    def failed(self) -> bool:
        """Whether a save has failed whose outcome was not taken yet."""
        return self._save is not None and not self._save.running and self._save.outcome.error is not None

    @property
    def quiet_seconds(self) -> float:
        """Seconds since the running save was last seen to transfer a byte."""
        return self._save.quiet_seconds() if self._save is not None and self._save.running else 0.0

    def stage(self, state: dict[str, Any], modules: Mapping[str, Module]) -> dict[str, Any]:
        """Copy the state to host memory, into the buffers of the previous save, which must have ended; stage the files.

        Args:
            modules: The modules whose state dicts are part of the state, by name.
        """
        self._buffers = {name: buffers_among(module, state[name], prefix=name) for name, module in modules.items()}
        self._frozen = {each for name, module in modules.items() for each in frozen_among(module, state[name], name)}
        staged = self._copy(state)
        self._files = self._folder.stage() if self._folder else None
        return staged

    def prepare(self, staged: dict[str, Any], *, step: int, target: RunTarget | None, began: float) -> None:
        """Do everything that can fail before the upload, including the start of the thread.

        Args:
            target: The save target on rank 0; None on the others.
            began: ``time.monotonic()`` when the save began.
        """
        progress = TransferMeter()
        writer = SnapshotWriter(self._store, target, progress=progress, settings=self._settings)
        writer.pauses_collection = True
        writer.unchanged, writer.frozen = self.unchanged, self._frozen
        planner = BalancedSavePlanner(buffers=self._buffers, history=self._compared)
        prepared = _Save(staged, step, target, began, writer, planner, progress, self._agreement, self._transfers)
        if self._folder is not None and self._files is not None:
            prepared.files = _FilesOfSave(self._folder, self._files)
            self._files = None
        prepared.thread.start()
        self._save = prepared

    def begin(self) -> None:
        """Start to upload and commit the prepared save."""
        assert self._save is not None
        exits.expect(self)
        self._save.open.set()

    def drop(self) -> None:
        """Discard the prepared save, because another rank could not prepare."""
        if self._folder is not None and self._files is not None:
            self._folder.release(self._files)
            self._files = None
        if self._save is not None:
            self._save.dropped = True
            self._save.open.set()
            self._save = None

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the running save, if there is one. Returns whether it has ended, successfully or not."""
        if self._save is not None:
            self._save.thread.join(timeout_seconds)
        return not self.running

    def finish(self) -> None:
        """Wait for the running save within the grace period and the stall timeout.

        The save is cancelled when the grace period is nearly over or no byte was transferred for ``stall_seconds``,
        and abandoned if it does not stop then. Ctrl-C cancels it too.
        """
        try:
            while not self.wait(_POLL_SECONDS):
                stop = self._stop()
                if stop and stop.remaining_seconds <= RESERVE_SECONDS:
                    self.give_up("the grace period is over", CLEANUP_SECONDS)
                elif self.quiet_seconds >= self.stall_seconds and not (stop and stop.limited):
                    self.give_up(f"no data was sent or received for {self.stall_seconds:g} s", CLEANUP_SECONDS)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def give_up(self, cause: str, seconds: float) -> None:
        """Cancel the running save, and abandon it if it does not stop within some seconds.

        An abandoned save keeps its connections to other ranks and its buffers; later saves get new ones.
        """
        self.cancel()
        if self.wait(seconds):
            return
        assert self._save is not None
        if self._save.give_up(cause, self._store.url):
            self._copy, self.unchanged = HostCopy(), UnchangedFiles()
            exits.give_up_threads(self._exit_code)

    def cancel(self) -> None:
        """Cancel the running save, eventually on all ranks.

        After its current requests it fails with ``TransferCancelledError``, aborts its uploads and deletes its files.
        A save that has uploaded everything is still committed.
        """
        if self._save is not None:
            self._save.progress.cancel()

    def take(self) -> SaveOutcome:
        """Return how the latest save ended, once. Report its error to ``record_failure`` or ``settled`` afterwards."""
        if self._save is None or self._save.running:
            return SaveOutcome()
        finished, self._save = self._save, None
        outcome = finished.outcome
        if outcome.error is None:
            self.settled()
            self.last_seconds = finished.seconds
        return outcome

    def record_failure(self, error: Exception) -> None:
        """Record that training continues after a failure; the process fails at its end unless a later save succeeds."""
        self.debt = error
        exits.expect(self)

    def settled(self) -> None:
        """Record that earlier failures were raised or no longer matter."""
        self.debt = None
        exits.forget(self)

    def regroup(self, agreement: Agreement) -> None:
        """Use another group of all ranks from now on."""
        self._agreement.close()
        self._agreement = agreement
        # Some ranks may have counted one more save than others.
        self._compared = History()

    def close(self) -> None:
        """Free the buffers and leave the background's group, unless a save still runs."""
        if not self.running:
            self.settled()
            self._copy.close()
            self._agreement.close()

    def finish_at_exit(self) -> Exception | None:
        """Wait for a running save; an interrupt (Ctrl-C) cancels it."""
        if self.running:
            assert self._save is not None
            logger.info("save step %d: still uploading; this process exits afterwards", self._save.step)
            try:
                if self._save.progress.cancelled:
                    self.give_up("it was cancelled", CANCELLED_SECONDS)
                self.finish()
            except KeyboardInterrupt:
                self.give_up("it was interrupted", CANCELLED_SECONDS)
        return self.take().error or self.debt

    def _exit_code(self) -> int:
        return 128 + 15 if self._stop() else 1


class _FilesOfSave:
    """The files of one save."""

    def __init__(self, folder: RunFolder, save: FolderSave) -> None:
        self._folder = folder
        self._save = save

    def share_out(
        self, writer: SnapshotWriter, agreement: Agreement, target: RunTarget | None, progress: TransferMeter
    ) -> None:
        """Tell the writer which files this rank uploads. Collective."""
        self._save = self._folder.share_out(
            self._save, agreement, lambda path: target is not None and target.may_copy_from(path), progress
        )
        writer.folder_share = self._save.share

    def end(self, writer: SnapshotWriter, *, committed: bool) -> None:
        """Note what the save has stored, and drop the staged files."""
        if committed:
            self._folder.committed(self._save, writer.saved_in, writer.manifest)
        self._folder.release(self._save)


class _Save:
    """One save and its thread, which waits until ``open`` is set."""

    def __init__(
        self,
        staged: dict[str, Any],
        step: int,
        target: RunTarget | None,
        began: float,
        writer: SnapshotWriter,
        planner: BalancedSavePlanner,
        progress: TransferMeter,
        agreement: Agreement,
        transfers: Transfers,
    ) -> None:
        self.step = step
        self.progress = progress
        self.open = threading.Event()
        self.dropped = False
        self.seconds: float | None = None
        self._staged = staged
        self._target = target
        self._began = began
        self._writer = writer
        self._planner = planner
        self._agreement = agreement
        self._transfers = transfers
        self._outcome: SaveOutcome | None = None
        self._given_up = False
        self.files: _FilesOfSave | None = None
        self._seen = (0, 0)
        self._moved_at = time.monotonic()
        # A daemon, so that a cancelled save that hangs cannot keep the interpreter from exiting; ``exits`` waits for
        # all others.
        self.thread = threading.Thread(target=self._run, name=f"save step {step}", daemon=True)

    @property
    def running(self) -> bool:
        return not self._given_up and self.thread.is_alive()

    @property
    def outcome(self) -> SaveOutcome:
        """How the save ended; call it only afterwards."""
        if self._outcome is None:
            cause = "its thread ended with neither a result nor an error"
            return SaveOutcome(
                CheckpointError(f"{self._operation} in", f"thread {self.thread.name}", cause),
                broken=True,
                step=self.step,
            )
        return self._outcome

    def quiet_seconds(self) -> float:
        now, counted = time.monotonic(), self.progress.snapshot()
        if (counted.done, counted.total) != self._seen:
            self._seen, self._moved_at = (counted.done, counted.total), now
        return now - self._moved_at

    def give_up(self, cause: str, url: str) -> bool:
        """Treat the save as ended although its thread hangs. Returns False if it is committed already."""
        self._given_up = True
        if self._outcome is not None:
            logger.warning("%s: its pointer for torch's own reader is not published: %s", self._operation, cause)
            return False
        cause = f"it did not end in time: {cause}"
        error = SaveStalledError(
            f"{self._operation} to", url, cause, "It may still be committed; the next start checks."
        )
        committed = self._target is not None and self._target.committed
        self._outcome = SaveOutcome(None if committed else error, committed=committed, broken=True, step=self.step)
        return True

    @property
    def _operation(self) -> str:
        return f"save step {self.step}"

    def _run(self) -> None:
        self.open.wait()
        if self.dropped:
            if self.files is not None:
                self.files.end(self._writer, committed=False)
            return
        try:
            error, broken = self._save()
        except BaseException as failure:  # noqa: BLE001 - a thread has no caller; the training loop raises it
            error, broken = self._foreign(failure), True
        if broken:
            self._agreement.break_off()
        committed = self._target is not None and self._target.committed
        if error is not None and self._target is not None:
            error, committed = self._target.settle(error)
        self.seconds = time.monotonic() - self._began
        self._staged = {}
        if self.files is not None:
            self.files.end(self._writer, committed=error is None and bool(self._writer.saved_in))
        if error is None and self._writer.saved_in and self._writer.unchanged is not None:
            self._writer.unchanged.committed(self._writer.saved_in)
        if not self._given_up:
            self._outcome = SaveOutcome(error, committed=committed, broken=broken, step=self.step)
        if self._target is not None:
            self._target.publish()

    def _save(self) -> tuple[Exception | None, bool]:
        """Upload and commit. Returns the error, or None, and whether a collective was broken off."""
        try:
            with self._transfers.under_way("save", self.step, self.progress):
                if self.files is not None:
                    try:
                        self.files.share_out(self._writer, self._agreement, self._target, self.progress)
                    except CheckpointError as refused:
                        # Raised on every rank, unless a rank was lost.
                        return refused, isinstance(refused, RankLostError)
                save(
                    self._staged,
                    storage_writer=self._writer,
                    planner=self._planner,
                    process_group=self._agreement.group,
                )
        except CheckpointException as failure:
            self._writer.discard(failure)
            error = unwrap(failure, operation=self._operation)
            error = error or CheckpointError(f"{self._operation} on", "a rank", "it was interrupted")
            return (None if isinstance(error, SaveNotNeeded) else error), False
        except BaseException as failure:  # noqa: BLE001 - as in _run
            self._writer.discard(failure)
            return self._foreign(failure), True
        finally:
            self._writer.ended()
        return None, False

    def _foreign(self, failure: BaseException) -> Exception:
        """Translate an exception that DCP did not handle. Drops its traceback, which would keep the group alive."""
        logger.debug("%s: failed outside DCP's error handling", self._operation, exc_info=failure)
        rank, world_size = self._agreement.rank, self._agreement.world_size
        if isinstance(failure, RuntimeError) and "gloo" in str(failure):
            return rank_lost(failure, rank=rank, world_size=world_size)
        error: Exception = CheckpointError(f"{self._operation} on", f"rank {rank}", described(failure))
        if isinstance(failure, CheckpointError):
            error = portable(failure, operation=f"{self._operation} on", subject=f"rank {rank}")
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
