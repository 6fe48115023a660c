"""Reading the store's clock, by which grace periods are measured."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from dataclasses import dataclass

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.base import Store


@dataclass(frozen=True, slots=True)
class StoreClock:
    """A reading of the store's clock.

    Attributes:
        at: The store's time.
        read: This process's steady clock after the answer, in seconds, so that the derived time may be late but never
            early: nothing may be deleted before its grace period ends.
    """

    at: dt.datetime
    read: float

    def now(self) -> dt.datetime:
        """Return the store's time now, extrapolated with this process's steady clock."""
        return self.at + dt.timedelta(seconds=time.monotonic() - self.read)


def read_store_clock(store: Store, *, tidy: bool = True) -> StoreClock:
    """Read the store's clock, by writing an empty object and asking for its time.

    Args:
        tidy: Delete the object again; False where the store refuses deletions.

    Raises:
        StoreError: The store failed.
    """
    # A fresh key each time: where objects are locked, none can be replaced.
    key = f"{layout.PROBE_FOLDER}{secrets.token_hex(8)}/clock"
    store.put(key, b"")
    answered = time.monotonic()
    info = store.stat(key)
    if info is None:
        raise StoreError("read the store's clock from", key, "an object that was just written does not exist")
    if tidy:
        store.delete([key])
    return StoreClock(info.modified, answered)
