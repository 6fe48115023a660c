"""A work queue: each key at most once at a time, bounded concurrency, back-off with jitter, looks at intervals."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits after failures: doubling from ``first`` to ``longest`` seconds, each drawn between half of it and all."""

    first: float = 1.0
    longest: float = 60.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (from 1)."""
        full = min(self.longest, self.first * 2.0 ** min(failures - 1, 32))
        return random.uniform(full / 2, full)  # noqa: S311 - spreads load, guards nothing


class Retry(Exception):  # noqa: N818 - it asks for something
    """Raised by the work to be called again after a back-off; the message says why."""


class WorkQueue(Generic[K]):
    """Calls ``work(key, thorough)`` for every key that asks for it.

    ``add`` asks for a thorough call; a key that asks again while it waits is called once, and one that asks while it is
    being worked on is called once more afterwards. ``work`` returns the seconds until the next look (a call that is
    not thorough), or None to forget the key; an exception is logged and followed by a thorough call after a back-off.

    Args:
        workers: How many keys are worked on at the same time.
        random_share: Intervals are shortened by up to this share, so that keys do not fall into step.
        spacing: Seconds between two calls for one key, however often it asks: the events of a thousand starting pods
            come one by one.
    """

    def __init__(
        self,
        work: Callable[[K, bool], Awaitable[float | None]],
        *,
        workers: int = 8,
        backoff: Backoff | None = None,
        random_share: float = 0.2,
        spacing: float = 1.0,
    ) -> None:
        self._work = work
        self._workers = workers
        self._backoff = backoff or Backoff()
        self._random_share = random_share
        self._spacing = spacing
        self._ended: dict[K, float] = {}
        self._wanted: dict[K, bool] = {}
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._busy: dict[K, float] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self) -> None:
        """Start the workers in the running event loop."""
        self._tasks = [asyncio.create_task(self._run(), name=f"reconcile-{n}") for n in range(self._workers)]

    async def stop(self, *, grace: float) -> None:
        """Start nothing new, whoever asks, and give what is being worked on ``grace`` seconds to end."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wanted.clear()
        deadline = time.monotonic() + grace
        while self._busy and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def add(self, key: K) -> None:
        """Ask for a thorough call as soon as a worker is free. Call it from the event loop's thread."""
        self._want(key, thorough=True)

    def oldest(self) -> float:
        """Seconds that the longest running call has taken so far."""
        return time.monotonic() - min(self._busy.values(), default=time.monotonic())

    @property
    def alive(self) -> bool:
        """Whether every worker is running."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def _want(self, key: K, *, thorough: bool) -> None:
        if self._stopping:
            return
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        waiting = key in self._wanted
        self._wanted[key] = thorough or self._wanted.get(key, False)
        # Who waits already has its place in the queue; who is being worked on gets one at the end of that.
        if not waiting and key not in self._busy:
            self._enqueue(key)

    def _enqueue(self, key: K) -> None:
        rest = self._ended.get(key, float("-inf")) + self._spacing - time.monotonic()
        if rest > 0:
            asyncio.get_running_loop().call_later(rest, self._ready.put_nowait, key)
        else:
            self._ready.put_nowait(key)

    def _later(self, key: K, seconds: float, *, thorough: bool) -> None:
        # Somebody may have asked during the call; that comes first and sets the next timer itself.
        if key in self._wanted:
            return
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, lambda: self._want(key, thorough=thorough))

    async def _run(self) -> None:
        while True:
            key = await self._ready.get()
            thorough = self._wanted.pop(key, None)
            if thorough is None:
                continue
            self._busy[key] = time.monotonic()
            try:
                await self._call(key, thorough)
            finally:
                del self._busy[key]
                self._ended[key] = time.monotonic()
                if key in self._wanted:
                    self._enqueue(key)
                elif key not in self._timers:
                    del self._ended[key]  # forgotten

    async def _call(self, key: K, thorough: bool) -> None:
        try:
            interval = await self._work(key, thorough)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            wait = self._backoff.wait(failures)
            if isinstance(error, Retry):
                logger.info("%s: %s; next try in %.0f s", key, error, wait)
            else:
                logger.exception("%s: the pass failed; next try in %.0f s", key, wait)
            self._later(key, wait, thorough=True)
            return
        self._failures.pop(key, None)
        if interval is not None:
            share = random.uniform(0, self._random_share)  # noqa: S311 - spreads load, guards nothing
            self._later(key, interval * (1 - share), thorough=False)
