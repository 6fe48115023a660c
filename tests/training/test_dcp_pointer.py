"""The stock pointer follows the log, whichever process publishes it and in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import (
    CorruptSnapshotError,
    ForeignObjectError,
    IncompatibleSnapshotError,
    ObjectNotFoundError,
    ObjectTooLargeError,
)
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    Owner,
    RunClaimed,
    SnapshotCommitted,
    SnapshotRetired,
)
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, MAX_BLOCK_BYTES, File, Manifest
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.engine import pointer
from checkpoint_sidecar.engine.pointer import publish
from checkpoint_sidecar.engine.upload import upload_bytes
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Buffer, Store, StoredObject
from checkpoint_sidecar.store.common.parts import PART_BYTES
from doubles.counting import CountingStore
from doubles.memory import MemoryStore

STEP = 100
POINTER = layout.pointer_key(STEP)
LARGE = PART_BYTES + 1000
"""A size that is copied in parts."""


class Run:
    """A run of one attempt whose saves are nothing but the bytes to publish, and a manifest."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = RunLog(store, writer="test")
        self.log.append(lambda _: RunClaimed(Owner("local", "local", "run")))
        self.log.append(lambda _: AttemptStarted(1, 1))
        self._newest = ""

    def commit(
        self,
        label: str | bytes,
        *,
        step: int = STEP,
        signed: bool = False,
        described: Callable[[Manifest], bytes] = manifests.encode,
    ) -> str:
        """A save, as this version writes it (signed) or as version 0.1.0 did.

        Args:
            described: What is committed as the manifest.
        """
        short = self.log.run.short_identity
        folder = SaveFolder(step, 1, layout.new_nonce(), short if signed else "")
        parent, self._newest = self._newest, layout.snapshot_id(step, 1, folder.nonce)
        origin = Origin(short, self._newest).encode() if signed else b""
        data = (label if isinstance(label, bytes) else label.encode()) + origin
        file = upload_bytes(self.store, folder.stock_metadata, data, block_bytes=BLOCK_BYTES)
        manifest = described(Manifest(self._newest, step, 1, 1, (file,), block_bytes=BLOCK_BYTES))
        self.store.put(folder.manifest, manifest)
        replaces = parent if parent.startswith(f"{step}-") else ""
        digest = manifests.digest(manifest)
        commit = SnapshotCommitted(
            self._newest, step, 1, folder.path, digest, 1, 1, 1, parent=parent, replaces=replaces
        )
        self.log.append(lambda _: commit)
        return self._newest

    def folder(self, snapshot: str) -> SaveFolder:
        return layout.parse_save_folder(self.log.run.snapshots[snapshot].commit.path)

    def retire(self, snapshot: str) -> None:
        self.log.append(lambda _: SnapshotRetired(snapshot, ("Test",)))

    @property
    def shown(self) -> str | None:
        if self.store.stat(POINTER) is None:
            return None
        return self.store.get(POINTER, max_bytes=1 << 20).data.decode()


class Interfering(MemoryStore):
    """Lets another process act once, right before the pointer is written."""

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
def test_another_writers_checkpoint_is_neither_replaced_nor_removed(signed: bool) -> None:
    store = MemoryStore()
    store.put(POINTER, b"torch's own, of another training")
    run = Run(store)
    only = run.commit("first", signed=signed)
    acts: tuple[Callable[[], object], ...] = (lambda: None, lambda: run.retire(only))
    for act in acts:
        act()
        with pytest.raises(ForeignObjectError, match="this run did not write"):
            publish(store, run.log, STEP)
        assert run.shown == "torch's own, of another training"


def test_the_pointer_of_another_run_is_recognized_by_its_origin() -> None:
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


def test_a_pointer_that_appears_between_the_check_and_the_creation_stays() -> None:
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


# What is published


def gone(run: Run, folder: SaveFolder) -> None:
    run.store.delete([folder.stock_metadata])


def changed(run: Run, folder: SaveFolder) -> None:
    run.store.put(folder.stock_metadata, b"whole instead")


def longer(run: Run, folder: SaveFolder) -> None:
    run.store.put(folder.stock_metadata, b"the token of the operator's machine" * 1000)


def shorter(run: Run, folder: SaveFolder) -> None:
    run.store.put(folder.stock_metadata, b"")


def changed_with_its_manifest(run: Run, folder: SaveFolder) -> None:
    file = upload_bytes(run.store, folder.stock_metadata, b"another one", block_bytes=BLOCK_BYTES)
    run.store.put(folder.manifest, manifests.encode(Manifest("100-1-aaaaaaaa", 100, 1, 1, (file,))))


def manifest_gone(run: Run, folder: SaveFolder) -> None:
    run.store.delete([folder.manifest])


