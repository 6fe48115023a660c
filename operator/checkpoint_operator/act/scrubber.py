"""Reads snapshots back slowly in the background to compare every checksum, as disks are scrubbed.

The plan lists the snapshots that are worth reading, newest first. The next pass takes the findings and writes them
into the log. Everything but the reading itself happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from checkpoint_operator.act.execute import verify
from checkpoint_operator.fairness.fair_queue import FairQueue
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.fairness.store_threads import run_in_thread
from checkpoint_operator.gather.redaction import working_on
from checkpoint_operator.model.observed import Key, ReadBack, ScrubFinding
from checkpoint_sidecar.core.errors import CheckpointError, UnreliableReadError
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.engine.verify import VerificationPass
from checkpoint_sidecar.store.base import Store

READERS = 2
"""Snapshots read at the same time, so that a huge one does not keep all others waiting."""

REST_SECONDS = 60.0
"""Delay from finding damage to the second check, so that one bad moment of the store does not count twice."""

RETRY_SECONDS = 600.0
"""Delay from a failure of the store to the next try, which starts from the first byte."""

SLOWEST = 512 * 1024
"""Bytes per second that a store must send after the first minute: a trickle would occupy a reader for weeks."""

STUCK_SECONDS = 600.0
"""A reading without progress for so long is abandoned."""

logger = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The snapshot no longer needs to be read."""


class _TooSlowError(Exception):
    """The store sends less than ``SLOWEST``, or nothing."""


@dataclass(frozen=True, slots=True)
class _ScrubRequest:
    snapshots: tuple[Snapshot, ...]
    store: Store
    release: Callable[[], None]


@dataclass(slots=True)
class _ScrubReading:
    """One snapshot being read, and its speed without the waits for the rate limit.

    Attributes:
        moved_at: When the last piece was requested.
    """

    snapshot: str
    moved_at: float
    stop: threading.Event = field(default_factory=threading.Event)
    amount: int = 0
    seconds: float = 0.0

    def wait_for(self, amount: int, limit: RateLimit) -> None:
        """Wait until the next piece may be read.

        Raises:
            _StoppedError, _TooSlowError: It must not be read.
        """
        self.seconds += time.monotonic() - self.moved_at
        if self.seconds > 60 and self.amount / self.seconds < SLOWEST:
            raise _TooSlowError(f"the store sent {self.amount} bytes in {self.seconds:.0f} s")
        self.moved_at = math.inf  # not stuck, but waiting for its turn
        if self.stop.wait(limit.reserve(amount)):
            raise _StoppedError
        self.amount += amount
        self.moved_at = time.monotonic()


