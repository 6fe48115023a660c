"""Reading snapshots back in the background, slowly, to compare every checksum: what disks call scrubbing.

The plan says what of a Checkpoint is worth reading, newest first; what is found is handed to the next pass, which
writes it into the log. Everything but the reading itself happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from checkpoint_operator.execute import verify
from checkpoint_operator.limits import RateLimit
from checkpoint_operator.model import Finding, Key, ReadBack
from checkpoint_sidecar.core.errors import CheckpointError, UnreliableReadError
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.store.base import Store

READERS = 2
"""How many snapshots are read at the same time, so that a huge one does not keep all the others waiting."""

REST_SECONDS = 60.0
"""From damage to the second look at it, so that what was found twice was not one bad moment of the store."""

RETRY_SECONDS = 600.0
"""From a failure of the store to the next try, which begins with the first byte."""

logger = logging.getLogger(__name__)


class _StoppedError(Exception):
    """Nobody wants to know any more."""


@dataclass(frozen=True, slots=True)
class _Wish:
    snapshots: tuple[Snapshot, ...]
    store: Store


@dataclass(frozen=True, slots=True)
class _Reading:
    snapshot: str
    stop: threading.Event


class Scrubber:
    """Reads back what Checkpoints want read, one snapshot of each at a time, those that waited longest first.

    Args:
        limit: Bytes per second, over all Checkpoints.
        wake: Asks for a pass over a Checkpoint about which something was found.
    """

    def __init__(self, limit: RateLimit, *, wake: Callable[[Key], None], rest_seconds: float = REST_SECONDS) -> None:
        self._limit = limit
        self._wake = wake
        self._rest_seconds = rest_seconds
        self._wishes: dict[Key, _Wish] = {}
        self._findings: dict[Key, dict[str, Finding]] = {}
        self._readings: dict[Key, _Reading] = {}
        self._rests_until: dict[Key, float] = {}
        self._troubles: dict[Key, ReadBack] = {}
        self._queued: set[Key] = set()
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="scrub")

    def start(self) -> None:
        """Start reading, in the running event loop."""
        self._tasks = [asyncio.create_task(self._serve(), name=f"scrub-{n}") for n in range(READERS)]

    async def stop(self) -> None:
        """Stop reading at the next piece; what was read of an unfinished snapshot is forgotten."""
        for reading in self._readings.values():
            reading.stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether nothing has gone wrong with the reading itself."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def want(self, key: Key, snapshots: Sequence[Snapshot], store: Store | None) -> None:
        """Read back these snapshots of a Checkpoint, the first one first, and no other ones any more."""
        reading = self._readings.get(key)
        if reading is not None and reading.snapshot not in {snapshot.id for snapshot in snapshots}:
            reading.stop.set()
        unsettled = self._findings.get(key, {})
        unknown = tuple(snapshot for snapshot in snapshots if snapshot.id not in unsettled)
        if not unknown or store is None:
            self._wishes.pop(key, None)
            return
        self._wishes[key] = _Wish(unknown, store)
        rests = time.monotonic() < self._rests_until.get(key, float("-inf"))
        if reading is None and not rests and key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    def findings(self, key: Key) -> tuple[Finding, ...]:
        """What was found and is not settled yet."""
        return tuple(self._findings.get(key, {}).values())

    def state(self, key: Key) -> ReadBack:
        """What is being read of a Checkpoint, and what is in the way."""
        reading = self._readings.get(key)
        return replace(self._troubles.get(key, ReadBack()), reading=reading.snapshot if reading else "")

    def settle(self, key: Key, findings: Sequence[Finding]) -> None:
        """The log has these findings, or needs them no more."""
        known = self._findings.get(key, {})
        for finding in findings:
            known.pop(finding.check.snapshot, None)
        if not known:
            self._findings.pop(key, None)

    def forget(self, key: Key) -> None:
        """The Checkpoint is gone."""
        self.want(key, (), None)
        self._findings.pop(key, None)
        self._rests_until.pop(key, None)
        self._troubles.pop(key, None)

    async def _serve(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            wish = self._wishes.get(key)
            if wish is not None and key not in self._readings:
                await self._read(key, wish)

    async def _read(self, key: Key, wish: _Wish) -> None:
        snapshot = wish.snapshots[0]
        reading = self._readings[key] = _Reading(snapshot.id, threading.Event())
        began = time.monotonic()

        def wait_for(amount: int) -> None:
            if reading.stop.wait(self._limit.reserve(amount)):
                raise _StoppedError

        def read() -> Finding:
            return verify(wish.store, snapshot, level="Checksums", before_read=wait_for)

        try:
            finding = await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except _StoppedError:
            logger.info("%s: stopped reading %s back: it is not needed any more", key, snapshot.id)
        except Exception as error:
            bug = None if isinstance(error, CheckpointError) else error
            logger.warning("%s: reading %s back failed, next try later: %s", key, snapshot.id, error, exc_info=bug)
            self._troubles[key] = ReadBack(trouble=str(error), unreliable=isinstance(error, UnreliableReadError))
            self._rest(key, RETRY_SECONDS)
        else:
            self._troubles.pop(key, None)
            outcome = "matches" if finding.check.passed else f"is damaged ({finding.check.evidence})"
            logger.info("%s: %s %s, read in %.0f s", key, snapshot.id, outcome, time.monotonic() - began)
            if not finding.check.passed:
                self._rest(key, self._rest_seconds)
            if key in self._wishes:
                self._findings.setdefault(key, {})[snapshot.id] = finding
        finally:
            del self._readings[key]
        self._wake(key)

    def _rest(self, key: Key, seconds: float) -> None:
        """Read nothing of a Checkpoint for a while, and then ask for a pass, which says again what it wants."""
        self._rests_until[key] = time.monotonic() + seconds
        asyncio.get_running_loop().call_later(seconds, self._wake, key)
