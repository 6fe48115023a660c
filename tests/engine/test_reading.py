"""Reading ranges: everything wanted arrives, from few bytes more, and not one changed byte gets through."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from checkpoint_sidecar.core.errors import (
    CorruptSnapshotError,
    CutOffError,
    StoreError,
    TruncatedObjectError,
    UnreliableReadError,
)
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.engine.delivery import Assembly, Want
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from doubles.memory import MemoryStore

BLOCK = 4096
SETTINGS = EngineSettings(connections=4)


def contents(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def manifest_of(data: bytes) -> Manifest:
    blocks = b"".join(crc32c(data[i : i + BLOCK]).to_bytes(4, "big") for i in range(0, len(data), BLOCK))
    file = File("data", len(data), crc32c(data), blocks)
    return Manifest("1-1-x", 1, 1, 1, (file,), block_bytes=BLOCK)


def stored(data: bytes, store: MemoryStore | None = None) -> Files:
    store = store or MemoryStore()
    store.put("folder/data", data)
    return Files(store, "folder", manifest_of(data), settings=SETTINGS)


def want(start: int, length: int) -> tuple[Want, bytearray]:
    memory = bytearray(length)
    return Want("data", ByteRange(start, length), memoryview(memory)), memory


class Collected:
    """A destination that is no memory."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.times = [0] * size
        self._lock = threading.Lock()

    def accept(self, offset: int, data: memoryview) -> None:
        with self._lock:
            self.data[offset : offset + len(data)] = data
            for position in range(offset, offset + len(data)):
                self.times[position] += 1


@given(data=st.data())
@profile(max_examples=80, deadline=None)
def test_every_wanted_range_arrives_exactly_whatever_else_is_wanted(data: st.DataObject) -> None:
    content = contents(data.draw(st.integers(1, 6 * BLOCK)))
    ranges = data.draw(st.lists(st.tuples(st.integers(0, len(content)), st.integers(0, len(content))), max_size=6))
    spans = [(min(pair), max(pair) - min(pair)) for pair in ranges]
    wants = [want(*span) for span in spans]
    elsewhere = [(Collected(length), start, length) for start, length in spans]
    sinks = [Want("data", ByteRange(start, length), sink) for sink, start, length in elsewhere]
    stored(content).read([*(each for each, _ in wants), *sinks])
    for (start, length), (_, memory) in zip(spans, wants, strict=True):
        assert bytes(memory) == content[start : start + length]
    for sink, start, length in elsewhere:
        assert bytes(sink.data) == content[start : start + length]
        assert set(sink.times) <= {1}, "every byte comes once"


@pytest.mark.parametrize("position", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 7, 3 * BLOCK - 1])
@pytest.mark.parametrize(
    "spans",
    [[(0, 3 * BLOCK)], [(10, 3 * BLOCK - 20)], [(5, 1), (BLOCK + 5, 1), (2 * BLOCK + 5, 1)]],
    ids=["all of it", "all but the edges", "a byte of each block"],
)
def test_a_flipped_bit_is_found_wherever_its_block_landed(position: int, spans: list[tuple[int, int]]) -> None:
    content = contents(3 * BLOCK)
    store = MemoryStore()
    files = stored(content, store)
    rotten = bytearray(content)
    rotten[position] ^= 1
    store.corrupt("folder/data", rotten)
    start = position // BLOCK * BLOCK
    with pytest.raises(CorruptSnapshotError, match=f"bytes {start} to {start + BLOCK}") as caught:
        files.read([want(*span)[0] for span in spans])
    assert caught.value.evidence == "ChecksumMismatch"


def test_a_flipped_bit_in_an_unwanted_block_disturbs_no_reader() -> None:
    content = contents(4 * BLOCK)
    store = MemoryStore()
    files = stored(content, store)
    rotten = bytearray(content)
    rotten[3 * BLOCK + 1] ^= 1
    store.corrupt("folder/data", rotten)
    wanted, memory = want(0, BLOCK)
    files.read([wanted])
    assert bytes(memory) == content[:BLOCK]


def test_a_missing_object_and_a_range_behind_the_end_are_evidence_against_the_snapshot() -> None:
    store = MemoryStore()
    files = stored(contents(BLOCK), store)
    with pytest.raises(CorruptSnapshotError) as beyond:
        files.read([want(BLOCK - 1, 2)[0]])
    store.delete(["folder/data"])
    with pytest.raises(CorruptSnapshotError) as gone:
        files.read([want(0, 1)[0]])
    assert (beyond.value.evidence, gone.value.evidence) == ("ManifestMismatch", "MissingObject")


def test_a_failure_of_one_request_ends_the_reading_and_surfaces_once() -> None:
    class Failing(MemoryStore):
        calls = 0

        def read_into(self, key: str, *_: object) -> None:
            self.calls += 1
            raise StoreError("read", key, "it is down")

    store = Failing()
    files = Files(store, "folder", None, settings=SETTINGS)
    far_apart = range(0, 25_000_000, 100_000)
    with pytest.raises(StoreError, match="it is down"):
        files.read([want(start, 10)[0] for start in far_apart])
    assert store.calls < 50, "what had not begun is left"


