"""Writing files: laid out, cut into parts, sent side by side in bounded memory; all of them or none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from checkpoint_sidecar.core.errors import StoreError, TransferCancelledError
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.files import SMALL_BYTES, Bytes, FilePlan, parts_of
from checkpoint_sidecar.engine.limits import LEAST_MEMORY_BYTES, EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.upload import upload_bytes, upload_files
from checkpoint_sidecar.store.base import Buffer, Upload
from checkpoint_sidecar.store.common.parts import PART_BYTES
from doubles.memory import MemoryStore

BLOCK = 256 * 1024
MIB = 1024 * 1024
FEW = EngineSettings(memory_bytes=LEAST_MEMORY_BYTES, connections=4)


def contents(size: int, seed: int = 0) -> bytes:
    pattern = bytes((value + seed) % 251 for value in range(251))
    return (pattern * (size // 251 + 1))[:size]


def described(name: str, data: bytes) -> File:
    """The manifest's line, computed in the plainest way."""
    blocks = b"".join(crc32c(data[i : i + BLOCK]).to_bytes(4, "big") for i in range(0, len(data), BLOCK))
    return File(name, len(data), crc32c(data), blocks)


class Footprint:
    """How much memory segments have handed out that is still referred to."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def change(self, by: int) -> None:
        with self._lock:
            self.now += by
            self.most = max(self.most, self.now)


class _Counted(bytearray):
    footprint: Footprint

    def __del__(self) -> None:
        self.footprint.change(-len(self))


@dataclass(frozen=True)
class Elsewhere:
    """Zeros that cost memory when they are looked at, as on a device."""

    size: int
    footprint: Footprint
    in_memory: bool = False

    def view(self, start: int, stop: int) -> memoryview:
        data = _Counted(stop - start)
        data.footprint = self.footprint
        self.footprint.change(len(data))
        return memoryview(data)


@dataclass(frozen=True)
class Unreadable:
    size: int = 10
    in_memory: bool = False

    def view(self, *_: int) -> memoryview:
        raise ZeroDivisionError


class Slow(MemoryStore):
    """Takes its time for every part, as a distant store does."""

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Upload]:
        with super().upload(key, size) as upload:
            write = upload.write_part

            def write_slowly(index: int, buffers: Sequence[Buffer]) -> None:
                time.sleep(0.01)
                write(index, buffers)

            upload.write_part = write_slowly  # type: ignore[method-assign]
            yield upload


class Refusing(MemoryStore):
    """Refuses the parts of one object."""

    def __init__(self, refused: str) -> None:
        super().__init__()
        self._refused = refused

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Upload]:
        with super().upload(key, size) as upload:
            if key.endswith(self._refused):

                def refuse(index: int, buffers: Sequence[Buffer]) -> None:
                    raise StoreError("upload", key, "refused")

                upload.write_part = refuse  # type: ignore[method-assign]
            yield upload


sizes = st.one_of(st.integers(0, 40), st.integers(SMALL_BYTES - 2, SMALL_BYTES + 2), st.integers(0, 300_000))


@given(lengths=st.lists(sizes, max_size=12), part_bytes=st.integers(1_000, 400_000))
@profile(max_examples=60, deadline=None)
def test_parts_hold_every_byte_once_in_order_and_all_but_the_last_are_equal(
    lengths: list[int], part_bytes: int
) -> None:
    pieces = [contents(length, seed) for seed, length in enumerate(lengths)]
    plan = FilePlan("data", tuple(Bytes(piece) for piece in pieces))
    parts = list(parts_of(plan, part_bytes))
    assert b"".join(bytes(buffer) for part in parts for buffer in part.buffers()) == b"".join(pieces)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(part.size == part_bytes for part in parts[:-1])
    assert all(0 < part.size <= part_bytes for part in parts[-1:])


def test_large_pieces_are_sent_from_where_they_are_and_small_neighbours_in_one_buffer() -> None:
    large = bytearray(contents(2 * SMALL_BYTES))
    small = [Bytes(contents(100, seed)) for seed in range(1000)]
    (part,) = parts_of(FilePlan("data", (*small, Bytes(memoryview(large)), *small)), PART_BYTES)
    before, middle, after = part.buffers()
    assert (len(before), len(after)) == (100_000, 100_000)
    large[5] ^= 255
    assert middle[5] == large[5], "it is a view, not a copy"
    assert part.memory_bytes == 200_000


class Widening(MemoryStore):
    """Notes which uploads were asked for wide parts."""

    def __init__(self) -> None:
        super().__init__()
        self.widened: list[str] = []

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Upload]:
        with super().upload(key, size) as upload:
            upload.widen_parts = partial(self.widened.append, key)  # type: ignore[attr-defined]
            yield upload


def test_only_files_that_are_in_memory_are_sent_in_wide_parts() -> None:
    store = Widening()
    device = FilePlan("device", (Bytes(b"here"), Elsewhere(10, Footprint())))
    upload_files(
        store, "", [FilePlan("memory", (Bytes(b"here"),)), device], block_bytes=BLOCK, settings=EngineSettings()
    )
    assert store.widened == ["memory"]


@pytest.mark.parametrize("size", [0, 1, BLOCK, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + BLOCK // 2], ids=str)
def test_what_is_written_is_what_the_manifest_says(size: int) -> None:
    store, data = MemoryStore(), contents(size)
    plan = FilePlan("data", (Bytes(data[: size // 3]), Bytes(data[size // 3 :])))
    (file,) = upload_files(store, "folder", [plan], block_bytes=BLOCK, settings=FEW)
    assert file == described("data", data)
    assert store.get("folder/data", max_bytes=size).data == data


def test_bytes_at_hand_are_described_the_same_way() -> None:
    store, data = MemoryStore(), contents(3 * BLOCK + 5)
    assert upload_bytes(store, "folder/data", data, block_bytes=BLOCK) == described("data", data)


def test_files_come_back_in_the_order_they_were_given() -> None:
    store = Slow()
    plans = [FilePlan(f"f{number}", (Bytes(contents(MIB, number)),)) for number in range(6)]
    files = upload_files(store, "folder", plans, block_bytes=BLOCK, settings=FEW)
    assert files == [described(f"f{number}", contents(MIB, number)) for number in range(6)]


@pytest.mark.parametrize("failing", [FilePlan("bad", (Unreadable(),)), FilePlan("refused", (Bytes(b"x" * 10),))])
def test_the_first_failure_ends_everything_and_nothing_is_visible(failing: FilePlan) -> None:
    store = Refusing("refused")
    good = [FilePlan(f"f{number}", (Bytes(contents(MIB)),)) for number in range(5)]
    with pytest.raises((ZeroDivisionError, StoreError)):
        upload_files(store, "folder", [*good[:3], failing, *good[3:]], block_bytes=BLOCK, settings=FEW)
    assert list(store.list()) == []


def test_a_save_that_is_called_off_stores_nothing() -> None:
    store, progress = Slow(), TransferMeter()
    plan = FilePlan("data", (Bytes(contents(2 * PART_BYTES)),))
    progress.cancel()
    with pytest.raises(TransferCancelledError):
        upload_files(store, "folder", [plan], block_bytes=BLOCK, settings=FEW, progress=progress)
    assert list(store.list()) == []


def test_what_is_fetched_to_be_sent_stays_within_the_budget_however_slow_the_store_is() -> None:
    footprint = Footprint()
    settings = EngineSettings(memory_bytes=3 * PART_BYTES, connections=16)
    plans = [FilePlan(f"f{number}", (Elsewhere(4 * PART_BYTES, footprint),)) for number in range(3)]

    class Dropping(Slow):
        def _write(self, key: str, _: bytes) -> None:
            super()._write(key, b"")

    files = upload_files(Dropping(), "folder", plans, block_bytes=BLOCK, settings=settings)
    assert sum(file.size for file in files) == 12 * PART_BYTES
    assert PART_BYTES <= footprint.most <= settings.memory_bytes + PART_BYTES  # + what the double itself holds on to


def test_progress_hears_of_every_byte() -> None:
    progress = TransferMeter()
    plan = FilePlan("data", tuple(Bytes(contents(MIB)) for _ in range(40)))
    upload_files(MemoryStore(), "folder", [plan], block_bytes=BLOCK, settings=FEW, progress=progress)
    assert (progress.snapshot().done, progress.snapshot().total) == (40 * MIB, 40 * MIB)
