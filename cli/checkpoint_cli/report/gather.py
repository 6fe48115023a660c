"""Reads a run for a report: its log, every entry of it, and the latest heartbeat."""

from __future__ import annotations

import datetime as dt

from checkpoint_cli.report.facts import RunFacts
from checkpoint_sidecar.core.log import StoredEntry
from checkpoint_sidecar.runs.heartbeat import read_heartbeat
from checkpoint_sidecar.runs.history import read_history
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store


class RunReader:
    """Reads one run again and again, each time only what was appended since. Not safe from several threads.

    Args:
        store: Opened at the run's prefix.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log = RunLog(store, writer="report")
        self._entries: tuple[StoredEntry, ...] = ()

    def read(self, *, now: dt.datetime | None = None) -> RunFacts:
        """Read everything that a report shows. Reads only.

        Args:
            now: The time of the report, by default this machine's.

        Raises:
            LogReplacedError: Another run has taken the place of this one: it takes another reader.
            LogError: The log cannot be read.
            StoreError: The store failed.
        """
        run = self._log.poll()
        known = self._entries[-1].number if self._entries else 0
        if run.head > known:
            self._entries += tuple(read_history(self._log, after=known))
        found = read_heartbeat(self._store)
        return RunFacts(
            url=self._store.url,
            run=run,
            entries=self._entries,
            now=now or dt.datetime.now(dt.UTC),
            heartbeat=found.heartbeat if found else None,
            heartbeat_at=found.at if found else None,
        )

    def version(self) -> str:
        """Return a text that changes whenever the run has a new entry.

        Raises:
            LogReplacedError, LogError, StoreError: See ``read``.
        """
        return str(self._log.poll().head)


def gather(store: Store, *, now: dt.datetime | None = None) -> RunFacts:
    """Read a run once; see ``RunReader.read``."""
    return RunReader(store).read(now=now)
