"""Budgets of one pass (time, requests, listed objects, bytes) and of the memory that all passes share.

A store belongs to a tenant, so the sizes that it reports cannot be trusted.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from checkpoint_operator.model.outcome import BudgetError
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.errors import ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.store.base import (
    Buffer,
    KeepsUnfinished,
    ObjectInfo,
    Store,
    StoredObject,
    UnfinishedUpload,
    Upload,
)
from checkpoint_sidecar.store.common.parts import part_bytes_for

MIB = 1024 * 1024

OBSERVE_SECONDS = 60.0
"""Time limit for observing a run, which usually takes less than a second."""

ACTION_SECONDS = 120.0
"""Time limit for one action, such as deleting a snapshot, without the waits for the rate limit."""

SMALL_BYTES = MIB
"""Objects up to this size are read without a reservation."""

MEMORY_BYTES = 96 * MIB
"""Memory for large objects and what they decode to, shared by all passes."""

LOG_BYTES = 16 * MIB
ALL_LOG_BYTES = 96 * MIB
"""Limits for the run log of one Checkpoint, some 30,000 entries, and for all logs longer than a megabyte."""

LEAST_PAGE = 100
"""Each page of a listing counts as at least this many objects, so that endless empty pages end too."""

_BYTES_PER_STRUCT = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Budget between one ``Meter.begin`` and the next.

    Attributes:
        objects: Listed, over all listings.
        data: Bytes read.
    """

    requests: int = 100_000
    objects: int = 200_000
    data: int = 2048 * MIB


READING = Limits(requests=2**62, data=2**62)
"""For reading back in the background, which has a rate limit and may take days."""


class MemoryPool:
    """Memory for large objects and long logs, shared by all passes. Thread-safe."""

    def __init__(self, total: int = MEMORY_BYTES) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()
        self._logs: weakref.WeakKeyDictionary[Meter, int] = weakref.WeakKeyDictionary()

    def note_log(self, meter: Meter, size: int) -> Meter | None:
        """Note the size of a meter's log. If all logs together are too large, return the meter of the largest."""
        if size <= SMALL_BYTES:
            return None
        with self._changed:
            self._logs[meter] = size
            if sum(self._logs.values()) <= ALL_LOG_BYTES:
                return None
            longest = max(self._logs, key=lambda each: self._logs[each])
            del self._logs[longest]
            return longest

    def reserve(self, amount: int, *, seconds: float) -> bool:
        """Take ``amount``, waiting for others to release theirs; False when that took longer than ``seconds``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= amount, timeout=max(0.0, seconds)):
                return False
            self._free -= amount
            return True

    def release(self, amount: int) -> None:
        """Return ``amount`` to the pool."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()


