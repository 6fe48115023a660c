"""The process of a rank: a real ``Checkpointer``, with stand-ins for torch, threads and signals.

Two small functions play ``dcp.save`` and ``dcp.load`` by DCP's protocol: plans to rank 0, files from all ranks, the
commit by rank 0, and one error on all ranks if any rank has one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import crc32c
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_sidecar.attempt import heartbeat, setbacks
from checkpoint_sidecar.attempt import save_target as target
from checkpoint_sidecar.core import layout, manifest
from checkpoint_sidecar.core.errors import CheckpointError, CorruptSnapshotError, StoreError
from checkpoint_sidecar.core.log import Owner, PodIdentity
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.runs import log
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.training import agreement, checkpointer, restoring, saver, saving
from checkpoint_sidecar.training.checkpointer import Checkpointer
from checkpoint_sidecar.training.dcp.errors import never_reached_commit
from checkpoint_sidecar.training.state.leftovers import Leftovers
from checkpoint_sidecar.training.transfers import Transfers
from checkpoint_sidecar.training.vote import Stop
from model.gang import Gang, Group, fail_at, me, my_gang, my_rank, places, run_in
from model.promises import require
from model.turns import Actor, Killed
from model.world import Connection, Unasked, World

GRACE_SECONDS = 30.0


class Distributed:
    """``torch.distributed`` as ``agreement`` uses it."""

    ReduceOp = SimpleNamespace(MAX="MAX")

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def new_group(self, **_: Any) -> Group:
        gang, rank = my_gang(), my_rank()
        number = gang.created.get(rank, 0)
        gang.created[rank] = number + 1
        while len(gang.groups) <= number:
            gang.groups.append(Group(gang))
        gang.groups[number].meet("a new group")
        return gang.groups[number]

    def get_rank(self, _: Group | None = None) -> int:
        return my_rank()

    def get_world_size(self, _: Group | None = None) -> int:
        return my_gang().size

    def get_global_rank(self, _: Group, rank: int) -> int:
        return rank

    def all_reduce(self, tally: torch.Tensor, *, op: str, group: Group) -> None:
        assert op == "MAX"
        votes = group.meet("a vote", tally.tolist())
        tally.copy_(torch.tensor([max(each) for each in zip(*votes, strict=True)], dtype=tally.dtype))

    def all_gather_object(self, values: list[Any], value: Any, *, group: Group) -> None:
        values[:] = group.meet("every rank's value", value)

    def broadcast_object_list(self, box: list[Any], *, src: int, group: Group) -> None:
        box[:] = group.meet("rank 0's word", box)[src]

    def destroy_process_group(self, group: Group) -> None:
        group.leave(my_rank())


class Thread:
    """``threading.Thread`` as ``saving`` uses it."""

    def __init__(self, world: World, target: Callable[[], None], name: str) -> None:
        self._world = world
        self._body = target
        self._actor: Actor | None = None
        self.name = name

    def start(self) -> None:
        self._actor = run_in(self._world, my_gang(), my_rank(), self.name, self._body)

    def is_alive(self) -> bool:
        return self._actor is not None and not self._actor.ended

    def join(self, timeout: float | None = None) -> None:
        actor = self._actor
        assert actor is not None
        if timeout is None:
            me().wait_until(lambda: actor.ended, self.name)
        elif not actor.ended:
            until = self._world.seconds + timeout
            me().wait_until(lambda: actor.ended or self._world.seconds >= until, f"{self.name} or a moment")


class Event:
    """``threading.Event`` as ``saving`` uses it."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def wait(self) -> None:
        me().wait_until(lambda: self._set, "the others to be ready")


class Lock:
    """``threading.RLock`` as ``runlog`` uses it: a rank's threads share one log."""

    def __init__(self) -> None:
        self._holder: Actor | None = None
        self._depth = 0

    def __enter__(self) -> None:
        actor = me()
        actor.wait_until(lambda: self._holder in (None, actor) or self._holder.ended, "the log")
        self._holder = actor
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._holder = None


