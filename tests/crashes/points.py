"""Named points between two effects of a process on its store, and a store that crashes at one of them.

Everything a save, a restore, a commit or a purge does to the world is a call of a store, so the points need no hooks in
the product: the store that a process is given counts its calls, and at the point it kills a process or raises.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import psutil

from checkpoint_sidecar.core.errors import StoreError, UnknownOutcomeError
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, Store, StoredObject, Upload

Verb: TypeAlias = Literal["get", "read_into", "stat", "list", "put", "put_if_absent", "upload", "delete"]
When: TypeAlias = Literal["before", "during", "after"]
Mode: TypeAlias = Literal["kill rank 0", "kill rank 1", "exception", "bug"]

MODES: tuple[Mode, ...] = ("kill rank 0", "kill rank 1", "exception", "bug")
"""``exception`` is one that a real store raises, ``bug`` one that no code expects."""

_VICTIMS: dict[Mode, int] = {"kill rank 0": 0, "kill rank 1": 1}
_WRITES: frozenset[Verb] = frozenset({"put", "put_if_absent", "upload", "delete"})
_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Point:
    """One call of one process.

    Attributes:
        key: Regular expression found in the key, or in one of the keys of a deletion.
        when: ``during`` is between the parts and the end of an upload, or after the first deletion of several.
        entry: Kind of the log entry that ``put_if_absent`` creates.
        rank: Whose call.
        nth: The first such call, or a later one.
    """

    name: str
    verb: Verb
    key: str
    when: When
    entry: str = ""
    rank: int = 0
    nth: int = 1

    def __str__(self) -> str:
        return self.name


def appended(entry: str, when: When, *, nth: int = 1) -> Point:
    """Around the creation of a log entry; afterwards its reply is lost."""
    ordinal = f" number {nth}" if nth > 1 else ""
    return Point(f"{when} {entry}{ordinal} is appended", "put_if_absent", "^_log/", when, entry=entry, nth=nth)


def quick_mode(point: Point, number: int) -> Mode:
    """One mode for a point, so that points in a row have all: the rank's own death, an error, a death of the other."""
    other: Mode = "kill rank 0" if point.rank == 1 else "kill rank 1"
    own: Mode = "kill rank 1" if point.rank == 1 else "kill rank 0"
    return (own, "exception", own, other)[(number + number // 3) % 4]


@dataclass(frozen=True)
class Crash:
    """What happens at a point.

    Attributes:
        folder: Shared by the ranks, for their process ids, and for a mark that the point was reached.
        min_bytes: ``during`` an upload strikes when so much of the object was written.
        ready: Waited for before the crash; called with the key.
    """

    point: Point
    mode: Mode
    folder: Path
    min_bytes: int = 1
    ready: Callable[[str], bool] | None = None

    def wrap(self, rank: int, store: Store) -> Store:
        """The store of one rank."""
        (self.folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
        return _CrashingStore(store, self) if rank == self.point.rank else store

    @property
    def reached(self) -> bool:
        return (self.folder / "reached").exists()

    def strike(self, key: str) -> None:
        """Kill the victim, which may be this process, or raise.

        Raises:
            StoreError: The store refused the call.
            UnknownOutcomeError: The store did it, and its reply was lost.
            RuntimeError: In mode ``bug``.
        """
        self._wait_until(lambda: self.ready is None or self.ready(key))
        (self.folder / "reached").touch()
        if self.mode in _VICTIMS:
            victim = psutil.Process(int((self.folder / f"rank-{_VICTIMS[self.mode]}.pid").read_text()))
            victim.send_signal(signal.SIGKILL)
            victim.wait(_TIMEOUT_SECONDS)
            return
        if self.mode == "bug":
            raise RuntimeError(f"a bug {self.point.name}")
        lost = self.point.when == "after" and self.point.verb in _WRITES
        raise (UnknownOutcomeError if lost else StoreError)(self.point.verb, key, f"a failure {self.point.name}")

    def _wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the crash {self.point.name} was not ready in time")
            time.sleep(0.02)


class _CrashingStore:
    """Forwards to a store, and crashes once."""

    def __init__(self, store: Store, crash: Crash) -> None:
        self._store = store
        self._crash = crash
        self._calls = 0

    @property
    def url(self) -> str:
        return self._store.url

    def put(self, key: str, data: Buffer) -> None:
        with self._around("put", [key]):
            self._store.put(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        with self._around("put_if_absent", [key], data):
            self._store.put_if_absent(key, data)

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        with self._around("get", [key]):
            return self._store.get(key, max_bytes=max_bytes)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        with self._around("read_into", [key]):
            self._store.read_into(key, start, buffers)

    def stat(self, key: str) -> ObjectInfo | None:
        with self._around("stat", [key]):
            return self._store.stat(key)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        with self._around("list", [prefix]):
            return self._store.list(prefix, after=after)

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Upload]:
        with self._around("upload", [key]) as strikes, self._store.upload(key, size) as upload:
            yield _Upload(upload, self._crash, key) if strikes else upload

    def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        with self._around("delete", keys) as strikes:
            if strikes:
                self._store.delete(keys[:1])
                self._crash.strike(keys[0])
            self._store.delete(keys)

    @contextmanager
    def _around(self, verb: Verb, keys: Sequence[str], data: Buffer = b"") -> Iterator[bool]:
        """Strikes before or after the call; yields whether it is to be struck in its middle."""
        here = self._is_here(verb, keys, data)
        when = self._crash.point.when
        if here and when == "before":
            self._crash.strike(keys[0])
        yield here and when == "during"
        if here and when == "after":
            self._crash.strike(keys[0])

    def _is_here(self, verb: Verb, keys: Sequence[str], data: Buffer) -> bool:
        point = self._crash.point
        if verb != point.verb or not any(re.search(point.key, key) for key in keys):
            return False
        if point.entry and msgspec.json.decode(bytes(data))["kind"] != point.entry:
            return False
        self._calls += 1
        return self._calls == point.nth


class _Upload:
    def __init__(self, upload: Upload, crash: Crash, key: str) -> None:
        self._upload = upload
        self._crash = crash
        self._key = key
        self._lock = threading.Lock()
        self._written = 0

    @property
    def part_bytes(self) -> int:
        return self._upload.part_bytes

    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        self._upload.write_part(index, buffers)
        with self._lock:
            before = self._written
            self._written += sum(memoryview(buffer).nbytes for buffer in buffers)
            strikes = before < self._crash.min_bytes <= self._written
        if strikes:
            self._crash.strike(self._key)

    def complete(self) -> None:
        self._upload.complete()

    def abort(self) -> None:
        self._upload.abort()
