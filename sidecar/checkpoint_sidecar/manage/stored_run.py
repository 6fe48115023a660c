"""``open_run`` and ``StoredRun``: a run in its bucket, without training it and without an operator."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from checkpoint_sidecar.core import requests
from checkpoint_sidecar.core.best import best_snapshot
from checkpoint_sidecar.core.errors import RunNotFoundError, SnapshotNotFoundError
from checkpoint_sidecar.core.log import Body, Owner, RunConfigured, StoredEntry
from checkpoint_sidecar.core.policy import Disposition, Policy
from checkpoint_sidecar.core.retention import RetentionVerdict, judge
from checkpoint_sidecar.core.run import LIBRARY_UID, Attempt, Run, Snapshot
from checkpoint_sidecar.core.selectors import find_snapshot, latest_snapshot, snapshot_at
from checkpoint_sidecar.engine.pointer import republish
from checkpoint_sidecar.engine.verify import VerificationPass
from checkpoint_sidecar.manage.changes import (
    APPEND_TIMEOUT_SECONDS,
    RunChange,
    append,
    check_changeable,
    new_request,
    next_generation,
    same_policy,
    why_not_given_up,
    why_unreadable,
)
from checkpoint_sidecar.manage.checking import SnapshotCheck, check_snapshot
from checkpoint_sidecar.manage.following import LONGEST_WAIT_SECONDS, Polling, StopSignal, follow
from checkpoint_sidecar.manage.pruning import PrunePlan, plan_pruning, prune
from checkpoint_sidecar.manage.reading import announced
from checkpoint_sidecar.manage.removing import Removal, remove
from checkpoint_sidecar.runs.history import read_history
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store

_RECORD = "record the check of"


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
        writer: Name in the log entries that this object writes.
    """

    def __init__(self, store: Store, *, writer: str = "") -> None:
        self.store = store
        writer = writer or f"library {version('checkpoint-operator')}"
        self._log = RunLog(store, writer=writer, timeout_seconds=APPEND_TIMEOUT_SECONDS)

    @property
    def log(self) -> RunLog:
        """The run's log, for code of this package that appends to it."""
        return self._log

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
        return self._existing(self._log.refresh())

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
        return self.state.managed

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
        return judge(self.state, now=now or self._estimated_now())

    def entries(self, *, after: int = 0) -> Iterator[StoredEntry]:
        """Yield the entries of the run's log, oldest first. They are read again from the store, in bounded memory.

        Args:
            after: Number of the last entry that the caller already knows; 0 for all.

        Raises:
            LogError, StoreError: An entry cannot be read.
        """
        _ = self.state
        return read_history(self._log, after=after)

    # Changes

    def rollback(
        self, selector: str | int, *, request: str = "", without_operator: bool = False, dry_run: bool = False
    ) -> RunChange:
        """Let the next start restore an older snapshot, once. A running attempt is not disturbed.

        Args:
            selector: See ``find``.
            request: Id under which the rollback takes effect once; by default a new one.
            without_operator: Change the run although an operator manages it, because none runs any more. One that runs
                writes what its objects say again.
            dry_run: Only check whether it is possible. The same for all methods below.

        Raises:
            SnapshotNotFoundError, AmbiguousSelectorError: See ``find``.
            RunManagedError: An operator manages the run.
            ChangeRefusedError: The snapshot's data is deleted, or the run is.
            LogError, StoreError: The log failed; after an ``UnknownOutcomeError`` the entry may have been written.
        """
        snapshot, request = self._id(selector), request or new_request("rollback")
        return self._change(
            "roll back to",
            lambda run: requests.roll_back(run, snapshot, request),
            refused=lambda run: why_unreadable(run, snapshot),
            outcome=RunChange(None, snapshot, request),
            without_operator=without_operator,
            dry_run=dry_run,
        )

    def hold(self, selector: str | int, *, without_operator: bool = False, dry_run: bool = False) -> RunChange:
        """Keep a snapshot, whatever the policy says, until ``release``. Raises as ``rollback`` does."""
        return self._dispose(selector, "hold", "Hold", why_unreadable, without_operator, dry_run)

    def release(self, selector: str | int, *, without_operator: bool = False, dry_run: bool = False) -> RunChange:
        """Leave a held or given-up snapshot to the policy again. Raises as ``rollback`` does."""
        return self._dispose(selector, "release", "Auto", why_unreadable, without_operator, dry_run)

    def retire(self, selector: str | int, *, without_operator: bool = False, dry_run: bool = False) -> RunChange:
        """Give a snapshot up: retention retires it next, and deletes its data after the grace period.

        ``prune`` carries that out where no operator runs. Raises as ``rollback`` does; ``ChangeRefusedError`` also if
        the run has no retention policy, or the snapshot is in use or the newest verified one.
        """
        return self._dispose(selector, "retire", "Retire", why_not_given_up, without_operator, dry_run)

    def release_quarantine(
        self, selector: str | int, *, request: str = "", without_operator: bool = False, dry_run: bool = False
    ) -> RunChange:
        """Discard the evidence against a snapshot, so that restores try it again. Raises as ``rollback`` does."""
        snapshot, request = self._id(selector), request or new_request("release")
        return self._change(
            "release from quarantine",
            lambda run: requests.release_quarantine(run, snapshot, request),
            refused=lambda run: why_unreadable(run, snapshot),
            outcome=RunChange(None, snapshot, request),
            without_operator=without_operator,
            dry_run=dry_run,
        )

    def request_save(self, *, request: str = "", without_operator: bool = False, dry_run: bool = False) -> RunChange:
        """Ask the running attempt to save after its current step. ``answer_to`` tells when it did.

        Raises as ``rollback`` does; ``ChangeRefusedError`` if training never started, or may no longer commit.
        """
        request = request or new_request("save")
        return self._change(
            "request a save of",
            lambda run: requests.save(run, request),
            refused=requests.why_not_saved,
            outcome=RunChange(None, request=request),
            without_operator=without_operator,
            dry_run=dry_run,
        )

    def answer_to(self, request: str) -> Snapshot | None:
        """Return the snapshot that answered a request for a save, as of the last ``refresh``; None until then."""
        return requests.answer_to(self.state, request)

    def configure(self, policy: Policy, *, without_operator: bool = False, dry_run: bool = False) -> RunChange:
        """Write a policy into the log, as an operator does. It applies to training from its next poll on.

        It replaces the save settings that training was started with, so give all parts of the policy. An operator that
        manages this run later writes its own. Raises as ``rollback`` does.
        """
        return self._change(
            "configure",
            lambda run: None if same_policy(run, policy) else RunConfigured(LIBRARY_UID, next_generation(run), policy),
            outcome=RunChange(None),
            without_operator=without_operator,
            dry_run=dry_run,
        )

    # Checking, and deleting

    def reading(self, selector: str | int = "latest") -> AbstractContextManager[None]:
        """Keep retention from deleting a snapshot's data while a ``with`` block reads it.

        Announced in the log, where the run has a retention policy. Without the right to write, the block runs
        unannounced.

        Raises:
            SnapshotNotFoundError, AmbiguousSelectorError: See ``find``.
        """
        return announced(self._log, find_snapshot(self.refresh(), selector, url=self.url))

    def verify(
        self,
        snapshot: Snapshot | str | int,
        *,
        checksums: bool = False,
        progress: Callable[[int], None] | None = None,
        record: bool = False,
        without_operator: bool = False,
        same_pass: VerificationPass | None = None,
    ) -> SnapshotCheck:
        """Compare the stored objects of a snapshot with what was committed.

        Args:
            snapshot: A snapshot, or a selector.
            checksums: Read every byte, instead of asking for the sizes only.
            progress: Called with the number of bytes of each piece before it is read. It may raise, to stop.
            record: Write the result into the log, where retention and restores rely on it.
            same_pass: Given to checks of several snapshots, which then read each file that they share once.

        Raises:
            SnapshotNotFoundError: There is none, or its data was deleted.
            IncompatibleSnapshotError: A newer version wrote it.
            RunManagedError: With ``record``, see ``rollback``.
            StoreError: The store failed, which says nothing about the snapshot.
        """
        identifier = snapshot.id if isinstance(snapshot, Snapshot) else self._id(snapshot)
        found = self._readable(identifier)
        if record:
            check_changeable(self.state, _RECORD, subject=self.url, without_operator=without_operator)
        with announced(self._log, found) if checksums else nullcontext():
            result = check_snapshot(self.store, found, checksums=checksums, progress=progress, same_pass=same_pass)
        if record:
            append(
                self._log,
                _RECORD,
                lambda run: requests.record_check(run, result.entry, judged=result.judged),
                snapshot=found.id,
                without_operator=without_operator,
                dry_run=False,
            )
        return result

    def remove(
        self, selector: str | int, *, force: bool = False, without_operator: bool = False, dry_run: bool = False
    ) -> RunChange:
        """Delete a snapshot at once, without the policy and its grace period. After a kill, the next call continues.

        Args:
            force: Also delete a held snapshot, and the newest one that a start can trust.

        Raises:
            SnapshotNotFoundError, AmbiguousSelectorError: See ``find``.
            RunManagedError: See ``rollback``.
            ChangeRefusedError: An attempt or a rollback needs it, it is deleted, or ``force`` is missing.
            LogError, StoreError: It stopped there; call again.
        """
        snapshot = self._id(selector)
        return remove(self._log, self.store, snapshot, Removal(force, without_operator, dry_run))

    def republish(self, *, dry_run: bool = False) -> tuple[Snapshot, ...]:
        """Write stock pointers again in which torch's own reader would look for shared files at another place.

        For a run whose objects were moved or copied as they are. Returns the snapshots of these pointers, newest first;
        raises as ``refresh``, and ``ConfigurationError`` in a store in which torch cannot read shared files.
        """
        self.refresh()
        return republish(self.store, self._log, dry_run=dry_run)

    def prune_plan(self, *, only: Collection[str] | None = None, now: dt.datetime | None = None) -> PrunePlan:
        """Return what ``prune`` would do now. Writes nothing.

        Args:
            only: See ``prune``.
            now: The moment to judge at; by default as for ``retention``.
        """
        return plan_pruning(self.state, now=now or self._estimated_now(), only=only)

    def prune(self, *, only: Collection[str] | None = None, without_operator: bool = False) -> PrunePlan:
        """Carry out the retention policy in the log: retire what it does not want, delete what was retired long enough.

        The rules are the operator's: floors, the grace period by the store's clock, a snapshot that stays was compared
        with its checksums, a few deletions at a time. Call it again for the rest. After a kill, the next call
        continues.

        Args:
            only: Ids of the snapshots to retire, reinstate or purge; None for all. Files that purges have left and that
                no snapshot shares any more go in any case.

        Returns:
            What was retired and deleted, and what waits for its grace period.

        Raises:
            RunManagedError: See ``rollback``.
            LogError, StoreError: It stopped there; call again.
        """

        def check(run: Run) -> None:
            check_changeable(run, "prune", subject=self.url, without_operator=without_operator)

        check(self.refresh())
        return prune(self._log, self.store, only=only, check=check)

    # Waiting

    def follow(
        self,
        *,
        after: Snapshot | None = None,
        stop: StopSignal | None = None,
        idle_seconds: float | None = None,
        newest_only: bool = False,
        longest_wait: float = LONGEST_WAIT_SECONDS,
    ) -> Iterator[Snapshot]:
        """Yield snapshots as they are committed, for example to evaluate them. Retired and rejected ones are left out.

        Polls the log with one small request, at first every second, then less and less often. A run that does not exist
        yet, and a store that does not answer, are waited for.

        Args:
            after: Begin behind this snapshot; by default, behind the newest one there is now.
            stop: Ends the wait when it is set.
            idle_seconds: Ends the wait when nothing was committed for so long.
            newest_only: Leave out snapshots that a newer one has followed already.
            longest_wait: Longest pause between two requests, in seconds.

        Raises:
            RunNotFoundError: The run was deleted meanwhile.
            LogReplacedError: Another run has taken its place: open it again.
            LogError: The log cannot be read.
            StoreError: The store refuses to be read.
        """
        number = after.number if after is not None else self._head()
        polling = Polling(stop, idle_seconds, newest_only, longest_wait)
        return follow(lambda: self._existing(self._log.poll()), polling, after=number)

    def _head(self) -> int:
        try:
            return self.refresh().head
        except RunNotFoundError:
            return self._log.run.head

    def _id(self, selector: str | int) -> str:
        return find_snapshot(self.refresh(), selector, url=self.url).id

    def _readable(self, identifier: str) -> Snapshot:
        run = self.state
        if cause := why_unreadable(run, identifier):
            raise SnapshotNotFoundError("read", f"{self.url}@{identifier}", cause, "Choose another one.")
        return run.snapshots[identifier]

    def _estimated_now(self) -> dt.datetime:
        run, here = self.state, dt.datetime.now(dt.UTC)
        return max(here, run.snapshots[run.newest].committed_at) if run.newest else here

    def _existing(self, run: Run) -> Run:
        if run.head == 0 or run.erased or (run.owner is not None and run.owner.is_deleted):
            cause = "the run was deleted" if run.owner else "there is no run log below it"
            raise RunNotFoundError("open", self.url, cause, "Check the URL.")
        return run

    def _dispose(
        self,
        selector: str | int,
        verb: str,
        disposition: Disposition,
        refused: Callable[[Run, str], str],
        without_operator: bool,
        dry_run: bool,
    ) -> RunChange:
        snapshot = self._id(selector)
        return self._change(
            verb,
            lambda run: requests.dispose(run, snapshot, disposition),
            refused=lambda run: refused(run, snapshot),
            outcome=RunChange(None, snapshot),
            without_operator=without_operator,
            dry_run=dry_run,
        )

    def _change(
        self,
        operation: str,
        compute: Callable[[Run], Body | None],
        *,
        refused: Callable[[Run], str] = lambda _: "",
        outcome: RunChange,
        without_operator: bool,
        dry_run: bool,
    ) -> RunChange:
        self.refresh()
        entry = append(
            self._log,
            operation,
            compute,
            snapshot=outcome.snapshot,
            refused=refused,
            without_operator=without_operator,
            dry_run=dry_run,
        )
        return replace(outcome, entry=entry)
