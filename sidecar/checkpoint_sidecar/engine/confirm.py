"""Confirms evidence against a snapshot with repeated reads, each over a fresh connection.

A bit that flips in transit says nothing about the stored object, and it can flip again. Evidence that is the same in
each read is damage in the store. Evidence that differs points at the network, a gateway or this machine's memory, and
is not held against the snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from checkpoint_sidecar.core.errors import CorruptSnapshotError, UnreliableReadError
from checkpoint_sidecar.store.base import Reconnects, Store

READS = 3
"""How many reads must find the same damage."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


def confirmed(store: Store, read: Callable[[], T], *, found: CorruptSnapshotError | None = None) -> T:
    """Return the result of ``read``, which is repeated over fresh connections while it finds evidence.

    Args:
        found: Evidence of an earlier read, which counts as the first.

    Raises:
        CorruptSnapshotError: Each of ``READS`` reads found the same damage.
        UnreliableReadError: Each found damage, but not always the same.
    """
    causes = [found.cause] if found else []
    while True:
        if causes and isinstance(store, Reconnects):
            store.reconnect()
        try:
            result = read()
        except CorruptSnapshotError as error:
            causes.append(error.cause)
            if len(causes) >= READS:
                if len(set(causes)) > 1:
                    raise _unreliable(error, causes) from error
                raise
        else:
            if causes:
                logger.warning("%s: a repeated read is intact; earlier reads found: %s", store.url, causes[-1])
            return result


def _unreliable(last: CorruptSnapshotError, causes: Sequence[str]) -> UnreliableReadError:
    return UnreliableReadError(
        last.operation,
        last.subject,
        f"{len(causes)} reads failed in different ways: {'; '.join(dict.fromkeys(causes))}",
        "Suspect the network, a gateway or the memory of this machine rather than the stored object.",
    )
