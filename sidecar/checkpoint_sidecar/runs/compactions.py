"""Reading and writing compactions of a run's log. What is in them, and which are due, is in ``core.compaction``."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Collection, Iterator

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.attempt import LOG_MISSING_HINT
from checkpoint_sidecar.core.compaction import (
    MAX_COMPACTION_BYTES,
    EntryRange,
    RawEntry,
    check_chain,
    encode,
    longest_from,
    span_of,
    unpack,
)
from checkpoint_sidecar.core.errors import (
    LogError,
    LogMissingError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
)
from checkpoint_sidecar.core.replay import advance
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.entries import get_entries, get_entry
from checkpoint_sidecar.store.base import Store

_UNUSABLE = (LogError, ObjectNotFoundError, ObjectTooLargeError)
logger = logging.getLogger(__name__)


def list_compactions(store: Store) -> frozenset[EntryRange]:
    """The spans of all compactions there are.

    Raises:
        StoreError: The store failed.
    """
    return frozenset(span for info in store.list(layout.COMPACTION_FOLDER) if (span := span_of(info.key)))


def replay_compactions(store: Store, run: Run, found: frozenset[EntryRange]) -> Run:
    """Return the state after as many entries beyond ``run`` as compactions hold.

    Entries are chained, each with the digest of the one before. So if the log itself holds the last one read
    under its number, all of them are genuine, whichever writer made the compactions.

    Raises:
        LogMissingError: There are compactions, and no log.
        LogError: The log lacks an entry that a compaction holds: it has lost objects.
        StoreError: The store failed.
    """
    usable, began = set(found), run
    while (span := longest_from(run.head + 1, usable)) is not None:
        try:
            run = advance(run, (entry.decode() for entry in _read(store, span)))
        except _UNUSABLE as error:
            # One that a longer one has replaced meanwhile is no damage.
            level = logging.INFO if isinstance(error, ObjectNotFoundError) else logging.WARNING
            logger.log(level, "ignoring %s/%s, reading the log without it: %s", store.url, span.key, error)
            usable.discard(span)
    if run.head > began.head and _digest(_last_entry(store, run.head)) != run.head_digest:
        logger.error("ignoring all compactions of %s: they end in an entry that the log does not hold", store.url)
        return began
    return run


def write_compaction(store: Store, span: EntryRange, existing: Collection[EntryRange] = ()) -> bool:
    """Write one compaction, and return whether it exists now. It does not if it would be too large.

    If another writer was faster, its copy serves as well.

    Args:
        existing: Compactions in the store, from which a longer one is put together.

    Raises:
        LogError: The log lacks one of the entries, or they do not form a chain.
        StoreError: The store failed.
    """
    data = encode(_gather(store, span, existing))
    if data is None:
        logger.info("not writing %s: it would be too large", span.key)
        return False
    with contextlib.suppress(ObjectExistsError):
        store.put_if_absent(span.key, data)
    return True


def _gather(store: Store, span: EntryRange, existing: Collection[EntryRange]) -> list[RawEntry]:
    parts = {each for each in existing if span.first <= each.first and each.last <= span.last and each != span}
    if parts:
        entries = list(_merged(store, span, parts))
        try:
            _check(store, span, entries)
        except LogError as error:
            logger.warning("compacting entries %d to %d from the log itself: %s", span.first, span.last, error)
        else:
            return entries
    entries = list(get_entries(store, range(span.first, span.last + 1)))
    _check(store, span, entries)
    return entries


def _merged(store: Store, span: EntryRange, parts: set[EntryRange]) -> Iterator[RawEntry]:
    """Yield the entries of a span from shorter compactions, and those between and behind them from the log."""
    number = span.first
    while number <= span.last:
        part = longest_from(number, parts)
        if part is None:
            next_part = min((each.first for each in parts if each.first > number), default=span.last + 1)
            yield from get_entries(store, range(number, next_part))
            number = next_part
            continue
        try:
            entries = list(_read(store, part))
        except _UNUSABLE as error:
            logger.warning("merging compactions without %s/%s: %s", store.url, part.key, error)
            parts.discard(part)
            continue
        yield from entries
        number = part.last + 1


def _check(store: Store, span: EntryRange, entries: list[RawEntry]) -> None:
    if len(entries) != span.size:
        raise LogError(
            "compact the run log into", span.key, f"{span.size - len(entries)} of {span.size} entries are missing"
        )
    check_chain(entries)
    if entries[-1].data != _last_entry(store, span.last).data:
        raise LogError("compact the run log into", span.key, "its last entry is not the one in the log")


def _read(store: Store, span: EntryRange) -> Iterator[RawEntry]:
    return unpack(store.get(span.key, max_bytes=MAX_COMPACTION_BYTES).data, span)


def _last_entry(store: Store, number: int) -> RawEntry:
    entry = get_entry(store, number)
    if entry is None and not any(layout.log_number(info.key) for info in store.list(layout.LOG_FOLDER)):
        raise LogMissingError(
            "read the run log",
            f"{store.url}/{layout.LOG_FOLDER}",
            "it is gone, and only compactions are left of it",
            LOG_MISSING_HINT,
        )
    if entry is None:
        raise LogError(
            "read the log entry",
            f"{store.url}/{layout.log_key(number)}",
            "it is missing although a compaction holds it",
            "The log lost objects, perhaps to a lifecycle rule of the bucket: restore them. "
            "If it never had this entry, delete the compactions.",
        )
    return entry


def _digest(entry: RawEntry) -> str:
    return hashlib.sha256(entry.data).hexdigest()
