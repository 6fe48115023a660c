"""Reading log entries by number, one or many."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import RawEntry
from checkpoint_sidecar.core.errors import LogError, ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.core.log import MAX_ENTRY_BYTES
from checkpoint_sidecar.store.base import Store

_PARALLEL_READS = 16
_BATCH = 256
"""How many entries wait in memory to be folded."""


def get_entry(store: Store, number: int) -> RawEntry | None:
    """Read the entry of this number; return None when it does not exist.

    Raises:
        LogError: The object under its key is not an entry.
        StoreError: The store failed.
    """
    key = layout.log_key(number)
    try:
        stored = store.get(key, max_bytes=MAX_ENTRY_BYTES)
    except ObjectNotFoundError:
        return None
    except ObjectTooLargeError as error:
        raise LogError(
            "read the log entry", f"{store.url}/{key}", error.cause, "Another writer's object is under the entry's key."
        ) from error
    return RawEntry(number, stored.data, stored.info.modified)


def get_entries(store: Store, numbers: Sequence[int]) -> Iterator[RawEntry]:
    """The entries of these numbers, read concurrently and given in order; numbers without an entry are left out.

    Raises:
        LogError, StoreError: See ``get_entry``.
    """
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-log") as pool:
        for start in range(0, len(numbers), _BATCH):
            found = pool.map(functools.partial(get_entry, store), numbers[start : start + _BATCH])
            yield from (entry for entry in found if entry is not None)
