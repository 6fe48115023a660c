"""A work queue: each key at most once at a time, namespaces in turns, back-off with jitter, polls at intervals."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from checkpoint_operator.fairness.fair_queue import FairQueue
from checkpoint_operator.fairness.slots import Slots, Target, TenantSlot

logger = logging.getLogger(__name__)


class HasNamespace(Hashable, Protocol):
    """A key. Namespaces are served in turns."""

    @property
    def namespace(self) -> str: ...


K = TypeVar("K", bound=HasNamespace)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits after failures: doubling from ``first`` to ``longest`` seconds, each drawn between half of it and all."""

    first: float = 1.0
    longest: float = 60.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (from 1)."""
        full = min(self.longest, self.first * 2.0 ** min(failures - 1, 32))
        return random.uniform(full / 2, full)  # noqa: S311 - spreads load, guards nothing


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """How a call ended, and when the next call for its key is due.

    Attributes:
        seconds: Until the next call. None means never, or after a failure that the back-off decides.
        failure: Why the call failed, or empty. After a failure the next call is thorough.
        waits_for: The store that had no room for the call. The next one is due once it has.
    """

    seconds: float | None = None
    failure: str = ""
    waits_for: Target | None = None


class WorkQueue(Generic[K]):
    """Calls ``work(key, thorough, slot)`` for every key that asks for it.

    ``add`` asks for a thorough call; a key that asks again while it waits is called once, and one that asks while it is
    being worked on is called once more afterwards. ``work`` returns a ``CallOutcome``: when to poll next (a
    call that is not thorough), or never. A failure or an exception is logged and followed by a thorough call.

    Namespaces take turns, and within a namespace stores do; ``slots`` says how many calls there may be at a time.

    Args:
        random_share: Intervals are shortened by up to this share, so that keys do not fall into step.
        spacing: Seconds between two calls for one key, however often it asks: the events of a thousand starting pods
            come one by one.
    """

    def __init__(
        self,
        work: Callable[[K, bool, TenantSlot], Awaitable[CallOutcome]],
        *,
        slots: Slots | None = None,
        backoff: Backoff | None = None,
        random_share: float = 0.2,
        spacing: float = 1.0,
    ) -> None:
        self._work = work
        self._slots = slots or Slots()
        self._slots.freed = self._start_more
        self._backoff = backoff or Backoff()
        self._random_share = random_share
        self._spacing = spacing
        self._ended: dict[K, float] = {}
        self._wanted: dict[K, bool] = {}
        self._ready: FairQueue[K] = FairQueue()
        self._targets: dict[K, Target] = {}
        self._busy: dict[K, asyncio.Task[None]] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._running = self._stopped = self._starting = False

    def start(self) -> None:
        """Start calling, in the running event loop."""
        self._running = True
        self._start_more()

    async def stop(self, *, grace: float) -> None:
        """Start nothing new, and wait up to ``grace`` seconds for the calls that run."""
        self._running, self._stopped = False, True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wanted.clear()
        self._ready.clear()
        if not self._busy:
            return
        _, late = await asyncio.wait(self._busy.values(), timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def add(self, key: K) -> None:
        """Request a thorough call as soon as possible. Call this in the event loop's thread."""
        self._want(key, thorough=True)

    def at(self, target: Target) -> list[K]:
        """Return the keys that use this store."""
        return [key for key, known in self._targets.items() if known == target]

    def _want(self, key: K, *, thorough: bool) -> None:
        if self._stopped:
            return
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        waiting = key in self._wanted
        self._wanted[key] = thorough or self._wanted.get(key, False)
        # A waiting key has its place in the queue. A busy key gets one when its call ends.
        if not waiting and key not in self._busy:
            self._enqueue(key)

    def _enqueue(self, key: K) -> None:
        rest = self._ended.get(key, float("-inf")) + self._spacing - time.monotonic()
        if rest > 0:
            asyncio.get_running_loop().call_later(rest, self._put, key)
        else:
            self._put(key)

    def _put(self, key: K) -> None:
        target = self._targets.get(key)
        self._ready.put(key, key.namespace, target)
        if self._slots.room(key.namespace, target) and not self._starting:
            # Not at once, so that the requests of one moment become one call.
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start_more)

    def _start_more(self) -> None:
        self._starting = False
        while self._running and (key := self._ready.take(self._has_room)) is not None:
            thorough = self._wanted.pop(key, None)
            if thorough is not None and key not in self._busy:
                slot = self._slots.take(key.namespace, self._targets.get(key))
                self._busy[key] = asyncio.create_task(self._run(key, thorough, slot), name=f"reconcile {key}")

    def _has_room(self, lane: Hashable, group: Hashable) -> bool:
        return self._slots.room(str(lane), group)

    def _later(self, key: K, seconds: float, *, thorough: bool) -> None:
        # A request that came during the call goes first, and sets the next timer itself.
        if key in self._wanted or self._stopped:
            return
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, lambda: self._want(key, thorough=thorough))

    async def _run(self, key: K, thorough: bool, slot: TenantSlot) -> None:
        try:
            await self._call(key, thorough, slot)
        finally:
            del self._busy[key]
            self._ended[key] = time.monotonic()
            if key in self._wanted:
                self._enqueue(key)
            elif key not in self._timers:
                self._forget(key)
            slot.release()

    async def _call(self, key: K, thorough: bool, slot: TenantSlot) -> None:
        try:
            outcome = await self._work(key, thorough, slot)
        except asyncio.CancelledError:
            raise
        except BaseException:  # a client's panic is not an Exception; the other keys must continue
            logger.exception("%s: the pass failed", key)
            outcome = CallOutcome(failure="the pass failed")
        if outcome.waits_for is not None:
            self._targets[key] = outcome.waits_for
            self._wanted[key] = thorough or self._wanted.get(key, False)
            return
        if outcome.failure:
            self._retry(key, outcome.failure, outcome.seconds)
        else:
            self._failures.pop(key, None)
            if outcome.seconds is not None:
                share = random.uniform(0, self._random_share)  # noqa: S311 - spreads load, guards nothing
                self._later(key, outcome.seconds * (1 - share), thorough=False)
        if slot.target is not None:
            self._targets[key] = slot.target

    def _retry(self, key: K, why: str, seconds: float | None) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        wait = self._backoff.wait(failures) if seconds is None else seconds
        logger.info("%s: %s; next try in %.0f s", key, why, wait)
        self._later(key, wait, thorough=True)

    def _forget(self, key: K) -> None:
        for known in (self._ended, self._failures, self._targets):
            known.pop(key, None)
