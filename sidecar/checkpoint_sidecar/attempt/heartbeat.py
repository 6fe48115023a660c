"""Writes a heartbeat with the current step every few seconds."""

from __future__ import annotations

import datetime as dt
import time

from checkpoint_sidecar.attempt.periodic import Periodic
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.heartbeat import INTERVAL_SECONDS, Heartbeat, encode
from checkpoint_sidecar.core.log import PodIdentity
from checkpoint_sidecar.runs.heartbeat import read_heartbeat

_FRESH_SECONDS = 5.0
"""How long a read of the log and the last heartbeat counts as current."""


class ProgressReport:
    """Overwrites ``_progress.json`` in the background, until the attempt ends or is fenced.

    Args:
        session: Has started its attempt.
        pods: The attempt's pods.

    Attributes:
        step: The last step that was trained.
    """

    def __init__(self, session: AttemptSession, pods: tuple[PodIdentity, ...]) -> None:
        self.step = 0
        self._session = session
        self._pods = pods
        self._periodic = Periodic(
            self._write, seconds=INTERVAL_SECONDS, name="report progress", goodbye=self._write_goodbye
        )

    def start(self) -> None:
        self._periodic.start()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        """Stop, after a last heartbeat that lets the next attempt start without waiting for this one.

        The background thread writes it, so that a silent store delays nothing. If it is lost, the next start waits a
        few seconds longer.
        """
        self._periodic.stop(timeout_seconds=timeout_seconds)

    def _write_goodbye(self) -> None:
        self._write(ended=True)

    def _write(self, *, ended: bool = False) -> None:
        """Overwrite the last heartbeat, unless a later attempt wrote it.

        The log records later attempts too, but a process that was suspended may not have read them yet. It may also
        have been suspended between reading and writing, in which case it reads again.
        """
        while True:
            read_at = time.monotonic()
            if self._superseded():
                return
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            heartbeat = encode(Heartbeat(self._session.attempt, self.step, now, self._pods, ended))
            if time.monotonic() - read_at < _FRESH_SECONDS:
                self._session.store.put(layout.PROGRESS_KEY, heartbeat)
                return

    def _superseded(self) -> bool:
        if self._session.fenced is not None:
            # The file belongs to the later attempt, even while this one hangs in a step.
            return True
        latest = read_heartbeat(self._session.store)
        if latest is None or latest.heartbeat.attempt <= self._session.attempt:
            return False
        # A damaged heartbeat may hold any number; the log decides.
        self._session.log.refresh()
        return self._session.fenced is not None