class Scrubber:
    """Reads back requested snapshots, one of each Checkpoint at a time. Namespaces take turns.

    Args:
        limit: Bytes per second, over all Checkpoints.
        wake: Requests a pass over a Checkpoint with a finding.
    """

    def __init__(self, limit: RateLimit, *, wake: Callable[[Key], None], rest_seconds: float = REST_SECONDS) -> None:
        self._limit = limit
        self._wake = wake
        self._rest_seconds = rest_seconds
        self._wishes: dict[Key, _ScrubRequest] = {}
        self._findings: dict[Key, dict[str, ScrubFinding]] = {}
        self._readings: dict[Key, _ScrubReading] = {}
        self._rests_until: dict[Key, float] = {}
        self._troubles: dict[Key, ReadBack] = {}
        self._passes: dict[Key, VerificationPass] = {}
        self._queued: set[Key] = set()
        self._queue: FairQueue[Key] = FairQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False

    def start(self) -> None:
        """Start reading, in the running event loop."""
        self._running = True
        self._start_more()

    async def stop(self) -> None:
        """Stop reading at the next piece, and forget unfinished snapshots."""
        self._running = False
        for reading in self._readings.values():
            reading.stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def want(
        self,
        key: Key,
        snapshots: Sequence[Snapshot],
        store: Store | None,
        *,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Read back these snapshots of a Checkpoint in this order, and no others.

        Args:
            release: Called each time the reading of one ends, however it ends.
        """
        reading = self._readings.get(key)
        if reading is not None and reading.snapshot not in {snapshot.id for snapshot in snapshots}:
            reading.stop.set()
        unsettled = self._findings.get(key, {})
        unknown = tuple(snapshot for snapshot in snapshots if snapshot.id not in unsettled)
        if not unknown or store is None:
            self._wishes.pop(key, None)
            self._passes.pop(key, None)
            return
        self._wishes[key] = _ScrubRequest(unknown, store, release)
        rests = time.monotonic() < self._rests_until.get(key, float("-inf"))
        if reading is None and not rests and key not in self._queued:
            self._queued.add(key)
            self._queue.put(key, key.namespace, None)
            self._start_more()

    def state(self, key: Key) -> ReadBack:
        """Return which snapshot of a Checkpoint is being read, the last trouble, and the findings not settled yet."""
        reading = self._readings.get(key)
        return replace(
            self._troubles.get(key, ReadBack()),
            reading=reading.snapshot if reading else "",
            findings=tuple(self._findings.get(key, {}).values()),
        )

    def settle(self, key: Key, findings: Sequence[ScrubFinding]) -> None:
        """Drop findings that the log has, or no longer needs."""
        known = self._findings.get(key, {})
        for finding in findings:
            known.pop(finding.check.snapshot, None)
        if not known:
            self._findings.pop(key, None)

    def forget(self, key: Key) -> None:
        """Forget a Checkpoint that is gone."""
        self.want(key, (), None)
        self._findings.pop(key, None)
        self._rests_until.pop(key, None)
        self._troubles.pop(key, None)

    def _start_more(self) -> None:
        while self._running and len(self._tasks) < READERS:
            key = self._queue.take(lambda *_: True)
            if key is None:
                return
            self._queued.discard(key)
            wish = self._wishes.get(key)
            if wish is not None and key not in self._readings:
                task = asyncio.create_task(self._serve(key, wish), name=f"scrub {key}")
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start_more()

    async def _serve(self, key: Key, wish: _ScrubRequest) -> None:
        with working_on(key):
            await self._read(key, wish)

    async def _read(self, key: Key, wish: _ScrubRequest) -> None:
        snapshot = wish.snapshots[0]
        began = time.monotonic()
        reading = self._readings[key] = _ScrubReading(snapshot.id, began)
        same_pass = self._passes.setdefault(key, VerificationPass())

        def read() -> ScrubFinding:
            return verify(
                wish.store,
                snapshot,
                level="Checksums",
                before_read=lambda amount: reading.wait_for(amount, self._limit),
                same_pass=same_pass,
            )

        try:
            finding = await _while_it_moves(read, reading)
        except _StoppedError:
            logger.info("%s: stopped reading %s back: it is no longer needed", key, snapshot.id)
        except Exception as error:
            bug = None if isinstance(error, CheckpointError | _TooSlowError) else error
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
            wish.release()
        self._wake(key)

    def _rest(self, key: Key, seconds: float) -> None:
        """Read nothing of a Checkpoint for a while. Then request a pass, which lists again what to read."""
        self._rests_until[key] = time.monotonic() + seconds
        asyncio.get_running_loop().call_later(seconds, self._wake, key)


async def _while_it_moves(read: Callable[[], ScrubFinding], reading: _ScrubReading) -> ScrubFinding:
    """Return what a reading finds, unless it makes no progress."""
    task = asyncio.create_task(run_in_thread(read, seconds=math.inf))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=STUCK_SECONDS / 10)
            if not task.done() and time.monotonic() - reading.moved_at > STUCK_SECONDS:
                raise _TooSlowError(f"a request has not returned for {STUCK_SECONDS:.0f} s")
        return task.result()
    finally:
        reading.stop.set()
        task.cancel()
