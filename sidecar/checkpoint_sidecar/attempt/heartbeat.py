"""Saying how far training has got, every few seconds, to whoever cares."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from checkpoint_sidecar.attempt.periodic import Periodic
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.heartbeat import INTERVAL_SECONDS, Heartbeat, encode
from checkpoint_sidecar.core.log import PodIdentity
from checkpoint_sidecar.runs.heartbeat import read_beat
from checkpoint_sidecar.store.base import Store

_FRESH_SECONDS = 5.0
"""For how long what was read still says who writes."""


class ProgressReport:
    """Overwrites ``_progress.json`` in the background, until the attempt ends or is fenced.

    Args:
        attempt: Whose progress it is.
        pods: The attempt's pods.
        fenced: Whether a later attempt has started: the file is that one's then, also while this one hangs in a step.
        refresh: Reads on in the log, so that ``fenced`` says what is true now.
    """

    def __init__(
        self,
        store: Store,
        *,
        attempt: int,
        pods: tuple[PodIdentity, ...],
        fenced: Callable[[], bool],
        refresh: Callable[[], object],
    ) -> None:
        self.step = 0
        self._fenced = fenced
        self._refresh = refresh
        self._store = store
        self._attempt = attempt
        self._pods = pods
        self._periodic = Periodic(
            self._write, seconds=INTERVAL_SECONDS, name="report progress", goodbye=self._say_goodbye
        )

    def start(self) -> None:
        self._periodic.start()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        """End the reports with a goodbye, which tells the next attempt that it need not wait for this one.

        The thread of the reports says it, so that a store that keeps silent holds nothing up. A goodbye that is lost
        costs the next start a few seconds of waiting, nothing else.
        """
        self._periodic.stop(timeout_seconds=timeout_seconds)

    def _say_goodbye(self) -> None:
        self._write(ended=True)

    def _write(self, *, ended: bool = False) -> None:
        """Overwrite the last beat, unless it is a later attempt's.

        The log tells of later attempts too, but a process that was stopped and wakes up has not read it yet. It may
        also have slept between looking and writing: then it looks again.
        """
        while True:
            looked_at = time.monotonic()
            if self._superseded():
                return
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            beat = encode(Heartbeat(self._attempt, self.step, now, self._pods, ended))
            if time.monotonic() - looked_at < _FRESH_SECONDS:
                self._store.put(layout.PROGRESS_KEY, beat)
                return

    def _superseded(self) -> bool:
        if self._fenced():
            return True
        latest = read_beat(self._store)
        if latest is None or latest.progress.attempt <= self._attempt:
            return False
        # A damaged hint may say anything; the log decides.
        self._refresh()
        return self._fenced()