class Watch:
    """``TerminationWatch``: knows what the model says about SIGTERM."""

    def __init__(self, world: World, **_: Any) -> None:
        self._world = world
        self._until = float("inf")

    def install(self, **_: Any) -> None: ...

    def remove(self) -> None: ...

    def keep(self) -> None: ...

    def training(self) -> None: ...

    def join(self, stop: Stop) -> None:
        self._until = min(self._until, self._world.seconds + stop.remaining_seconds)

    def stop(self) -> Stop | None:
        asked = my_gang().terminated_at.get(my_rank())
        until = min(self._until, float("inf") if asked is None else asked + GRACE_SECONDS)
        return None if until == float("inf") else Stop(until - self._world.seconds)

    @contextlib.contextmanager
    def inside(self, _: str) -> Iterator[None]:
        yield


class Shared(Connection):
    """A store that all threads of a process use."""

    def __init__(self, world: World) -> None:
        super().__init__(world, me())

    @property
    def _actor(self) -> Actor:
        return me()

    @_actor.setter
    def _actor(self, _: Actor) -> None: ...


class State:
    """``TrainingState`` of a model that consists of the number of its step."""

    modules: ClassVar[dict[str, Any]] = {}

    def __init__(self, objects: dict[str, int], **_: Any) -> None:
        self.objects = objects

    def capture(self) -> dict[str, Any]:
        fail_at("a failing copy")
        return self.objects  # it shares the memory of the objects, as the real one does

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.objects)

    def destinations(self, _: Contents) -> SimpleNamespace:
        fail_at("a failing restore")
        return SimpleNamespace(items={}, leftovers=Leftovers(), loaded=dict)

    def apply(self, contents: Contents) -> None:
        self.objects.update(contents.values)

    def apply_again(self) -> None: ...


class Contents:
    """``Contents`` of such a state."""

    names: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    @classmethod
    def of(cls, _: object) -> Contents:
        return cls()

    def shared_items(self, _: object) -> tuple[()]:
        return ()


class Writer:
    """``SnapshotWriter`` as far as ``saving`` and ``save`` below use it."""

    pauses_collection = False
    saved_in = ""

    def __init__(self, store: Any, target: Any, **_: Any) -> None:
        self.store = store
        self.target = target
        self.written: list[str] = []

    def ended(self) -> None:
        """Do nothing: no collector was paused."""

    def discard(self, failure: BaseException) -> None:
        if never_reached_commit(failure):
            with contextlib.suppress(StoreError):
                self.store.delete(self.written)


def save(staged: dict[str, Any], *, storage_writer: Writer, planner: object, process_group: Group) -> None:
    """The protocol of ``dcp.save``: an error of one rank is raised on all of them."""
    del planner
    writer, rank = storage_writer, my_rank()
    fail_at("a failing thread")
    step = staged["step"]
    new = _together(process_group, "the plan", writer.target.begin if rank == 0 else None)[0]
    content = json.dumps({"rank": rank, "step": step}).encode()

    def write() -> manifest.File:
        name = f"__{rank}_0.distcp"
        writer.written.append(f"{new.folder.path}/{name}")
        write_object(writer.store, writer.written[-1], content)
        return _file(name, content)

    files = _together(process_group, "what is written", write)

    def finish() -> None:
        listed = [*files]
        for name in (layout.METADATA_NAME, layout.STOCK_METADATA_NAME):
            data = f"{name} of {new.snapshot}".encode()
            writer.written.append(f"{new.folder.path}/{name}")
            write_object(writer.store, writer.written[-1], data)
            listed.append(_file(name, data))
        sizes = manifest.Manifest(
            new.snapshot,
            new.step,
            new.folder.attempt,
            world_size=process_group.gang.size,
            files=tuple(sorted(listed, key=lambda file: file.name)),
        )
        encoded = manifest.encode(sizes)
        writer.written.append(new.folder.manifest)
        write_object(writer.store, writer.written[-1], encoded)
        writer.target.commit(new, sizes, manifest.digest(encoded))

    _together(process_group, "the commit", finish if rank == 0 else None)


def load(_: dict[str, Any], *, storage_reader: Reader, planner: Any, process_group: Group) -> None:
    """The protocol of ``dcp.load``: every rank reads its part, into its own memory, and checks it."""

    def read() -> None:
        planner.loaded["step"] = storage_reader.read(my_rank())["step"]

    _together(process_group, "what is read", read)


