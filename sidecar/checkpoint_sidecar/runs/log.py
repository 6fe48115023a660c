"""A run's log in a store: reads and appends entries. ``core`` has their meaning; this module does the I/O."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import tenacity

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import EntryRange, superseded, uncompacted
from checkpoint_sidecar.core.errors import (
    LogError,
    LogReplacedError,
    ObjectExistsError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.log import Body, StoredEntry, encode, new_entry_id
from checkpoint_sidecar.core.replay import advance, resume
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.compactions import list_compactions, replay_compactions, write_compaction
from checkpoint_sidecar.runs.entries import get_entries, get_entry
from checkpoint_sidecar.store.base import Store

UNREADABLE_SECONDS = 60.0
"""How long a taken number may hold an unreadable entry before the failure counts as permanent."""

POLLS_PER_PROOF = 4
_AHEAD = 8
_MOST_UNLISTED = 1000

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class AppendCounts:
    """What appends to a log met.

    Attributes:
        lost_races: How often another writer took the number of an entry.
        unknown_outcomes: How often a request that was to write an entry ended without a usable answer.
    """

    lost_races: int = 0
    unknown_outcomes: int = 0

    def take(self) -> AppendCounts:
        """Return the counts, and start again at zero."""
        taken = AppendCounts(self.lost_races, self.unknown_outcomes)
        self.lost_races -= taken.lost_races
        self.unknown_outcomes -= taken.unknown_outcomes
        return taken


class RunLog:
    """One run's log, cached up to the last entry read. Safe from several threads.

    It serves one run. If the log is emptied, or another run begins in its place, every call raises LogReplacedError
    from then on; to read the new log, open another RunLog.

    Args:
        store: Opened at the run's root.
        writer: The name of the appending program, for the audit trail: ``"library 0.1.0"``.
        timeout_seconds: How long an append with unknown outcome is retried before ``UnknownOutcomeError`` is raised;
            None for no limit. Training waits without limit, because giving up would make it report a failure
            for a save that may yet land; the operator gives up and re-plans. A writer with a timeout also backs off
            after a lost race.
        keep: Number of entries to keep in memory as they are read, for ``entries``.

    Attributes:
        counts: What the appends so far met.
    """

    def __init__(self, store: Store, *, writer: str, timeout_seconds: float | None = None, keep: int = 0) -> None:
        self.store = store
        self._writer = writer
        self._lock = threading.RLock()
        self._run = Run()
        self._compactions: frozenset[EntryRange] = frozenset()
        self._too_large: frozenset[EntryRange] = frozenset()
        self._opened = False
        self._polls = 0
        self._replaced: LogReplacedError | None = None
        self._tail: deque[StoredEntry] = deque(maxlen=keep)
        self.counts = AppendCounts()
        self._polite = timeout_seconds is not None
        stop = tenacity.stop_never if timeout_seconds is None else tenacity.stop_after_delay(timeout_seconds)
        self._settle = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnknownOutcomeError),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
            stop=stop,
            before_sleep=_warn,
            reraise=True,
        )

    @property
    def run(self) -> Run:
        """The state as of the last read; may be old."""
        return self._run

    @property
    def replaced(self) -> LogReplacedError | None:
        """The error that every call raises after this log was replaced; None until then."""
        return self._replaced

    @property
    def compactions(self) -> frozenset[EntryRange]:
        """Compactions that the store held when the log was opened, and those that ``compact`` has handled since."""
        return self._compactions | self._too_large

    def compact(self, span: EntryRange) -> None:
        """Write a compaction that is due, so that the next reader opens the log faster. Needed for nothing else.

        Those that longer ones had replaced before are deleted.

        Raises:
            LogError: The entries do not form a chain.
            StoreError: The store failed.
        """
        if not write_compaction(self.store, span, self._compactions):
            self._too_large |= {span}
            return
        known = self._compactions
        if superseded(known):
            # The store may have lost a longer one since: then the shorter one serves readers still.
            known &= list_compactions(self.store)
        if replaced := superseded(known):
            self.store.delete(each.key for each in replaced)
        self._compactions = (known - replaced) | {span}

    def entries(self, numbers: Sequence[int]) -> tuple[StoredEntry, ...]:
        """Return some entries, from memory if they are kept there, else from the store; missing ones are left out.

        Raises:
            LogError, StoreError: One cannot be read.
        """
        with self._lock:
            kept = {entry.number: entry for entry in self._tail}
        read = get_entries(self.store, [number for number in numbers if number not in kept])
        found = kept | {entry.number: entry.decode() for entry in read}
        return tuple(found[number] for number in numbers if number in found)

    def forget_entries(self) -> None:
        """Drop the entries that are kept in memory."""
        with self._lock:
            self._tail.clear()

    def refresh(self) -> Run:
        """Read what was appended since and return the current state.

        Costs one request when nothing is new. New entries are looked for by number, not by listing: a listing may be
        stale, a read of a key that was created is not.

        Raises:
            LogReplacedError: The log was emptied or replaced since it was read.
            LogError: The log has a gap, a broken chain or an unreadable entry.
            StoreError: The store failed; the cached state is unchanged.
        """
        with self._lock:
            self._check_replaced()
            if not self._opened:
                self._open()
            while (entry := self._read(self._run.head + 1)) is not None:
                self._advance(entry)
            return self._run

    def poll(self) -> Run:
        """Refresh cheaply, for frequent callers; now and then it also notices that the log is gone.

        Raises:
            LogReplacedError, LogError, StoreError: See ``refresh``.
        """
        with self._lock:
            run = self.refresh()
            self._polls += 1
            if self._polls % POLLS_PER_PROOF == 0:
                self.prove()
            return run

    def prove(self) -> None:
        """Check that the last entry read is still there, which takes one request.

        Raises:
            LogReplacedError: It is not.
            LogError, StoreError: It cannot be read.
        """
        with self._lock:
            self._check_replaced()
            run = self._run
            if run.head and not self._holds(run.head, run.head_digest):
                raise self._replace(f"entry {run.head} is gone, or is another one")

    def is_current(self) -> bool:
        """Return whether one listing shows the last entry read and none after it; reads those that it shows.

        Reads by number cannot tell a log that ends there from one that is gone.

        Raises:
            LogReplacedError: The last entry read is gone, or is another one.
            LogError: It or one after it cannot be read, or one between them is missing.
            StoreError: The store failed.
        """
        with self._lock:
            self._check_replaced()
            head = self._run.head
            numbers = self._numbers(after=head - 1)
            if head not in numbers:
                self.prove()  # raises, unless the listing is stale
            if (last := max(numbers, default=head)) > head:
                # Not left to ``refresh``, which ends before a gap: its caller would try again forever.
                self._run = self._read_up_to(self._run, last, numbers)
            return last <= head

    def append(self, compute: Callable[[Run], Body | None]) -> StoredEntry | None:
        """Append what ``compute`` says for the current state.

        After a lost race for a number, ``compute`` is called again with the state that includes the winner, so it must
        derive the whole entry from its argument. It may raise to give up, or return None when there is nothing to
        write.

        Returns:
            The entry as stored, or None.

        Raises:
            LogReplacedError: The log was emptied or replaced since it was read. Nothing was written.
            UnknownOutcomeError: The timeout passed before the store told whether the entry was written. It may have
                been, or may be later: delete nothing on account of this.
            LogError: See ``refresh``; or the log holds a critical entry that this version does not know; or it was
                emptied while the entry was written, or says that the number is taken and never shows by what.
            StoreError: The store failed before the entry can have reached it.
        """
        with self._lock:
            entry_id = new_entry_id()
            run = self.refresh()
            lost = 0
            while True:
                self._check_writable(run)
                body = compute(run)
                if body is None:
                    return None
                # An entry after one that is gone would begin a separate history, or break another one.
                self.prove()
                occupant = self._occupy(run, entry_id, body)
                run = self._advance(occupant)
                if occupant.id == entry_id:
                    return occupant
                lost += 1
                self.counts.lost_races += 1
                self._give_way(lost)
                run = self.refresh()

    def _check_writable(self, run: Run) -> None:
        if run.unknown_critical:
            raise LogError(
                "append to the run log",
                self.store.url,
                f"it holds a critical {run.unknown_critical} entry, which this version does not support",
                "Upgrade checkpoint-operator here. Reading still works.",
            )

    def _occupy(self, run: Run, entry_id: str, body: Body) -> StoredEntry:
        """Put the entry at the next number unless it is taken, and return the entry there: this one or the winner.

        A request whose outcome is unknown may land later, at this number and no other. So once one was sent, the same
        bytes are put at the same number until an entry is seen there. No other error is raised meanwhile: it
        would be read as "not written".
        """
        number = run.head + 1
        key = layout.log_key(number)
        data = encode(
            number=number,
            entry_id=entry_id,
            previous=run.head_digest,
            time=dt.datetime.now(dt.UTC),
            writer=self._writer,
            body=body,
        )
        sent = False
        unreadable_since: float | None = None

        def put_and_look() -> StoredEntry:
            nonlocal sent, unreadable_since
            try:
                with contextlib.suppress(ObjectExistsError):
                    self.store.put_if_absent(key, data)
                sent = True
                occupant = self._read(number)
                if occupant is not None and occupant.id == entry_id:
                    self._check_kept(run)
                if occupant is None and unreadable_since is None:
                    unreadable_since = time.monotonic()
                cause = "the store says that the key is taken, and that there is nothing under it"
            except UnknownOutcomeError:
                sent = True
                self.counts.unknown_outcomes += 1
                raise
            except StoreError as error:
                if not sent:
                    raise
                occupant, cause = None, error.cause
            except LogError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the request may have been sent before
                sent = True
                occupant, cause = None, f"{type(error).__name__}: {error}"
            if occupant is None and unreadable_since is not None:
                _check_readable(f"{self.store.url}/{key}", time.monotonic() - unreadable_since)
            if occupant is None:
                self.counts.unknown_outcomes += 1
                raise UnknownOutcomeError(
                    "append to the run log", f"{self.store.url}/{key}", f"it may have been written: {cause}"
                )
            return occupant

        return self._settle(put_and_look)

    def _give_way(self, lost: int) -> None:
        """Let others go first after a lost race, if this writer may give up: training must win."""
        if self._polite:
            time.sleep(random.uniform(0, min(1.0, 0.05 * 2**lost)))  # noqa: S311 - jitter

    def _read(self, number: int) -> StoredEntry | None:
        entry = get_entry(self.store, number)
        return entry.decode() if entry else None

    def _holds(self, number: int, digest: str) -> bool:
        entry = get_entry(self.store, number)
        return entry is not None and hashlib.sha256(entry.data).hexdigest() == digest

    def _check_kept(self, run: Run) -> None:
        """Raise an error unless the entry before the new one still exists: otherwise the new one belongs to no log.

        A first entry belongs to no log if another run began and was deleted meanwhile.
        """
        if run.head:
            kept, cause = self._holds(run.head, run.head_digest), f"entry {run.head} is gone, or is another one"
        else:
            kept, cause = not _begins_anew(self._numbers()), "another run began there, and was deleted"
        if not kept:
            self._replace(cause)
            raise LogError(
                "append to the run log",
                self.store.url,
                f"the log was emptied or replaced while entry {run.head + 1} was written: {cause}",
                "The new entry has no effect. Let this process exit.",
            )

    def _advance(self, entry: StoredEntry) -> Run:
        """Fold the next entry in.

        Raises:
            LogReplacedError: It belongs to another run.
            LogError: It does not continue the log.
        """
        known = self._run
        try:
            run = advance(known, [entry])
        except LogError:
            if known.head and not self._holds(known.head, known.head_digest):
                raise self._replace(f"entry {known.head} is gone, or is another one") from None
            raise
        if known.identity and run.identity != known.identity:
            raise self._replace(f"the run was deleted, and another one begins with entry {run.first}")
        self._run = run
        self._tail.append(entry)
        return run

    def _replace(self, cause: str) -> LogReplacedError:
        self._replaced = LogReplacedError(
            "use the run log",
            self.store.url,
            cause,
            "The run of this process was deleted or replaced: let this process exit.",
        )
        return self._replaced

    def _check_replaced(self) -> None:
        if self._replaced is not None:
            raise self._replaced

    def _open(self) -> None:
        """Replay the compactions, then what is listed after them; a gap among the entries surfaces in the fold."""
        self._compactions = list_compactions(self.store)
        try:
            run = replay_compactions(self.store, Run(), self._compactions)
        except LogError:
            # Another operator may have written them while the log was deleted; they do not describe the next run.
            run, first = Run(), self._first_of_next_run()
            if not first:
                raise
            self._compactions = frozenset(span for span in self._compactions if span.first >= first)
        numbers = self._numbers(after=run.head)
        highest = max(numbers, default=0)
        if not run.head and _begins_anew(numbers):
            run = self._after_deletion(numbers)
            run = self._read_up_to(run, uncompacted(run.head + 1), numbers)
            run = replay_compactions(self.store, run, self._compactions)
        self._run = self._read_up_to(run, highest, numbers)
        self._opened = True

    def _first_of_next_run(self) -> int:
        """Number of the tombstone or entry with which a run begins behind one that was deleted; 0 if none does."""
        numbers = self._numbers()
        if not _begins_anew(numbers):
            return 0
        try:
            return self._after_deletion(numbers).head
        except LogError:
            return 0

    def _numbers(self, *, after: int = 0) -> list[int]:
        listed = self.store.list(layout.LOG_FOLDER, after=layout.log_key(after) if after else "")
        return sorted(number for info in listed if (number := layout.log_number(info.key)))

    def _read_up_to(self, run: Run, last: int, listed: Sequence[int]) -> Run:
        wanted = _with_unlisted(run.head, [number for number in listed if run.head < number <= last])
        return advance(run, self._kept(entry.decode() for entry in get_entries(self.store, wanted)))

    def _kept(self, entries: Iterable[StoredEntry]) -> Iterator[StoredEntry]:
        for entry in entries:
            self._tail.append(entry)
            yield entry

    def _after_deletion(self, numbers: Sequence[int]) -> Run:
        """The state with which the newest run begins, where the entries of one that was deleted are missing.

        The log of a run is deleted after all its data. Below the tombstone may be what that has not come to, or what a
        stale writer added: it means nothing.
        """
        first, last = _start_of_last_stretch(numbers), numbers[-1]
        # Mostly the first one is it, so not many are read ahead.
        batches = (range(start, min(start + _AHEAD, last + 1)) for start in range(first, last + 1, _AHEAD))
        for entry in (entry for batch in batches for entry in get_entries(self.store, batch)):
            run = resume(entry.decode())
            if run is None:
                continue
            run = advance(run, [entry.decode()])
            deleted = run.owner is not None and run.owner.is_deleted
            return replace(run, erased=deleted, remnants=numbers[0] < entry.number)
        return Run()


def _with_unlisted(head: int, numbers: Sequence[int]) -> list[int]:
    """The listed numbers after ``head``, and those between them that a listing may have been too early for.

    No listing misses many: behind a wide gap is what no writer of ours wrote, or what is left of a damaged log.
    """
    wanted: list[int] = []
    for number in numbers:
        missing = number - head - 1
        wanted += range(head + 1, number) if missing <= _MOST_UNLISTED else ()
        wanted.append(number)
        head = number
    return wanted


def _begins_anew(numbers: Sequence[int]) -> bool:
    """Whether the entries that are there are what a deletion leaves and the next run, going by their numbers.

    An entry 1 that stands alone below them is that of a writer that was stopped before its first append, from before
    the run that was deleted until after.
    """
    if not numbers:
        return False
    return numbers[0] > 1 or (len(numbers) > 1 and numbers[1] == _start_of_last_stretch(numbers) > 2)


def _start_of_last_stretch(numbers: Sequence[int]) -> int:
    """The first of those numbers that lead up to the last one without a gap."""
    start = numbers[-1]
    for number in reversed(numbers):
        if start - number > 1:
            break
        start = number
    return start


def _check_readable(subject: str, seconds: float) -> None:
    if seconds >= UNREADABLE_SECONDS:
        raise LogError(
            "append to the run log",
            subject,
            f"for {seconds:.0f} s the store has answered both that the key is taken and that no object is under it",
            "Check that these credentials may read the object, and look for a proxy, a replication or a delete marker. "
            "The entry may have been written.",
        )


def _warn(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _logger.warning("%s (try %d, trying again)", error, state.attempt_number)
