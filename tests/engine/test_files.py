"""Files of a snapshot: what is written can be read back in any range, and not one changed byte gets through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.core.errors import CorruptSnapshotError
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File
from checkpoint_sidecar.engine import read
from checkpoint_sidecar.engine.read import FileReader, Span, batches
from checkpoint_sidecar.engine.upload import upload_bytes, upload_file
from doubles.memory import MemoryStore

KEY = "folder/data"
SMALL_BLOCK = 4096


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def contents(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def described(data: bytes, block: int) -> File:
    """The manifest's line, computed in the plainest way."""
    blocks = b"".join(crc32c(data[i : i + block]).to_bytes(4, "big") for i in range(0, len(data), block))
    return File("data", len(data), crc32c(data), blocks)


@pytest.mark.parametrize(
    "size",
    [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 5],
    ids=["empty", "one byte", "just under a block", "one block", "just over a block", "over two blocks"],
)
def test_an_upload_describes_what_it_wrote(size: int) -> None:
    store, data = MemoryStore(), contents(size)
    file = upload_bytes(store, KEY, data)
    assert file == described(data, BLOCK_BYTES)
    assert store.get(KEY, max_bytes=size).data == data


@given(cuts=st.lists(st.integers(0, 2 * BLOCK_BYTES + 9), max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_description_does_not_depend_on_how_the_writes_were_cut(cuts: list[int]) -> None:
    data = contents(2 * BLOCK_BYTES + 9)
    bounds = [0, *sorted(cuts), len(data)]
    with upload_file(MemoryStore(), KEY) as stream:
        for start, end in itertools.pairwise(bounds):
            assert stream.write(memoryview(data)[start:end]) == end - start
    assert stream.describe("data") == described(data, BLOCK_BYTES)


def test_a_failed_upload_leaves_nothing_behind() -> None:
    store = MemoryStore()

    def fail_halfway() -> None:
        with upload_file(store, KEY) as stream:
            stream.write(b"half of it")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(store.list()) == []


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_range_reads_back_exactly(data: st.DataObject) -> None:
    content = contents(data.draw(st.integers(1, 5 * SMALL_BLOCK)))
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, len(content) - start))
    store = MemoryStore()
    store.put(KEY, content)
    with ThreadPoolExecutor(2) as pool:
        reader = FileReader(store, KEY, described(content, SMALL_BLOCK), pool=pool, block_bytes=SMALL_BLOCK)
        assert bytes(reader.read(Span(start, length))) == content[start : start + length]


def test_a_long_range_is_read_in_several_requests(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "REQUEST_BYTES", 2 * SMALL_BLOCK)
    content = contents(7 * SMALL_BLOCK + 3)
    store = MemoryStore()
    store.put(KEY, content)
    reader = FileReader(store, KEY, described(content, SMALL_BLOCK), pool=pool, block_bytes=SMALL_BLOCK)
    assert bytes(reader.read(Span(5, len(content) - 5))) == content[5:]


def test_a_flipped_bit_is_found_from_any_range_of_its_block_and_from_no_other(pool: Executor) -> None:
    content = contents(3 * SMALL_BLOCK)
    rotten = bytearray(content)
    rotten[SMALL_BLOCK + 7] ^= 1
    store = MemoryStore()
    store.put(KEY, rotten)
    reader = FileReader(store, KEY, described(content, SMALL_BLOCK), pool=pool, block_bytes=SMALL_BLOCK)
    assert bytes(reader.read(Span(0, SMALL_BLOCK))) == content[:SMALL_BLOCK]
    with pytest.raises(CorruptSnapshotError, match=f"bytes {SMALL_BLOCK} to {2 * SMALL_BLOCK}") as caught:
        reader.read(Span(2 * SMALL_BLOCK - 1, 1))
    assert caught.value.evidence == "ChecksumMismatch"


def test_a_missing_object_is_evidence_against_the_snapshot(pool: Executor) -> None:
    reader = FileReader(MemoryStore(), KEY, described(b"x", SMALL_BLOCK), pool=pool, block_bytes=SMALL_BLOCK)
    with pytest.raises(CorruptSnapshotError) as caught:
        reader.read(Span(0, 1))
    assert caught.value.evidence == "MissingObject"


@given(
    spans=st.lists(st.builds(Span, st.integers(0, 300), st.integers(0, 60)), max_size=20),
    gap=st.integers(0, 30),
    budget=st.integers(1, 200),
)
def test_batches_hold_every_span_once_within_budget_and_without_large_gaps(
    spans: list[Span], gap: int, budget: int
) -> None:
    groups = list(batches(spans, gap=gap, budget=budget))
    assert [span for group in groups for span in group] == sorted(spans)
    for group in groups:
        assert len(group) == 1 or max(span.end for span in group) - group[0].start <= budget
        reach = group[0].end
        for span in group[1:]:
            assert span.start <= reach + gap
            reach = max(reach, span.end)
