"""Reading the entries of a run's log again, oldest first: the story of the run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from checkpoint_sidecar.core.compaction import MAX_COMPACTION_BYTES, SPANS, EntryRange, unpack
from checkpoint_sidecar.core.errors import LogError, ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.core.log import StoredEntry
from checkpoint_sidecar.runs.entries import get_entries
from checkpoint_sidecar.runs.log import RunLog

_UNUSABLE = (LogError, ObjectNotFoundError, ObjectTooLargeError)
logger = logging.getLogger(__name__)


def read_history(log: RunLog, *, after: int = 0) -> Iterator[StoredEntry]:
    """Yield the entries of the run that ``log`` has folded, oldest first, from compactions where there are some.

    Entries of an earlier run under the same prefix are left out. Memory is bounded by one compaction.

    Args:
        log: Refreshed at least once; entries appended since its last refresh are left out.
        after: Number of the last entry that the caller already knows; 0 for all.

    Raises:
        LogError: An entry cannot be read.
        StoreError: The store failed.
    """
    last, usable = log.run.head, set(log.compactions)
    number = max(log.run.first, after + 1, 1)
    while number <= last:
        span = _covering(number, usable)
        if span is None:
            # Up to where the next compaction can begin.
            end = min(-(-number // SPANS[0]) * SPANS[0], last)
            yield from (entry.decode() for entry in get_entries(log.store, range(number, end + 1)))
        else:
            try:
                data = log.store.get(span.key, max_bytes=MAX_COMPACTION_BYTES).data
                part = [entry.decode() for entry in unpack(data, span) if number <= entry.number <= last]
            except _UNUSABLE as error:
                # A compaction is optional: the log itself holds the same entries.
                logger.warning("ignoring %s/%s: %s", log.store.url, span.key, error)
                usable.discard(span)
                continue
            yield from part
            end = span.last
        number = end + 1


def _covering(number: int, usable: Collection[EntryRange]) -> EntryRange | None:
    """Return the compaction to read for this entry: the largest that begins there, else the smallest that holds it."""
    holding = [span for span in usable if span.first <= number <= span.last]
    beginning = [span for span in holding if span.first == number]
    if beginning:
        return max(beginning, key=lambda span: span.size)
    return min(holding, key=lambda span: span.size, default=None)