class Meter:
    """Counts what the passes over one Checkpoint cost; ``begin`` starts anew. Thread-safe.

    Args:
        subject: What errors name.
        limits: None for no limits.
        memory: Shared by all meters.
    """

    def __init__(
        self,
        subject: str,
        *,
        limits: Limits | None = None,
        memory: MemoryPool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subject = subject
        self._limits = limits
        self._memory = memory or MemoryPool()
        self._clock = clock
        self._lock = threading.Lock()
        self._reserved = 0
        self._log_bytes = 0
        self._closed = self._revoked = False
        self.begin()

    def begin(self, seconds: float = OBSERVE_SECONDS) -> None:
        """Start counting anew. Large objects that were read are no longer in use."""
        with self._lock:
            self._began = self._clock()
            self._seconds = seconds
            self._requests = self._objects = self._data = 0
        self.free()

    def pause(self, seconds: float) -> None:
        """Do not count these seconds: the operator waits, not the store."""
        with self._lock:
            self._seconds += seconds

    def close(self) -> None:
        """Refuse all further requests: the call that still runs was abandoned."""
        with self._lock:
            self._closed = True
        self.free()

    def revoke(self) -> None:
        """Refuse all further requests: the log is too long to keep beside the others."""
        self._revoked = True

    def free(self) -> None:
        """Release the memory of large objects that were read."""
        with self._lock:
            reserved, self._reserved = self._reserved, 0
        self._memory.release(reserved)

    def request(self) -> None:
        """Count a request, before it is made.

        Raises:
            BudgetError: The budget allows no more requests.
        """
        with self._lock:
            self._requests += 1
            self._check()

    def listed(self, count: int) -> None:
        """Count a page of a listing, after it was read.

        Raises:
            BudgetError: The budget allows no further page.
        """
        with self._lock:
            self._objects += max(count, LEAST_PAGE)
            self._requests += 1
            limits = self._limits
            if limits is not None and self._objects > limits.objects:
                raise BudgetError(
                    "list the objects below",
                    self._subject,
                    f"there are more than {limits.objects:,}",
                    "Use a separate prefix for each run. If this prefix holds one run, its store lists without end.",
                    reason=Reason.LISTING_TOO_LONG,
                )
            self._check()

    def read(self, key: str, count: int) -> None:
        """Count the bytes of an object, after it was read.

        Raises:
            BudgetError: The budget is exceeded.
        """
        with self._lock:
            self._data += count
            if key.startswith((layout.LOG_FOLDER, layout.COMPACTION_FOLDER)):
                self._log_bytes += count
            limits = self._limits
            if limits is None:
                return
            if self._log_bytes > LOG_BYTES:
                self._revoked = True
            longest = self._memory.note_log(self, self._log_bytes)
            if longest is not None:
                longest.revoke()
            self._check()

    def reserve(self, key: str, amount: int) -> None:
        """Reserve memory for a large object, before it is read or decoded, until ``free``.

        Raises:
            BudgetError: The object exceeds the whole pool, or other passes did not release their memory in time.
        """
        if self._limits is None:
            return
        operation, subject = "read", f"{self._subject}/{key}"
        if self._reserved + amount > self._memory.total:
            cause = f"it takes {amount // MIB} MiB of memory, more than {self._memory.total // MIB} MiB"
            hint = "No snapshot of a real model has such an object: check which program wrote it."
            raise BudgetError(operation, subject, cause, hint, reason=Reason.OBJECT_TOO_LARGE)
        if not self._memory.reserve(
            amount, seconds=min(OBSERVE_SECONDS, self._seconds - (self._clock() - self._began))
        ):
            cause = f"the operator had no {amount // MIB} MiB of memory for it in time"
            raise BudgetError(operation, subject, cause, "The operator tries again.", reason=Reason.OBJECT_TOO_LARGE)
        with self._lock:
            self._reserved += amount

    def _check(self) -> None:
        limits, elapsed = self._limits, self._clock() - self._began
        if limits is None:
            return
        if self._revoked:
            raise BudgetError(
                "read the run log",
                self._subject,
                f"it has {self._log_bytes // MIB} MiB; the operator keeps {LOG_BYTES // MIB} MiB of one, and "
                f"{ALL_LOG_BYTES // MIB} MiB of all long ones",
                "Continue with a new Checkpoint at another prefix. If the run is shorter than that, the store invents "
                "entries.",
                reason=Reason.LOG_TOO_LONG,
            )
        cause = ""
        if self._closed or elapsed > self._seconds:
            cause = f"{self._requests:,} requests took more than {self._seconds:.0f} s"
        elif self._requests > limits.requests:
            cause = f"a pass took more than {limits.requests:,} requests"
        elif self._data > limits.data:
            cause = f"a pass read more than {limits.data // MIB:,} MiB"
        if cause:
            hint = "Each pass continues where the last one ended. If this error stays, the store is too slow."
            raise BudgetError("use the store", self._subject, cause, hint, reason=Reason.STORE_TOO_SLOW)


class MeteredStore:
    """A ``Store`` that counts its calls."""

    def __init__(self, inner: Store, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    @property
    def url(self) -> str:
        return self._inner.url

    def put(self, key: str, data: Buffer) -> None:
        self._meter.request()
        self._inner.put(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        self._meter.request()
        self._inner.put_if_absent(key, data)

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        self._meter.request()
        try:
            stored = self._inner.get(key, max_bytes=min(max_bytes, SMALL_BYTES))
        except ObjectTooLargeError:
            if max_bytes <= SMALL_BYTES:
                raise
            return self._get_large(key, max_bytes)
        self._meter.read(key, len(stored.data))
        return stored

    def _get_large(self, key: str, max_bytes: int) -> StoredObject:
        self._meter.request()
        info = self._inner.stat(key)
        if info is None:
            raise ObjectNotFoundError("read", f"{self.url}/{key}", "it was deleted while it was read")
        if info.size > max_bytes:
            raise ObjectTooLargeError("read", f"{self.url}/{key}", f"it has {info.size} bytes, more than {max_bytes}")
        self._meter.reserve(key, 2 * info.size)
        self._meter.request()
        stored = self._inner.get(key, max_bytes=info.size)
        # What JSON decodes to is larger than its text where there are many small objects in it.
        self._meter.reserve(key, stored.data.count(b"{") * _BYTES_PER_STRUCT)
        self._meter.read(key, len(stored.data))
        return stored

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self._meter.request()
        self._inner.read_into(key, start, buffers)
        self._meter.read(key, sum(buffer.nbytes for buffer in buffers))

    def stat(self, key: str) -> ObjectInfo | None:
        self._meter.request()
        return self._inner.stat(key)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        self._meter.request()
        return self._inner.list(prefix, after=after)

    def upload(self, key: str, size: int) -> AbstractContextManager[Upload]:
        if size > SMALL_BYTES:
            # While one part is sent, the next one is read into a second buffer.
            self._meter.reserve(key, 2 * min(size, part_bytes_for(size)))
        self._meter.request()
        return self._inner.upload(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        self._meter.request()
        self._inner.delete(keys)


class _MeteredKeeping(MeteredStore):
    """A ``MeteredStore`` over a store that keeps unfinished uploads."""

    def __init__(self, inner: Store, meter: Meter) -> None:
        super().__init__(inner, meter)
        assert isinstance(inner, KeepsUnfinished)
        self._keeping: KeepsUnfinished = inner

    def unfinished(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        self._meter.request()
        return self._keeping.unfinished(prefix)

    def discard(self, upload: UnfinishedUpload) -> None:
        self._meter.request()
        self._keeping.discard(upload)


def metered(store: Store, meter: Meter) -> MeteredStore:
    """The store, with its calls counted."""
    return _MeteredKeeping(store, meter) if isinstance(store, KeepsUnfinished) else MeteredStore(store, meter)
