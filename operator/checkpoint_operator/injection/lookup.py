"""Checkpoints by name, as the pods that are created need them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from checkpoint_operator.injection.pods import Body
from checkpoint_operator.model.observed import Key

REMEMBER_SECONDS = 1.0
"""How long an answer is used again: as stale as the API server's own cache for policies may be."""
MOST_REMEMBERED = 1024

Read = Callable[[Key], Awaitable[dict[str, Any] | None]]


class Lookup:
    """Reads a Checkpoint when a pod of it is created. The pods of a gang, created at once, share one read.

    It does not watch: a watch would show each status that the operator writes, all the time, for a few pods a day. That
    a Checkpoint is missing, or not usable yet, is not remembered: a pod is often created right after it.
    """

    def __init__(self, read: Read, *, clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._known: dict[Key, tuple[float, Body]] = {}
        self._reading: dict[Key, asyncio.Task[Body | None]] = {}

    async def find(self, key: Key, usable: Callable[[Body | None], bool]) -> Body | None:
        """Return the Checkpoint: a remembered one only if it is usable, else one read after this call.

        Raises:
            KubeError: It could not be read.
        """
        read_at, known = self._known.get(key, (0.0, None))
        if known is not None and self._clock() - read_at < REMEMBER_SECONDS and usable(known):
            return known
        shared = key in self._reading
        found = await self._current(key)
        if shared and not usable(found):
            # That read may have begun before the Checkpoint was created; the next one begins now.
            found = await self._current(key)
        return found

    async def _current(self, key: Key) -> Body | None:
        if key not in self._reading:
            task = asyncio.create_task(self._fetch(key))
            self._reading[key] = task
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        # One pod that is given up must not end the read of the others.
        return await asyncio.shield(self._reading[key])

    async def _fetch(self, key: Key) -> Body | None:
        begun = self._clock()
        found = await self._read(key)
        self._known.pop(key, None)
        if found is not None:
            self._known[key] = begun, found
        while len(self._known) > MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        return found
