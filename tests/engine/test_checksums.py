"""Checksums: those of blocks are the package's own, and put together they are that of the whole."""

from __future__ import annotations

import itertools

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.engine.checksums import block_checksums, combine, of_blocks, of_parts, packed


def test_the_checksum_is_that_of_the_standard() -> None:
    # RFC 3720 appendix B.4: 32 bytes of zeros.
    assert block_checksums([bytes(32)], 4096) == [0x8A9136AA]


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_two_checksums_combine_to_that_of_both_together(first: bytes, second: bytes) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(parts=st.lists(st.binary(max_size=50), max_size=6))
def test_the_checksums_of_parts_combine_to_that_of_the_whole(parts: list[bytes]) -> None:
    assert of_parts(map(crc32c, parts), map(len, parts)) == crc32c(b"".join(parts))


def test_packed_checksums_have_their_highest_byte_first() -> None:
    assert packed([1, 0xAABBCCDD]) == b"\0\0\0\1\xaa\xbb\xcc\xdd"


@pytest.mark.parametrize("length", [2**20, 2**22 + 1, 12_345_678], ids=str)
def test_a_long_second_half_combines_as_well(length: int) -> None:
    first, second = b"head", b"\x5a" * length
    assert combine(crc32c(first), crc32c(second), length) == crc32c(first + second)


@given(data=st.binary(max_size=500), block=st.integers(1, 70), cuts=st.lists(st.integers(0, 500), max_size=6))
def test_blocks_are_summed_however_the_data_is_spread_over_buffers(data: bytes, block: int, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    buffers = [data[start:end] for start, end in itertools.pairwise(bounds)]
    checksums = block_checksums(buffers, block)
    assert checksums == [crc32c(data[start : start + block]) for start in range(0, len(data), block)]
    assert of_blocks(checksums, block, len(data)) == crc32c(data)


def test_buffers_of_other_items_than_bytes_are_summed_as_bytes() -> None:
    words = memoryview(bytes(range(16))).cast("I")
    assert block_checksums([words], 4096) == [crc32c(bytes(range(16)))]
