"""Reads a run for a report: its log, every entry of it, and the latest heartbeat."""

from __future__ import annotations

import datetime as dt

from checkpoint_cli.report.facts import RunFacts
from checkpoint_sidecar.core.compaction import MAX_COMPACTION_BYTES, longest_from, unpack
from checkpoint_sidecar.core.errors import LogError, StoreError
from checkpoint_sidecar.core.log import StoredEntry
from checkpoint_sidecar.runs.entries import get_entries
from checkpoint_sidecar.runs.heartbeat import read_heartbeat
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store


def gather(store: Store, *, now: dt.datetime | None = None) -> RunFacts:
    """Read everything that a report shows. Reads only.

    Args:
        store: Opened at the run's prefix.
        now: The time of the report, by default this machine's.

    Raises:
        LogError: The log cannot be read.
        StoreError: The store failed.
    """
    log = RunLog(store, writer="report")
    run = log.refresh()
    found = read_heartbeat(store)
    return RunFacts(
        url=store.url,
        run=run,
        entries=_entries(store, log, max(run.first, 1), run.head),
        now=now or dt.datetime.now(dt.UTC),
        heartbeat=found.heartbeat if found else None,
        heartbeat_at=found.at if found else None,
    )


def _entries(store: Store, log: RunLog, first: int, last: int) -> tuple[StoredEntry, ...]:
    """Read the entries again that the log has folded, from compactions where there are some."""
    entries: list[StoredEntry] = []
    usable = set(log.compactions)
    number = 1
    while number <= last and (span := longest_from(number, usable)) is not None:
        try:
            part = [entry.decode() for entry in unpack(store.get(span.key, max_bytes=MAX_COMPACTION_BYTES).data, span)]
        except (LogError, StoreError):
            # A compaction is optional: the log itself holds the same entries.
            usable.discard(span)
            continue
        entries += part
        number = span.last + 1
    entries += [entry.decode() for entry in get_entries(store, range(max(number, first), last + 1))]
    return tuple(entry for entry in entries if first <= entry.number <= last)
