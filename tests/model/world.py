"""One bucket with its clock, the connections of actors to it, and the judge that checks every object as it lands."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar

import pytest
import tenacity

from checkpoint_operator.act import scrubber
from checkpoint_operator.gather import memory, run_store
from checkpoint_sidecar.attempt import session
from checkpoint_sidecar.core import compaction, layout
from checkpoint_sidecar.core.errors import CheckpointError, ObjectExistsError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.engine import verify
from checkpoint_sidecar.runs import entries, log
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, Store, StoredObject
from doubles.memory import MemoryStore
from model.promises import BrokenPromiseError, Promises
from model.turns import Actor
from support.builders import BEGINNING, nonce_of

T = TypeVar("T")

URL = "s3://bucket/run"

FATES = ("the reply is lost", "the request is lost", "the request is late")

CHANGED = "the reply is changed on its way"
"""A fate of requests that read an object."""


@dataclass
class Late:
    """A request whose sender got no answer, and which may still take effect."""

    label: str
    land: Callable[[], object]


@dataclass
class World:
    """Everything outside the processes.

    Attributes:
        seconds: Every process's steady clock, and the store's own while nothing sets it.
        jumped: How far the store's clock was set, in seconds, forward and back; what it stamps has whole seconds.
        forward: The sum of its jumps forward, each of which may cost a grace period as much.
        jumps: The sum of all its jumps, taken as positive.
        troubled: Actors whose requests failed at least once, so that they may fail as well.
        skew: What each actor's wall clock shows beyond that; it may jump, the store's may not.
        late: Requests under way.
        rotten: What damaged objects were, by key.
        story: What happened, for the reader of a failure.
    """

    seconds: float = 0.0
    jumped: float = 0.0
    forward: float = 0.0
    jumps: float = 0.0
    troubled: set[str] = field(default_factory=set)
    skew: dict[str, float] = field(default_factory=dict)
    late: list[Late] = field(default_factory=list)
    rotten: dict[str, bytes] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    actors: dict[threading.Thread, Actor] = field(default_factory=dict)
    names: int = 0
    lost_races: int = 0
    broken: BrokenPromiseError | None = None

    def __post_init__(self) -> None:
        self.store = MemoryStore(clock=self.stamp)
        self.promises = Promises()

    def now(self) -> dt.datetime:
        return BEGINNING + dt.timedelta(seconds=self.seconds)

    def stamp(self) -> dt.datetime:
        """What the store shows as LastModified: whole seconds of its clock."""
        return BEGINNING + dt.timedelta(seconds=math.floor(self.seconds + self.jumped))

    def jump(self, seconds: float) -> None:
        """Set the store's clock forward or back."""
        self.jumped += seconds
        self.forward += max(0.0, seconds)
        self.jumps += abs(seconds)

    @property
    def waited(self) -> float:
        """Grows by at least what the store's clock shows to have passed."""
        return self.seconds + self.forward

    def tell(self, sentence: str) -> None:
        self.story.append(sentence)

    def fresh(self) -> str:
        self.names += 1
        return nonce_of(self.names)

    def wall(self) -> dt.datetime:
        """Return the wall clock of the calling thread's actor."""
        return self.now() + dt.timedelta(seconds=self.skew.get(threading.current_thread().name, 0.0))

    # Changes, judged as they land

    def create(self, key: str, data: bytes) -> None:
        self.lost_races += self.store.stat(key) is not None and layout.log_number(key) is not None
        self.store.put_if_absent(key, data)
        with self._judging():
            self.promises.created(key, data, self)

    def write(self, key: str, data: bytes) -> None:
        with self._judging():
            self.promises.written(key, self)
        self.store.put(key, data)

    def delete(self, key: str) -> None:
        with self._judging():
            self.promises.deleted(key, self.actors.get(threading.current_thread()), self)
        self.store.delete([key])

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """Record a broken promise, because code under test that survives any exception would swallow it."""
        try:
            yield
        except BrokenPromiseError as error:
            self.broken = self.broken or error
            raise

    def damage(self, key: str, data: bytes | None) -> None:
        """Change or lose an object without any actor's doing."""
        self.rotten.setdefault(key, self.store.get(key, max_bytes=1 << 20).data)
        if data is None:
            self.store.delete([key])
        else:
            self.store.corrupt(key, data)
        self.promises.damaged(key, sizes_differ=data is None or len(data) == 0)

    def repair(self, snapshot: str, folder: str) -> None:
        """Undo all damage of a snapshot."""
        for key in [key for key in self.rotten if key.startswith(f"{folder}/")]:
            self.store.put(key, self.rotten.pop(key))
        self.promises.undamaged(snapshot)

    def take_away(self, prefix: str) -> dict[str, bytes]:
        """Delete everything under a prefix without any actor's doing, and return it."""
        gone = {key: data for key, data in self._contents().items() if key.startswith(prefix)}
        self.store.delete(gone)
        return gone

    def others(self, write: Callable[[Store], object]) -> None:
        """Let a writer outside the run write under the prefix; it may replace what others wrote before."""
        before = self._contents()
        with contextlib.suppress(CheckpointError):  # where a log of something else is
            write(self.store)
        after = self._contents()
        kept = {key: data for key, data in self.promises.foreign.items() if key in after}
        self.promises.foreign = kept | {key: data for key, data in after.items() if before.get(key) != data}

    def _contents(self) -> dict[str, bytes]:
        return {info.key: self.store.get(info.key, max_bytes=1 << 20).data for info in self.store.list()}


