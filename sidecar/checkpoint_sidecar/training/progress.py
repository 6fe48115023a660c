"""Saying how far training has got, every few seconds, to whoever cares."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.log import PodIdentity
from checkpoint_sidecar.core.progress import INTERVAL_SECONDS, Progress, encode
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.periodic import Periodic


class ProgressReport:
    """Overwrites ``_progress.json`` in the background, until the attempt ends or is fenced.

    Args:
        attempt: Whose progress it is.
        pods: The attempt's pods.
        fenced: Whether a later attempt has started: the file is that one's then, also while this one hangs in a step.
    """

    def __init__(
        self, store: Store, *, attempt: int, pods: tuple[PodIdentity, ...], fenced: Callable[[], bool]
    ) -> None:
        self.step = 0
        self._fenced = fenced
        self._store = store
        self._attempt = attempt
        self._pods = pods
        self._periodic = Periodic(self._write, seconds=INTERVAL_SECONDS, name="report progress")

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        """End the reports with a goodbye, which tells the next attempt that it need not wait for this one."""
        self._periodic.stop()
        # A hint that is lost costs the next start a few seconds of waiting, nothing else.
        with contextlib.suppress(CheckpointError):
            self._write(ended=True)

    def _write(self, *, ended: bool = False) -> None:
        if self._fenced():
            return
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._store.put(layout.PROGRESS_KEY, encode(Progress(self._attempt, self.step, now, self._pods, ended)))
