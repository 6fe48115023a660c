"""``open_run`` and ``StoredRun``: a run in its bucket, without training it and without an operator."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from checkpoint_sidecar.core.best import best_snapshot
from checkpoint_sidecar.core.errors import RunNotFoundError
from checkpoint_sidecar.core.log import Owner, StoredEntry
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.core.retention import RetentionVerdict, judge
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot
from checkpoint_sidecar.core.selectors import find_snapshot, latest_snapshot, snapshot_at
from checkpoint_sidecar.runs.history import read_history
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store

APPEND_TIMEOUT_SECONDS = 60.0
"""How long a change whose outcome is unknown is retried."""


def open_run(
    url: str | StoreSettings, *, filesystem: Any = None, storage_options: Mapping[str, Any] | None = None
) -> StoredRun:
    """Open the run at a URL, to look at it or to change it. Needs no torch, no cluster and no process group.

    >>> run = open_run("s3://training/llama-7b")
    >>> print(run.latest.step, [snapshot.step for snapshot in run.snapshots()])

    No request is made: a wrong bucket or key shows at the first use.

    Args:
        url: Location of the run, as ``Checkpointer`` takes it; or settings with an endpoint and credentials.
        filesystem: An fsspec filesystem that serves ``url``.
        storage_options: fsspec's options for ``url``, see ``store.fsspec.storage_options``.

    Raises:
        ConfigurationError: The URL or the credentials cannot work.
    """
    return StoredRun(open_store(settings_from(url, filesystem=filesystem, storage_options=storage_options)))


class StoredRun:
    """A run as its log describes it. Safe from several threads.

    The log is read at the first use and kept; ``refresh`` reads on, at the cost of one request if nothing is new.

    Args:
        store: Opened at the run's prefix.
        writer: Signature in the log of what this object changes.
    """

    def __init__(self, store: Store, *, writer: str = "") -> None:
        self.store = store
        writer = writer or f"library {version('checkpoint-operator')}"
        self._log = RunLog(store, writer=writer, timeout_seconds=APPEND_TIMEOUT_SECONDS)

    @property
    def url(self) -> str:
        """The run's URL, without credentials."""
        return self.store.url

    def refresh(self) -> Run:
        """Read what was appended since the last call, and return the state of the run.

        Raises:
            RunNotFoundError: There is no run under the URL, or it was deleted.
            LogReplacedError: It was deleted, and another one may have begun, since it was read: open it again.
            LogError: The log cannot be read.
            StoreError: The store failed.
        """
        run = self._log.refresh()
        if run.head == 0 or run.erased:
            cause = "the run was deleted" if run.erased else "there is no run log below it"
            raise RunNotFoundError("open the run", self.url, cause, "Check the URL.")
        return run

    @property
    def state(self) -> Run:
        """The state as of the last read; the first use reads the log, and raises as ``refresh`` does."""
        run = self._log.run
        return run if run.head and not run.erased else self.refresh()

    @property
    def owner(self) -> Owner | None:
        """The owner of the prefix, as the log says."""
        return self.state.owner

    @property
    def managed(self) -> bool:
        """Whether an operator configured the run. Then changes belong into its Checkpoint object."""
        return self.state.configured is not None

    @property
    def policy(self) -> Policy:
        """The policy in force; the defaults if no operator wrote one."""
        return self.state.policy

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts, oldest first."""
        return tuple(self.state.attempts.values())

    def snapshots(self, *, all: bool = False) -> tuple[Snapshot, ...]:  # noqa: A002 - as users of `ls --all` write it
        """Return the live snapshots in order of commit.

        Args:
            all: Return every snapshot of the log instead: retired, deleted and rejected ones too.
        """
        found = self.state.snapshots.values()
        return tuple(found) if all else tuple(s for s in found if s.live)

    @property
    def latest(self) -> Snapshot | None:
        """The newest live snapshot of the lineage, which the next start tries first."""
        return latest_snapshot(self.state)

    @property
    def best(self) -> Snapshot | None:
        """The best live snapshot by the first rule of ``keepBest``; None without such a rule."""
        return best_snapshot(self.state)

    def at_step(self, step: int) -> Snapshot | None:
        """Return the snapshot of a step, or None; of several, a live one of the lineage is preferred."""
        return snapshot_at(self.state, step)

    def find(self, selector: str | int = "latest") -> Snapshot:
        """Return the snapshot that a selector means.

        Args:
            selector: ``latest``, ``best``, a step, or an id or the start of one.

        Raises:
            SnapshotNotFoundError: There is none.
            AmbiguousSelectorError: Several ids begin with it.
        """
        return find_snapshot(self.state, selector, url=self.url)

    def retention(self, *, now: dt.datetime | None = None) -> RetentionVerdict:
        """Return why the policy keeps each snapshot, and which ones it retires next.

        An operator that reads snapshots back or enforces a quota may keep or retire others than this forecast says.

        Args:
            now: The moment to judge at; by default this machine's time, or the newest commit's if that is later.
        """
        run = self.state
        newest = run.snapshots[run.newest].committed_at if run.newest else None
        here = dt.datetime.now(dt.UTC)
        return judge(run, now=now or (max(here, newest) if newest else here))

    def entries(self, *, after: int = 0) -> Iterator[StoredEntry]:
        """Yield the entries of the run's log, oldest first. They are read again from the store, in bounded memory.

        Args:
            after: Number of the last entry that the caller already knows; 0 for all.

        Raises:
            LogError, StoreError: An entry cannot be read.
        """
        _ = self.state
        return read_history(self._log, after=after)
