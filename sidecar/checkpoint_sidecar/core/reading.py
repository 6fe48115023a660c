"""Readers outside of training announce what they read, so that its data is not deleted meanwhile. Pure.

An announcement ends by itself, by the store's clock: a reader that was killed keeps nothing for long.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Annotated

import msgspec

from checkpoint_sidecar.core.wire import Seconds

LONGEST_SECONDS = 7 * 86400.0
"""A longer announcement counts as this one."""
MOST_READERS = 64
"""Of one snapshot at a time; the newest count."""
_LEAST_SECONDS = 3600.0
_SLOWEST = 50e6
"""Bytes per second that a reader is expected to manage at least."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class SnapshotRead(msgspec.Struct, frozen=True, rename="camel"):
    """A reader outside of training reads the snapshot, for at most so many seconds. With 0, it has ended."""

    snapshot: _Name
    reader: _Name
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Reading:
    """An announced reader.

    Attributes:
        until: By the store's clock.
    """

    reader: str
    until: dt.datetime


def readings_after(known: tuple[Reading, ...], body: SnapshotRead, now: dt.datetime) -> tuple[Reading, ...]:
    """Return a snapshot's readers after an announcement that was stored at ``now``."""
    others = [each for each in known if each.reader != body.reader and each.until > now]
    if body.seconds:
        seconds = min(body.seconds, LONGEST_SECONDS)
        others.append(Reading(body.reader, now + dt.timedelta(seconds=seconds)))
    return tuple(others[-MOST_READERS:])


def seconds_for(size: int) -> float:
    """Return how long a reader of so many bytes announces itself for."""
    return min(_LEAST_SECONDS + size / _SLOWEST, LONGEST_SECONDS)
