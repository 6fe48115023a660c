"""One save at a time per rank: copied to host memory at once, uploaded and committed in the background.

The background is a thread that ends with its save. A process that reaches its end waits for it, since nobody would make
up for the save later. Whoever has to leave sooner calls it off, which aborts its uploads and deletes its files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn import Module

from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.engine.progress import Progress
from checkpoint_sidecar.engine.settings import EngineSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.balance import BalancedSavePlanner, History
from checkpoint_sidecar.training.failures import unwrap
from checkpoint_sidecar.training.replicas import buffers_among
from checkpoint_sidecar.training.saves import SaveTarget
from checkpoint_sidecar.training.staging import HostCopy
from checkpoint_sidecar.training.target import SaveNotNeeded
from checkpoint_sidecar.training.transfers import Transfers
from checkpoint_sidecar.training.writer import SnapshotWriter

logger = logging.getLogger(__name__)

CANCELLED_SECONDS = 10.0
"""How long the exit of the interpreter waits for a save that was called off: one that hangs in a request is left."""


class BackgroundSave:
    """Uploads staged state dicts. All methods are called by the training thread.

    Args:
        agreement: Used by the background thread alone, so that its collectives never meet those of training.
        transfers: Where running saves are to be seen.
    """

    def __init__(self, store: Store, agreement: Agreement, transfers: Transfers) -> None:
        self._store = store
        self._agreement = agreement
        self._transfers = transfers
        self._copy = HostCopy()
        self._compared = History()
        self._buffers: dict[str, set[str]] = {}
        self._thread: threading.Thread | None = None
        self._progress = Progress()
        self._error: Exception | None = None
        self.last_seconds: float | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a save failed whose error nobody has taken yet."""
        return not self.running and self._error is not None

    def stage(self, state: dict[str, Any], modules: Mapping[str, Module]) -> dict[str, Any]:
        """Copy to host memory, into the buffers of the previous save, which must be over.

        Args:
            modules: Those whose state dicts are part of the state, by name.
        """
        self._buffers = {name: buffers_among(module, state[name], prefix=name) for name, module in modules.items()}
        return self._copy(state)

    def start(self, staged: dict[str, Any], *, step: int, target: SaveTarget | None, began: float) -> None:
        """Upload and commit in the background.

        Args:
            target: On rank 0.
            began: ``time.monotonic()`` when the save began.
        """
        self._error = None
        self._progress = Progress()
        # A daemon, so that one that hangs although it was called off cannot keep the interpreter from exiting; that no
        # other is cut off is seen to by finish_before_exit.
        self._thread = threading.Thread(
            target=self._run,
            args=(staged, step, target, began, self._progress),
            name=f"save step {step}",
            daemon=True,
        )
        _started.add(self)
        self._thread.start()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the running save, if there is one. Returns whether it is over, with success or without."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return not self.running

    def cancel(self) -> None:
        """Call the running save off, on all ranks in the end.

        Soon, when the requests under way are over, it fails with ``TransferCancelledError``, uploads aborted and files
        deleted. One that has uploaded everything is committed all the same.
        """
        self._progress.cancel()

    def take_error(self) -> Exception | None:
        """Why the latest save failed, once."""
        if self.running:
            return None
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """Free the buffers and leave the background's group; a save that still runs keeps both."""
        if not self.running:
            self._copy.close()
            self._agreement.close()

    def finish_before_exit(self) -> None:
        """Let a save that still runs come to its end; an interrupt (Ctrl-C) calls it off."""
        if not self.running:
            return
        assert self._thread is not None
        logger.info("%s: still uploading; this process exits afterwards", self._thread.name)
        try:
            self.wait(CANCELLED_SECONDS if self._progress.cancelled else None)
        except KeyboardInterrupt:
            self.cancel()
            self.wait(CANCELLED_SECONDS)
        if self.running:
            logger.warning("%s: left in the middle, because it does not end", self._thread.name)
        elif self._error:
            logger.error("%s: failed: %s", self._thread.name, self._error)

    def _run(
        self, staged: dict[str, Any], step: int, target: SaveTarget | None, began: float, progress: Progress
    ) -> None:
        settings = replace(EngineSettings.from_environment(), beside_training=True)
        writer = SnapshotWriter(self._store, target, progress=progress, settings=settings)
        try:
            with self._transfers.under_way("save", step, progress):
                save(
                    staged,
                    storage_writer=writer,
                    planner=BalancedSavePlanner(buffers=self._buffers, history=self._compared),
                    process_group=self._agreement.group,
                )
        except CheckpointException as failure:
            writer.discard(failure)
            operation = f"save step {step}"
            error = unwrap(failure, operation=operation) or CheckpointError(operation, self._store.url, "interrupted")
            if not isinstance(error, SaveNotNeeded):
                self._error = error
        except Exception as error:  # noqa: BLE001 - a thread has no caller; the training loop raises it
            writer.discard(error)
            self._error = error
        else:
            self.last_seconds = time.monotonic() - began
        finally:
            _started.discard(self)


_started: set[BackgroundSave] = set()


def _finish_before_exit() -> None:
    for each in list(_started):
        each.finish_before_exit()


# Private, but the only hook that runs while threads can still be started, which an upload needs: concurrent.futures,
# which uses it too, refuses to start any from then on. Hooks run in reverse order, so this one runs before that one's.
threading._register_atexit(_finish_before_exit)  # type: ignore[attr-defined]