def test_progress_counts_wanted_bytes() -> None:
    progress = TransferMeter()
    stored(contents(3 * BLOCK)).read([want(10, 100)[0], want(2 * BLOCK, 7)[0]], progress=progress)
    assert progress.snapshot().done == 107


class OnTheWay(MemoryStore):
    """Objects are whole; what is read of them is changed on the way, as ``changes`` says of one read after the other.

    Attributes:
        events: Reads and reconnections, in order.
    """

    def __init__(self, *changes: int) -> None:
        super().__init__()
        self.changes = list(changes)
        self.events: list[str] = []

    def reconnect(self) -> None:
        self.events.append("reconnect")

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        super().read_into(key, start, buffers)
        self.events.append(f"read {sum(buffer.nbytes for buffer in buffers)}")
        if self.changes:
            buffers[0][0] ^= self.changes.pop(0)


def test_a_bit_that_flips_on_the_way_is_read_again_over_a_fresh_connection() -> None:
    content = contents(3 * BLOCK)
    store = OnTheWay(1)
    wanted, memory = want(0, 3 * BLOCK)
    stored(content, store).read([wanted])
    assert bytes(memory) == content
    assert store.events == [f"read {3 * BLOCK}", "reconnect", f"read {BLOCK}"], "only the block that differed"


def test_the_same_damage_in_each_read_is_evidence() -> None:
    store = OnTheWay(1, 1, 1)
    with pytest.raises(CorruptSnapshotError) as caught:
        stored(contents(BLOCK), store).read([want(0, 10)[0]])
    assert caught.value.evidence == "ChecksumMismatch"
    assert store.events.count("reconnect") == 2


def test_other_damage_in_each_read_says_nothing_about_the_object() -> None:
    store = OnTheWay(1, 2, 4)
    with pytest.raises(UnreliableReadError, match="memory of this machine"):
        stored(contents(BLOCK), store).read([want(0, 10)[0]])


def test_a_range_that_is_always_short_is_evidence_although_the_store_tells_the_full_size() -> None:
    class Short(OnTheWay):
        def read_into(self, key: str, *_: object) -> None:
            self.events.append("read")
            raise TruncatedObjectError("read a range of", key, "of 10 bytes at offset 0 not all exist")

    store = Short()
    with pytest.raises(CorruptSnapshotError) as caught:
        stored(contents(BLOCK), store).read([want(0, 10)[0]])
    assert caught.value.evidence == "SizeMismatch"
    assert store.events == ["read", "reconnect", "read", "reconnect", "read"]


def test_an_answer_that_always_breaks_off_is_held_against_the_way_and_not_the_object() -> None:
    class BreaksOff(MemoryStore):
        def read_into(self, key: str, *_: object) -> None:
            raise CutOffError("read a range of", key, "the store broke off in the middle of its answer")

    with pytest.raises(UnreliableReadError, match="in each of several tries"):
        stored(contents(BLOCK), BreaksOff()).read([want(0, 10)[0]])


@given(flips=st.sets(st.integers(0, 5 * BLOCK - 1), max_size=4), spans=st.lists(st.integers(0, 4 * BLOCK), max_size=4))
@profile(max_examples=40, deadline=None)
def test_what_flips_once_arrives_whole_wherever_it_lands(flips: set[int], spans: list[int]) -> None:
    class Once(MemoryStore):
        def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
            super().read_into(key, start, buffers)
            position = start
            for buffer in buffers:
                for at in [at for at in flips if position <= at < position + buffer.nbytes]:
                    flips.discard(at)
                    buffer[at - position] ^= 1
                position += buffer.nbytes

    content = contents(5 * BLOCK)
    wants = [want(start, BLOCK) for start in spans]
    stored(content, Once()).read([each for each, _ in wants])
    for start, (_, memory) in zip(spans, wants, strict=True):
        assert bytes(memory) == content[start : start + BLOCK]


def test_an_assembled_want_is_delivered_once_with_all_of_its_bytes() -> None:
    content = contents(6 * BLOCK)
    delivered: list[tuple[int, bytes]] = []

    def assembled(start: int, length: int) -> Want:
        into = Assembly(lambda data: delivered.append((start, bytes(data))))
        return Want("data", ByteRange(start, length), into)

    plain, memory = want(5, 3 * BLOCK)
    stored(content).read([assembled(1, 2 * BLOCK), plain, assembled(BLOCK + 3, 4 * BLOCK)], staging_bytes=BLOCK)
    assert bytes(memory) == content[5 : 5 + 3 * BLOCK]
    assert delivered == [
        (1, content[1 : 1 + 2 * BLOCK]),
        (BLOCK + 3, content[BLOCK + 3 : 5 * BLOCK + 3]),
    ]


def test_nothing_is_assembled_from_damaged_bytes() -> None:
    store = MemoryStore()
    files = stored(contents(2 * BLOCK), store)
    store.put("folder/data", bytes(2 * BLOCK))
    delivered: list[bytes] = []
    into = Assembly(lambda data: delivered.append(bytes(data)))
    with pytest.raises(CorruptSnapshotError):
        files.read([Want("data", ByteRange(0, BLOCK), into)], staging_bytes=BLOCK)
    assert delivered == []