@pytest.mark.parametrize("size", [13, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("damage", [gone, changed, longer, shorter, changed_with_its_manifest, manifest_gone])
def test_bytes_that_are_not_what_was_committed_are_never_published(
    damage: Callable[[Run, SaveFolder], None], size: int
) -> None:
    run = Run(MemoryStore())
    damage(run, run.folder(run.commit(bytes(size), signed=True)))
    with pytest.raises(CorruptSnapshotError):
        publish(run.store, run.log, STEP)
    assert run.store.stat(POINTER) is None


@pytest.mark.parametrize("place", [0, LARGE // 2, LARGE - 1])
def test_one_flipped_bit_in_a_large_pointer_keeps_all_of_it_from_being_seen(place: int) -> None:
    store = MemoryStore()
    run = Run(store)
    folder = run.folder(run.commit(bytes(LARGE)))
    data = bytearray(LARGE)
    data[place] = 1
    store.put(folder.stock_metadata, data)
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        publish(store, run.log, STEP)
    assert store.stat(POINTER) is None


def test_a_manifest_that_cannot_be_used_or_lists_no_pointer_publishes_nothing() -> None:
    for manifest in (
        lambda _: b"{" * 5000,
        lambda whole: manifests.encode(msgspec.structs.replace(whole, files=())),
        lambda whole: msgspec.json.encode(msgspec.structs.replace(whole, block_bytes=1)),
    ):
        run = Run(MemoryStore())
        run.commit("bytes", described=manifest)
        with pytest.raises((CorruptSnapshotError, IncompatibleSnapshotError)):
            publish(run.store, run.log, STEP)
        assert run.store.stat(POINTER) is None


def test_a_pointer_beyond_what_any_reader_takes_is_not_begun() -> None:
    size = pointer.MAX_METADATA_BYTES + 1
    blocks = -(-size // MAX_BLOCK_BYTES)

    def described(whole: Manifest) -> bytes:
        huge = File(layout.STOCK_METADATA_NAME, size, 0, bytes(4 * blocks))
        return manifests.encode(msgspec.structs.replace(whole, files=(huge,), block_bytes=MAX_BLOCK_BYTES))

    store = CountingStore(MemoryStore())
    run = Run(store)
    run.commit("bytes", described=described)
    with pytest.raises(ObjectTooLargeError):
        publish(store, run.log, STEP)
    assert store.stat(POINTER) is None


class Weighing(MemoryStore):
    """Notes the largest amount that is asked for at a time."""

    largest = 0

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        found = super().get(key, max_bytes=max_bytes)
        self.largest = max(self.largest, len(found.data))
        return found

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        self.largest = max(self.largest, sum(buffer.nbytes for buffer in buffers))
        super().read_into(key, start, buffers)


def test_a_large_pointer_is_copied_and_replaced_in_parts() -> None:
    store = Weighing()
    run = Run(store)
    for content in (b"\x00", b"\x07"):
        committed = run.folder(run.commit(content * LARGE, signed=True)).stock_metadata
        store.largest = 0
        publish(store, run.log, STEP)
        assert 0 < store.largest <= PART_BYTES
        shown, wanted = (store.get(key, max_bytes=2 * LARGE).data for key in (POINTER, committed))
        assert shown == wanted


def test_a_large_pointer_of_version_0_1_0_that_is_right_is_not_written_again() -> None:
    store = Weighing()
    run = Run(store)
    run.commit(bytes(LARGE))
    publish(store, run.log, STEP)
    written, store.largest = store.stat(POINTER), 0
    publish(store, run.log, STEP)
    assert store.stat(POINTER) == written
    assert store.largest <= PART_BYTES


def test_another_writers_checkpoint_that_appears_while_a_large_pointer_is_copied_stays() -> None:
    class Appearing(MemoryStore):
        def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
            super().read_into(key, start, buffers)
            if key.endswith(layout.STOCK_METADATA_NAME):
                self.put(POINTER, b"torch's own")

    run = Run(Appearing())
    run.commit(bytes(LARGE), signed=True)
    with pytest.raises(ForeignObjectError):
        publish(run.store, run.log, STEP)
    assert run.shown == "torch's own"


def test_a_store_that_refuses_every_write_as_not_found_ends_the_attempt() -> None:
    class Refusing(MemoryStore):
        def put_if_absent(self, key: str, data: Buffer) -> None:
            if key == POINTER:
                raise ObjectNotFoundError("create", key, "the store answered 404")
            super().put_if_absent(key, data)

    run = Run(Refusing())
    run.commit(b"\x00", signed=True)
    with pytest.raises(ObjectNotFoundError):
        publish(run.store, run.log, STEP)
    assert run.store.stat(POINTER) is None
