"""Evidence against a snapshot is found several times, each time over a fresh connection, before it is believed.

A bit that flips on the way says nothing about the stored object, and it can flip again: what is wrong in the same way
each time is wrong in the store. What is wrong in another way each time points at the network, a gateway or the memory
of this machine, and costs no snapshot its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from checkpoint_sidecar.core.errors import CorruptSnapshotError, UnreliableReadError
from checkpoint_sidecar.store.base import Reconnects, Store

READS = 3
"""How often the same bytes are read before they are believed to be damaged."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


def confirmed(store: Store, look: Callable[[], T], *, found: CorruptSnapshotError | None = None) -> T:
    """The result of ``look``, repeated over fresh connections while it finds evidence.

    Args:
        found: What was found already, if the first look was another one.

    Raises:
        CorruptSnapshotError: Each of ``READS`` looks found the same.
        UnreliableReadError: Each found something, and not always the same.
    """
    causes = [found.cause] if found else []
    while True:
        if causes and isinstance(store, Reconnects):
            store.reconnect()
        try:
            result = look()
        except CorruptSnapshotError as error:
            causes.append(error.cause)
            if len(causes) >= READS:
                if len(set(causes)) > 1:
                    raise _unreliable(error, causes) from error
                raise
        else:
            if causes:
                logger.warning("%s: what was read is whole after all; earlier reads said: %s", store.url, causes[-1])
            return result


def _unreliable(last: CorruptSnapshotError, causes: Sequence[str]) -> UnreliableReadError:
    return UnreliableReadError(
        last.operation,
        last.subject,
        f"each of {len(causes)} reads found something else wrong: {'; '.join(dict.fromkeys(causes))}",
        "Suspect the network, a gateway or the memory of this machine rather than the stored object.",
    )
