"""The facts that a report is made from."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from checkpoint_sidecar.core.heartbeat import Heartbeat
from checkpoint_sidecar.core.log import StoredEntry
from checkpoint_sidecar.core.run import Run


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run as it was read from its store.

    Attributes:
        url: Its prefix, without credentials.
        entries: The entries that ``run`` is the fold of, oldest first, from the one that claimed the run.
        now: When they were read, timezone-aware UTC.
        heartbeat: The latest heartbeat, or None.
        heartbeat_at: Time by the store's clock when it was written.
    """

    url: str
    run: Run
    entries: tuple[StoredEntry, ...]
    now: dt.datetime
    heartbeat: Heartbeat | None = None
    heartbeat_at: dt.datetime | None = None