class Reader:
    """``SnapshotReader`` as far as ``load`` uses it."""

    def __init__(self, store: Any, folder: str, listing: manifest.Manifest, **_: Any) -> None:
        self._store = store
        self._folder = folder
        self._files = {file.name: file for file in listing.files}

    def open(self) -> None: ...

    def load_objects(self, _: object) -> dict[str, Any]:
        return {}

    def read(self, rank: int) -> dict[str, int]:
        # A gang of another size: the files of the ranks that saved are shared out among those that load.
        names = sorted(name for name in self._files if name.startswith("__"))
        file = self._files[names[rank % len(names)]]
        data = bytearray(file.size)
        self._store.read_into(f"{self._folder}/{file.name}", 0, [memoryview(data)])
        if _file(file.name, bytes(data)) != file:
            raise CorruptSnapshotError("read", file.name, "other bytes", evidence="ChecksumMismatch")
        found: dict[str, int] = json.loads(data)
        return found


def _together(group: Group, what: str, work: Callable[[], Any] | None) -> list[Any]:
    """Every rank's result, or one ``CheckpointException`` on all ranks, as DCP's wrapper of collectives does it."""
    result: Any = None
    error: BaseException | None = None
    try:
        result = work() if work is not None else None
    except Killed:
        raise
    except BaseException as caught:  # noqa: BLE001 - as DCP does
        error = caught
    said = group.meet(what, (result, error))
    failures = {rank: (failed, None) for rank, (_, failed) in enumerate(said) if failed is not None}
    if failures:
        raise CheckpointException(what, failures)  # type: ignore[arg-type]
    return [value for value, _ in said]


def _file(name: str, data: bytes) -> manifest.File:
    checksum = crc32c.crc32c(data)
    return manifest.File(name, len(data), checksum, checksum.to_bytes(4, "big"))


def _show_nothing(transfers: Transfers, **_: object) -> None:
    transfers._show = False
    transfers._now = None


def in_gangs(world: World, patch: pytest.MonkeyPatch) -> None:
    """Take from the code under test what a gang plays instead; after ``world.in_world``."""
    clock = SimpleNamespace(monotonic=lambda: world.seconds, sleep=lambda _: None, time=lambda: world.seconds)
    for module in (checkpointer, saver, saving, setbacks, target):
        patch.setattr(module, "time", clock)
    patch.setattr(agreement, "dist", Distributed())
    patch.setattr(checkpointer, "open_store", lambda _: Shared(world))
    patch.setattr(checkpointer, "TrainingState", State)
    patch.setattr(checkpointer, "TerminationWatch", lambda *_, **__: Watch(world))
    patch.setattr(Transfers, "__init__", _show_nothing)
    threads = SimpleNamespace(Event=Event, Thread=lambda target, name, **_: Thread(world, target, name))
    patch.setattr(saving, "threading", threads)
    patch.setattr(log, "threading", SimpleNamespace(RLock=Lock))
    patch.setattr(saving, "SnapshotWriter", Writer)
    patch.setattr(saving, "BalancedSavePlanner", lambda **_: None)
    patch.setattr(saving, "save", save)
    patch.setattr(saving, "exits", SimpleNamespace(expect=id, forget=id, give_up_threads=id))
    patch.setattr(restoring, "SnapshotReader", Reader)
    patch.setattr(restoring, "load", load)
    patch.setattr(restoring, "Contents", Contents)
    patch.setattr(restoring, "ItemPlanner", lambda _: SimpleNamespace(loaded={}))
    places.clear()
    for module in (heartbeat, setbacks):
        patch.setattr(module, "Periodic", Unasked)


def train(world: World, gang: Gang, rank: int, owner: Owner) -> None:
    """A rank's process."""
    state = {"step": 0}
    schedule = SavePolicy(every_steps=gang.every, every_seconds=None)
    try:
        with Checkpointer(
            state,
            "s3://bucket/run",
            run=owner,
            save=schedule,
            grace_seconds=GRACE_SECONDS,
            takeover_seconds=0,
            pod=PodIdentity(f"{gang.name}-{rank}", f"uid-{gang.name}-{rank}"),
        ) as run:
            restored = run.restore()
            gang.restored[rank] = restored.step if restored else 0
            require(state["step"] == gang.restored[rank], "P5", f"rank {rank} restored {restored} and is at {state}")
            for step in run.steps(gang.steps):
                me().stop_before("train a step")
                if run._session is not None:
                    with contextlib.suppress(CheckpointError):
                        run._session.log.refresh()  # what it does every few seconds in the background
                state["step"] = step
                run.step(step)
    except Killed:
        raise
    except BaseException as error:  # noqa: BLE001 - how it ended is judged when all ranks have
        gang.ends[rank] = error
    else:
        gang.ends[rank] = None
