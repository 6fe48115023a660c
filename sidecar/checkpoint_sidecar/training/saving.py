"""One save at a time per rank: copied to host memory at once, uploaded and committed in the background.

The background is a thread that ends with its save. A process that reaches its end waits for it, since nothing makes up
for the save later. Whoever has to leave sooner calls it off, which aborts its uploads and deletes its files.

Ranks meet twice on the way. In ``Checkpointer`` they agree that all of them have staged the state and started their
threads; only then does any thread go on to DCP's collectives. There a failure of one rank is raised on all of them, and
a rank that fails outside of DCP's care breaks its connections off, so that no other one waits for it.
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
from checkpoint_sidecar.core.errors import CheckpointError, SaveStalledError
from checkpoint_sidecar.core.failures import described, portable
from checkpoint_sidecar.core.schedule import RESERVE_SECONDS
from checkpoint_sidecar.core.termination import CLEANUP_SECONDS
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training import exits
from checkpoint_sidecar.training.agreement import Agreement, rank_lost
from checkpoint_sidecar.training.dcp.errors import unwrap
from checkpoint_sidecar.training.dcp.replicas import buffers_among
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner, History
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from checkpoint_sidecar.training.staging import HostCopy
from checkpoint_sidecar.training.transfers import Transfers
from checkpoint_sidecar.training.vote import Stop

logger = logging.getLogger(__name__)

CANCELLED_SECONDS = 10.0
"""How long the exit of the interpreter waits for a save that was called off: one that hangs in a request is left."""

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    """How a save ended on one rank.

    Attributes:
        error: Why it failed, or None.
        committed: Whether the snapshot is in the log for certain; only rank 0 looks.
        broken: Whether the rank has left the exchange with the others in the middle: they need a new group.
        step: Which step it was of; None if no save has ended.
    """

    error: Exception | None = None
    committed: bool = False
    broken: bool = False
    step: int | None = None


class BackgroundSave:
    """Uploads staged state dicts. All methods are called by the training thread.

    Args:
        agreement: Used by the background thread alone, so that its collectives never meet those of training.
        transfers: Where running saves are to be seen.
        settings: Limits of the transfer.
        stop: What is left of the grace period, if this process was asked to terminate.
    """

    def __init__(
        self,
        store: Store,
        agreement: Agreement,
        transfers: Transfers,
        settings: EngineSettings,
        *,
        stop: Callable[[], Stop | None],
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
        self._save: _Save | None = None
        self.debt: Exception | None = None
        self.last_seconds: float | None = None

    @property
    def running(self) -> bool:
        return self._save is not None and self._save.running

    @property
    def failed(self) -> bool:
        """Whether a save failed whose outcome was not taken yet."""
        return self._save is not None and not self._save.running and self._save.outcome.error is not None

    @property
    def quiet_seconds(self) -> float:
        """For how long the running save has moved no byte, as far as was looked."""
        return self._save.quiet_seconds() if self._save is not None and self._save.running else 0.0

    def stage(self, state: dict[str, Any], modules: Mapping[str, Module]) -> dict[str, Any]:
        """Copy to host memory, into the buffers of the previous save, which must be over.

        Args:
            modules: Those whose state dicts are part of the state, by name.
        """
        self._buffers = {name: buffers_among(module, state[name], prefix=name) for name, module in modules.items()}
        return self._copy(state)

    def prepare(self, staged: dict[str, Any], *, step: int, target: RunTarget | None, began: float) -> None:
        """Get everything ready that can fail, up to the thread itself.

        Args:
            target: On rank 0.
            began: ``time.monotonic()`` when the save began.
        """
        progress = TransferMeter()
        writer = SnapshotWriter(self._store, target, progress=progress, settings=self._settings)
        planner = BalancedSavePlanner(buffers=self._buffers, history=self._compared)
        prepared = _Save(staged, step, target, began, writer, planner, progress, self._agreement, self._transfers)
        prepared.thread.start()
        self._save = prepared

    def begin(self) -> None:
        """Upload and commit what was prepared, on all ranks."""
        assert self._save is not None
        exits.expect(self)
        self._save.open.set()

    def drop(self) -> None:
        """Forget what was prepared: another rank could not."""
        if self._save is not None:
            self._save.dropped = True
            self._save.open.set()
            self._save = None

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the running save, if there is one. Returns whether it is over, with success or without."""
        if self._save is not None:
            self._save.thread.join(timeout_seconds)
        return not self.running

    def finish(self) -> None:
        """Wait for the running save, but not for ever.

        It is called off when the grace period is nearly over, and given up when it does not end then either, or when
        it has moved no byte for ``stall_seconds``. Ctrl-C calls it off too.
        """
        try:
            while not self.wait(_LOOK_SECONDS):
                stop = self._stop()
                if stop and stop.remaining_seconds <= RESERVE_SECONDS:
                    self.give_up("the grace period is over", CLEANUP_SECONDS)
                elif self.quiet_seconds >= self.stall_seconds and not (stop and stop.limited):
                    self.give_up(f"the store took and gave nothing for {self.stall_seconds:g} s", CLEANUP_SECONDS)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def give_up(self, cause: str, seconds: float) -> None:
        """Call the running save off, and leave it to itself if it does not end within some seconds.

        What is left has its own connections to other ranks and its own buffers; later saves get new ones.
        """
        self.cancel()
        if self.wait(seconds):
            return
        assert self._save is not None
        if self._save.give_up(cause, self._store.url):
            self._copy = HostCopy()
            exits.give_up_threads(self._exit_code)

    def cancel(self) -> None:
        """Call the running save off, on all ranks in the end.

        Soon, when the requests under way are over, it fails with ``TransferCancelledError``, uploads aborted and files
        deleted. One that has uploaded everything is committed all the same.
        """
        if self._save is not None:
            self._save.progress.cancel()

    def take(self) -> SaveOutcome:
        """How the latest save ended, once. What becomes of its error is said by ``owe`` or ``settled``."""
        if self._save is None or self._save.running:
            return SaveOutcome()
        finished, self._save = self._save, None
        outcome = finished.outcome
        if outcome.error is None:
            self.settled()
            self.last_seconds = finished.seconds
        return outcome

    def owe(self, error: Exception) -> None:
        """Training goes on after this failure; the process fails in the end, unless a later save makes up for it."""
        self.debt = error
        exits.expect(self)

    def settled(self) -> None:
        """What failed was raised, or does not matter any more."""
        self.debt = None
        exits.forget(self)

    def regroup(self, agreement: Agreement) -> None:
        """Use another group of all ranks from here on."""
        self._agreement.close()
        self._agreement = agreement
        # Some ranks may have counted one save more than others.
        self._compared = History()

    def close(self) -> None:
        """Free the buffers and leave the background's group; a save that still runs keeps both."""
        if not self.running:
            self.settled()
            self._copy.close()
            self._agreement.close()

    def finish_at_exit(self) -> Exception | None:
        """Let a save that still runs come to its end; an interrupt (Ctrl-C) calls it off."""
        if self.running:
            assert self._save is not None
            logger.info("save step %d: still uploading; this process exits afterwards", self._save.step)
            try:
                if self._save.progress.cancelled:
                    self.give_up("it was called off", CANCELLED_SECONDS)
                self.finish()
            except KeyboardInterrupt:
                self.give_up("it was interrupted", CANCELLED_SECONDS)
        return self.take().error or self.debt

    def _exit_code(self) -> int:
        return 128 + 15 if self._stop() else 1


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
        self._seen = (0, 0)
        self._moved_at = time.monotonic()
        # A daemon, so that one that hangs although it was called off cannot keep the interpreter from exiting; that no
        # other is cut off is seen to by ``exits``.
        self.thread = threading.Thread(target=self._run, name=f"save step {step}", daemon=True)

    @property
    def running(self) -> bool:
        return not self._given_up and self.thread.is_alive()

    @property
    def outcome(self) -> SaveOutcome:
        """How it ended; for one that is over."""
        if self._outcome is None:
            cause = "its thread ended with neither a result nor an error"
            return SaveOutcome(CheckpointError(self._operation, self.thread.name, cause), broken=True, step=self.step)
        return self._outcome

    def quiet_seconds(self) -> float:
        now, counted = time.monotonic(), self.progress.snapshot()
        if (counted.done, counted.total) != self._seen:
            self._seen, self._moved_at = (counted.done, counted.total), now
        return now - self._moved_at

    def give_up(self, cause: str, url: str) -> bool:
        """Count it as over although its thread hangs. Returns whether it is lost; it may be committed already."""
        self._given_up = True
        if self._outcome is not None:
            logger.warning("%s: publishing it to torch's own reader was given up: %s", self._operation, cause)
            return False
        cause = f"it did not end in time: {cause}"
        error = SaveStalledError(self._operation, url, cause, "It may still be committed; the next start looks.")
        committed = self._target is not None and self._target.committed
        self._outcome = SaveOutcome(None if committed else error, committed=committed, broken=True, step=self.step)
        return True

    @property
    def _operation(self) -> str:
        return f"save step {self.step}"

    def _run(self) -> None:
        self.open.wait()
        if self.dropped:
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
        if not self._given_up:
            self._outcome = SaveOutcome(error, committed=committed, broken=broken, step=self.step)
        if self._target is not None:
            self._target.publish()

    def _save(self) -> tuple[Exception | None, bool]:
        """Upload and commit. Returns why that failed, or None, and whether the exchange with other ranks broke."""
        try:
            with self._transfers.under_way("save", self.step, self.progress):
                save(
                    self._staged,
                    storage_writer=self._writer,
                    planner=self._planner,
                    process_group=self._agreement.group,
                )
        except CheckpointException as failure:
            self._writer.discard(failure)
            error = unwrap(failure, operation=self._operation)
            error = error or CheckpointError(self._operation, "a rank", "it was interrupted")
            return (None if isinstance(error, SaveNotNeeded) else error), False
        except BaseException as failure:  # noqa: BLE001 - as in _run
            self._writer.discard(failure)
            return self._foreign(failure), True
        return None, False

    def _foreign(self, failure: BaseException) -> Exception:
        """What an exception means that DCP let through. Without its traceback, which holds on to the group."""
        logger.debug("%s: failed outside of DCP's care", self._operation, exc_info=failure)
        rank, world_size = self._agreement.rank, self._agreement.world_size
        if isinstance(failure, RuntimeError) and "gloo" in str(failure):
            return rank_lost(failure, rank=rank, world_size=world_size)
        error: Exception = CheckpointError(self._operation, f"rank {rank}", described(failure))
        if isinstance(failure, CheckpointError):
            error = portable(failure, operation=self._operation, subject=f"rank {rank}")
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
