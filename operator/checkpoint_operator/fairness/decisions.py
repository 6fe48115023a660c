"""Decisions about large runs, which must not hold up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from checkpoint_operator.model.observed import Observed

MANY_SNAPSHOTS = 500

T = TypeVar("T")


async def decided(decide: Callable[[Observed], T], observed: Observed) -> T:
    """Return what ``decide`` returns; about a run of many snapshots it is called in a thread."""
    if observed.run is None or len(observed.run.snapshots) < MANY_SNAPSHOTS:
        return decide(observed)
    return await asyncio.to_thread(decide, observed)
