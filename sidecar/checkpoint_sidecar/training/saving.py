"""One save at a time per rank: copied to host memory at once, uploaded and committed in the background."""

from __future__ import annotations

import threading
import time
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.failures import unwrap
from checkpoint_sidecar.training.saves import SaveTarget
from checkpoint_sidecar.training.staging import HostCopy
from checkpoint_sidecar.training.target import SaveNotNeeded
from checkpoint_sidecar.training.writer import SnapshotWriter


class BackgroundSave:
    """Uploads staged state dicts. All methods are called by the training thread.

    Args:
        agreement: Used by the background thread alone, so that its collectives never meet those of training.
    """

    def __init__(self, store: Store, agreement: Agreement) -> None:
        self._store = store
        self._agreement = agreement
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.last_seconds: float | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a save failed whose error nobody has taken yet."""
        return not self.running and self._error is not None

    def stage(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy to host memory, into the buffers of the previous save, which must be over."""
        return self._copy(state)

    def start(self, staged: dict[str, Any], *, step: int, target: SaveTarget | None, began: float) -> None:
        """Upload and commit in the background.

        Args:
            target: On rank 0.
            began: ``time.monotonic()`` when the save began.
        """
        self._error = None
        self._thread = threading.Thread(
            target=self._run, args=(staged, step, target, began), name=f"save step {step}", daemon=True
        )
        self._thread.start()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the running save, if there is one. Returns whether it is over, with success or without."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return not self.running

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

    def _run(self, staged: dict[str, Any], step: int, target: SaveTarget | None, began: float) -> None:
        writer = SnapshotWriter(self._store, target)
        try:
            save(staged, storage_writer=writer, process_group=self._agreement.group)
        except CheckpointException as failure:
            writer.discard(failure)
            operation = f"save step {step}"
            error = unwrap(failure, operation=operation) or CheckpointError(operation, self._store.url, "interrupted")
            if not isinstance(error, SaveNotNeeded):
                error.__cause__ = failure
                self._error = error
        except Exception as error:  # noqa: BLE001 - a thread has no caller; the training loop raises it
            writer.discard(error)
            self._error = error
        else:
            self.last_seconds = time.monotonic() - began
