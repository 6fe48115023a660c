"""The stock pointer follows the log, whoever publishes it and in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import ForeignObjectError, ObjectNotFoundError
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    Owner,
    RunClaimed,
    SnapshotCommitted,
    SnapshotRetired,
)
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.store.base import Buffer, Store
from checkpoint_sidecar.store.pointer import publish
from checkpoint_sidecar.store.runlog import RunLog
from doubles.counting import CountingStore
from doubles.memory import MemoryStore

STEP = 100
POINTER = layout.pointer_key(STEP)


class Run:
    """A run of one attempt whose saves are nothing but the bytes to publish."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = RunLog(store, writer="test")
        self.log.append(lambda _: RunClaimed(Owner("local", "local", "run")))
        self.log.append(lambda _: AttemptStarted(1, 1))
        self._newest = ""

    def commit(self, label: str, *, step: int = STEP, signed: bool = False) -> str:
        """A save, as this version writes it (signed) or as version 0.1.0 did."""
        short = self.log.run.short_identity
        folder = SaveFolder(step, 1, layout.new_nonce(), short if signed else "")
        parent, self._newest = self._newest, layout.snapshot_id(step, 1, folder.nonce)
        origin = Origin(short, self._newest).encode() if signed else b""
        self.store.put(folder.stock_metadata, label.encode() + origin)
        replaces = parent if parent.startswith(f"{step}-") else ""
        commit = SnapshotCommitted(
            self._newest, step, 1, folder.path, "0" * 64, 1, 1, 1, parent=parent, replaces=replaces
        )
        self.log.append(lambda _: commit)
        return self._newest

    def retire(self, snapshot: str) -> None:
        self.log.append(lambda _: SnapshotRetired(snapshot, ("Test",)))

    @property
    def shown(self) -> str | None:
        if self.store.stat(POINTER) is None:
            return None
        return self.store.get(POINTER, max_bytes=1 << 20).data.decode()


class Interfering(MemoryStore):
    """Lets somebody else act once, right before the pointer is written."""

    before_pointer: Callable[[], object] | None = None

    def put(self, key: str, data: Buffer) -> None:
        self._interfere(key)
        super().put(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        self._interfere(key)
        super().put_if_absent(key, data)

    def _interfere(self, key: str) -> None:
        if key == POINTER and self.before_pointer:
            act, self.before_pointer = self.before_pointer, None
            act()


def test_it_shows_the_newest_snapshot_of_its_step() -> None:
    run = Run(MemoryStore())
    run.commit("first")
    run.commit("second")
    run.commit("of another step", step=200)
    publish(run.store, run.log, STEP)
    assert run.shown == "second"


def test_it_falls_back_to_the_replaced_snapshot_when_the_newest_is_retired() -> None:
    run = Run(MemoryStore())
    run.commit("first")
    newest = run.commit("second")
    publish(run.store, run.log, STEP)
    run.retire(newest)
    publish(run.store, run.log, STEP)
    assert run.shown == "first"


def test_it_is_removed_with_the_last_snapshot_of_its_step() -> None:
    run = Run(MemoryStore())
    only = run.commit("only")
    publish(run.store, run.log, STEP)
    run.retire(only)
    publish(run.store, run.log, STEP)
    assert run.shown is None


def test_a_pointer_that_is_right_is_not_written_again() -> None:
    run = Run(MemoryStore())
    run.commit("first")
    publish(run.store, run.log, STEP)
    written = run.store.stat(POINTER)
    publish(run.store, run.log, STEP)
    assert run.store.stat(POINTER) == written


def test_a_pointer_that_says_what_it_shows_is_not_read_again() -> None:
    store = CountingStore(MemoryStore())
    run = Run(store)
    run.commit("first", signed=True)
    publish(store, run.log, STEP)
    before = Counter(store.requests)
    publish(store, run.log, STEP)
    asked = Counter(store.requests) - before
    assert asked == {"get": 3, "stat": 1}, "two looks at the log, one at the pointer, and one at its end"


@pytest.mark.parametrize("signed", [True, False], ids=["of today", "of version 0.1.0"])
def test_somebody_elses_checkpoint_is_neither_replaced_nor_removed(signed: bool) -> None:
    store = MemoryStore()
    store.put(POINTER, b"torch's own, of another training")
    run = Run(store)
    only = run.commit("first", signed=signed)
    for act in (lambda: None, lambda: run.retire(only)):
        act()
        with pytest.raises(ForeignObjectError, match="left alone"):
            publish(store, run.log, STEP)
        assert run.shown == "torch's own, of another training"


def test_the_pointer_of_another_run_is_told_by_its_origin() -> None:
    store = MemoryStore()
    run = Run(store)
    run.commit("first", signed=True)
    theirs = b"pickle" + Origin("0123abcd", "100-1-aaaaaaaa").encode()
    store.put(POINTER, theirs)
    with pytest.raises(ForeignObjectError):
        publish(store, run.log, STEP)
    assert store.get(POINTER, max_bytes=1000).data == theirs


def test_a_pointer_of_version_0_1_0_is_replaced_when_it_shows_a_save_that_the_log_names() -> None:
    store = MemoryStore()
    run = Run(store)
    first = run.commit("first")
    folder = layout.parse_save_folder(run.log.run.snapshots[first].commit.path)
    store.put(POINTER, bytes(3 << 20) + f"{folder.path.partition('/')[2]}/__0_0.distcp".encode())
    run.commit("second", signed=True)
    publish(store, run.log, STEP)
    assert (run.shown or "").startswith("second")


def test_what_appears_between_the_look_and_the_creation_is_somebody_elses() -> None:
    store = Interfering()
    run = Run(store)
    run.commit("first", signed=True)
    store.before_pointer = lambda: store.put(POINTER, b"torch's own")
    with pytest.raises(ForeignObjectError):
        publish(store, run.log, STEP)
    assert run.shown == "torch's own"


def test_a_publisher_that_was_overtaken_corrects_itself() -> None:
    store = Interfering()
    run = Run(store)
    run.commit("first")

    def overtake() -> None:
        run.commit("second")
        publish(store, RunLog(store, writer="other"), STEP)

    store.before_pointer = overtake
    publish(store, RunLog(store, writer="slow"), STEP)
    assert run.shown == "second"


def test_bytes_that_were_never_stored_are_an_error() -> None:
    run = Run(MemoryStore())
    snapshot = run.commit("first")
    run.store.delete([layout.parse_save_folder(run.log.run.snapshots[snapshot].commit.path).stock_metadata])
    with pytest.raises(ObjectNotFoundError):
        publish(run.store, run.log, STEP)