class Connection:
    """A store as one actor sees it: every request waits for a turn and may fail on the way.

        The one exception is reading a log entry that exists. It never changes, so the moment of reading it makes no
    difference to any actor.
    """

    url = URL

    def __init__(self, world: World, actor: Actor) -> None:
        self._world = world
        self._actor = actor

    def put(self, key: str, data: Buffer) -> None:
        copy = bytes(data)
        self._change(f"put {key}", lambda: self._world.write(key, copy))

    def put_if_absent(self, key: str, data: Buffer) -> None:
        copy = bytes(data)
        self._change(f"create {key}", lambda: self._world.create(key, copy))

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        number = layout.log_number(key)
        if number and self._world.store.stat(key) and not self._actor.killed:
            self._actor.head = max(self._actor.head, number)
            return self._world.store.get(key, max_bytes=max_bytes)
        return self._read(f"get {key}", lambda: self._world.store.get(key, max_bytes=max_bytes))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        fate = self._actor.stop_before(f"read {key}")
        if fate and fate != CHANGED:
            raise StoreError("read", key, "the store does not answer")
        self._world.store.read_into(key, start, buffers)
        if fate:
            for buffer in buffers:
                buffer.cast("B")[:] = b"!" * buffer.nbytes

    def stat(self, key: str) -> ObjectInfo | None:
        found = self._read(f"stat {key}", lambda: self._world.store.stat(key))
        if key.endswith("/clock"):
            self._actor.jumps = self._world.jumps
        return found

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        def request() -> Iterator[ObjectInfo]:
            if prefix == layout.COMPACTION_FOLDER:
                self._world.promises.lists_compactions()
            return self._world.store.list(prefix, after=after)

        return self._read(f"list {prefix}", request)

    @contextlib.contextmanager
    def upload(self, key: str, size: int) -> Iterator[_Upload]:
        upload = _Upload(size)
        yield upload
        self._change(f"upload {key}", lambda: self._world.write(key, upload.data))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._change(f"delete {key}", functools.partial(self._world.delete, key))

    def _read(self, label: str, request: Callable[[], T]) -> T:
        if self._actor.stop_before(label):
            raise StoreError("read", label, "the store does not answer")
        return request()

    def _change(self, label: str, request: Callable[[], object]) -> None:
        fate = self._actor.stop_before(label)
        if fate == "the reply is lost":
            with contextlib.suppress(ObjectExistsError):
                request()
        elif fate == "the request is late":
            promises = self._world.promises
            name = self._actor.name
            began = promises.began.get(name, 0)
            late = Late(f"{label} of {name}", lambda: promises.on_behalf(name, began, request))
            self._world.late.append(late)
        if fate:
            raise UnknownOutcomeError("write", label, fate)
        request()


class _Upload:
    """Objects of the model have one part."""

    def __init__(self, size: int) -> None:
        self.part_bytes = max(size, 1)
        self.data = b""

    def write_part(self, _: int, buffers: Sequence[Buffer]) -> None:
        self.data = b"".join(buffers)

    def complete(self) -> None: ...

    def abort(self) -> None: ...


class _AtOnce:
    """An executor without threads: what is submitted runs in its place."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _AtOnce:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...

    def map(self, call: Callable[..., T], *arguments: Iterable[Any]) -> Iterator[T]:
        return map(call, *arguments)


class Unasked:
    """A background task that never runs by itself: in the model, looking at the log is a step like any other."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def start(self) -> None: ...

    def stop(self, **_: object) -> None: ...


def in_world(world: World, patch: pytest.MonkeyPatch) -> None:
    """Take from the code under test whatever else decides its course: clocks, threads, sleep and chance."""
    clock = SimpleNamespace(sleep=lambda _: None, monotonic=lambda: world.seconds, time=time.time)
    calendar = SimpleNamespace(datetime=SimpleNamespace(now=lambda _: world.wall()), UTC=dt.UTC)
    patch.setattr(compaction, "SPANS", (5, 20, 80))
    patch.setenv("CHECKPOINT_CONNECTIONS", "1")
    patch.setattr(layout, "new_nonce", world.fresh)
    patch.setattr(log, "new_entry_id", lambda: f"entry-{world.fresh()}")
    patch.setattr(log, "dt", calendar)
    patch.setattr(log, "time", clock)
    patch.setattr(memory, "time", clock)
    patch.setattr(run_store, "time", clock)
    patch.setattr(scrubber, "time", clock)
    patch.setattr(scrubber, "run_in_thread", _here)
    patch.setattr(tenacity.nap, "time", clock)
    for module in (entries, verify):
        patch.setattr(module, "ThreadPoolExecutor", _AtOnce)
    patch.setattr(session, "Periodic", Unasked)
    patch.setattr(run_store, "open_store", lambda *_, **__: connect(world))


async def _here(call: Callable[[], T], **_: object) -> T:
    """In place of a thread: the actor that reads is the one that asks."""
    return call()


def connect(world: World) -> Connection:
    """A connection of the actor that asks for it."""
    return Connection(world, world.actors[threading.current_thread()])
