"""Objects are written in as many bytes as in the save before, and every reader finds them."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.exports.archives import packed_bytes
from checkpoint_sidecar.training.dcp.object_archives import PickleSizes, archive_of
from checkpoint_sidecar.training.dcp.restricted import load_restricted

VALUES: dict[str, Any] = {
    "number": 0.5,
    "text": "{}",
    "bytes": os.urandom(5000),
    "tensors": {"a": [torch.arange(3), torch.eye(2)]},
    "large": bytes(3_000_000),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_reader_finds_the_value(value: Any) -> None:
    archive = archive_of("x", value, PickleSizes()).getvalue()
    found = [
        torch.load(io.BytesIO(archive), weights_only=True),
        torch.load(io.BytesIO(archive), weights_only=False),
        load_restricted(io.BytesIO(archive), subject="x", trust="safe"),
    ]
    assert [repr(each) for each in found] == [repr(value)] * 3
    assert packed_bytes(archive) == (value if isinstance(value, bytes) else None)


def test_other_random_bytes_take_as_much_room() -> None:
    sizes = PickleSizes()
    stock, ours = set(), []
    for _ in range(50):
        value = os.urandom(10_000)
        stream = io.BytesIO()
        torch.save(value, stream)
        stock.add(len(stream.getvalue()))
        ours.append(len(archive_of("x", value, sizes).getvalue()))
    assert len(stock) > 1, "or there is nothing to show"
    assert len(set(ours)) == 1
    assert max(ours) < 1.1 * max(stock)


@given(st.lists(st.integers(1, 1 << 40), min_size=1))
def test_a_size_suffices_and_is_not_much_larger(asked: list[int]) -> None:
    sizes = PickleSizes()
    for size in asked:
        assert size <= sizes.filled("x", size) <= max(2 * size, size + size // 32 + 95)
    first = PickleSizes().filled("x", asked[0])
    assert asked[0] + 32 + asked[0] // 32 <= first <= max(asked[0] * 1.1 + 32, asked[0] + asked[0] // 32 + 95)


@given(st.integers(1, 1 << 40), st.floats(0.5, 1))
def test_a_smaller_object_keeps_its_size(size: int, part: float) -> None:
    sizes = PickleSizes()
    first = sizes.filled("x", size)
    assert sizes.filled("x", max(round(size * part), -(-first // 2))) == first
    assert sizes.filled("another", 1) == 64


def test_an_object_that_shrinks_much_takes_less_room() -> None:
    sizes = PickleSizes()
    sizes.filled("x", 1_000_000)
    assert sizes.filled("x", 1000) < 1100
