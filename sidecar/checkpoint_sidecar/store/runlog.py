"""A run's log in a store: reading on, and appending. What entries mean is in ``core``; here is only the I/O."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Callable

import tenacity

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import Span
from checkpoint_sidecar.core.errors import (
    LogError,
    ObjectExistsError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.log import Body, StoredEntry, encode, new_entry_id
from checkpoint_sidecar.core.replay import advance
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.compactions import replay_compactions, write_compaction
from checkpoint_sidecar.store.entries import get_entries, get_entry

_logger = logging.getLogger(__name__)


class RunLog:
    """One run's log, cached up to the last entry read. Safe from several threads.

    Args:
        store: Opened at the run's root.
        writer: Who appends, for the audit trail: ``"library 0.1.0"``.
        patience_seconds: How long an append with unknown outcome is retried before ``UnknownOutcomeError`` is raised;
            None for ever. Training waits for ever, because giving up would make it report a failure for a save that
            may yet land; the operator gives up and re-plans. A writer with patience also backs off after a lost race.
    """

    def __init__(self, store: Store, *, writer: str, patience_seconds: float | None = None) -> None:
        self.store = store
        self._writer = writer
        self._lock = threading.RLock()
        self._run = Run()
        self._compactions: frozenset[Span] = frozenset()
        self._opened = False
        self._polite = patience_seconds is not None
        stop = tenacity.stop_never if patience_seconds is None else tenacity.stop_after_delay(patience_seconds)
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
    def compactions(self) -> frozenset[Span]:
        """Those that the store held when the log was opened, and what ``compact`` has dealt with since."""
        return self._compactions

    def compact(self, span: Span) -> None:
        """Write a compaction that is due, so that the next reader opens the log faster. Needed for nothing else.

        Raises:
            LogError: The entries do not form a chain.
            StoreError: The store failed.
        """
        write_compaction(self.store, span)
        self._compactions |= {span}

    def refresh(self) -> Run:
        """Read what was appended since and return the current state.

        Costs one request when nothing is new. New entries are looked for by number, not by listing: a listing may be
        stale, a read of a key that was created is not.

        Raises:
            LogError: The log has a gap, a broken chain or an unreadable entry.
            StoreError: The store failed; the cached state is unchanged.
        """
        with self._lock:
            if not self._opened:
                self._open()
            while (entry := self._read(self._run.head + 1)) is not None:
                self._run = advance(self._run, [entry])
            return self._run

    def append(self, compute: Callable[[Run], Body | None]) -> StoredEntry | None:
        """Append what ``compute`` says for the current state.

        After a lost race for a number, ``compute`` is called again with the state that includes the winner, so it must
        derive the whole entry from its argument. It may raise to give up, or return None when there is nothing to
        write.

        Returns:
            The entry as stored, or None.

        Raises:
            UnknownOutcomeError: The patience ran out before the store told whether the entry was written. It may have
                been, or may be later: delete nothing on account of this.
            LogError: See ``refresh``; or the log holds a critical entry that this version does not know.
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
                occupant = self._occupy(run, entry_id, body)
                run = self._run = advance(run, [occupant])
                if occupant.id == entry_id:
                    return occupant
                lost += 1
                self._give_way(lost)
                run = self.refresh()

    def _check_writable(self, run: Run) -> None:
        if run.unknown_critical:
            raise LogError(
                "append to the run log",
                self.store.url,
                f"it holds a critical {run.unknown_critical} entry, which this version does not know",
                "Upgrade checkpoint-operator here; reading still works.",
            )

    def _occupy(self, run: Run, entry_id: str, body: Body) -> StoredEntry:
        """Put the entry at the next number unless it is taken, and return what is there: this entry or the winner.

        A request whose outcome is unknown may land later, at this number and no other. So once one was sent, the same
        bytes are put at the same number until something is seen there, and no other error is let out meanwhile: it
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

        def put_and_look() -> StoredEntry:
            nonlocal sent
            try:
                with contextlib.suppress(ObjectExistsError):
                    self.store.put_if_absent(key, data)
                sent = True
                occupant = self._read(number)
                cause = "the store says that the key is taken, and that there is nothing under it"
            except UnknownOutcomeError:
                sent = True
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
            if occupant is None:
                raise UnknownOutcomeError(
                    "append to the run log", f"{self.store.url}/{key}", f"it may have been written: {cause}"
                )
            return occupant

        return self._settle(put_and_look)

    def _give_way(self, lost: int) -> None:
        """After a lost race, a writer that may give up lets the others go first: training must win."""
        if self._polite:
            time.sleep(random.uniform(0, min(1.0, 0.05 * 2**lost)))  # noqa: S311 - jitter

    def _read(self, number: int) -> StoredEntry | None:
        entry = get_entry(self.store, number)
        return entry.decode() if entry else None

    def _open(self) -> None:
        """Replay the compactions, then what is listed after them; a gap among the entries surfaces in the fold."""
        run, self._compactions = replay_compactions(self.store)
        listed = self.store.list(layout.LOG_FOLDER, after=layout.log_key(run.head) if run.head else "")
        highest = max((layout.log_number(info.key) or 0 for info in listed), default=0)
        later = get_entries(self.store, range(run.head + 1, highest + 1))
        self._run = advance(run, (entry.decode() for entry in later))
        self._opened = True


def _warn(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _logger.warning("%s (try %d, trying again)", error, state.attempt_number)
