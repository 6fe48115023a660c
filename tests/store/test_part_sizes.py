"""Sizes of parts: multiples of a checksum block, and large enough for the number of parts that every store allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.store.common import parts

MIB = 1024 * 1024
GIB = 1024 * MIB


@pytest.fixture(autouse=True)
def small() -> None:
    """The sizes as they are; elsewhere in this folder they are small."""


@pytest.mark.parametrize(
    ("size", "part", "wide"),
    [
        (0, 32, 32),
        (GIB, 32, 32),
        (2 * GIB, 32, 32),
        (2 * GIB + 1, 32, 36),
        (5 * GIB // 2, 32, 40),
        (4 * GIB, 32, 64),
        (100 * GIB, 32, 64),
        (1024 * GIB, 120, 120),
    ],
    ids=["nothing", "1 GiB", "2 GiB", "more than 2 GiB", "2.5 GiB", "4 GiB", "100 GiB", "1 TiB"],
)
def test_larger_objects_have_larger_parts(size: int, part: int, wide: int) -> None:
    assert (parts.part_bytes_for(size), parts.wide_part_bytes_for(size)) == (part * MIB, wide * MIB)


@given(size=st.integers(0, 5 * 1024 * GIB))
def test_parts_are_whole_blocks_and_neither_too_many_nor_too_few(size: int) -> None:
    for part in (parts.part_bytes_for(size), parts.wide_part_bytes_for(size)):
        assert part % (4 * MIB) == 0
        assert -(-size // part) <= parts.MOST_PARTS
    wide = parts.wide_part_bytes_for(size)
    connections = 16
    assert wide == parts.part_bytes_for(size) or -(-size // wide) > 3 * connections
