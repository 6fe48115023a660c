"""Boxes of a tensor lie where torch has them."""

from __future__ import annotations

from itertools import pairwise, product

import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.engine.boxes import Box


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    offsets = tuple(draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(draw(st.integers(1, size - offset)) for size, offset in zip(shape, offsets, strict=True))
    return Box(shape, offsets, sizes)


def places(box: Box) -> list[int]:
    """The position of each element of a box in the whole tensor, as torch counts."""
    numbers = torch.arange(torch.Size(box.shape).numel()).reshape(box.shape)
    for dimension, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        numbers = numbers.narrow(dimension, offset, size)
    return list(numbers.flatten().tolist())


@given(boxes(), st.data())
def test_spans_lead_to_the_same_elements(box: Box, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, box.count))
    last = data.draw(st.integers(first, box.count))
    found = [(at + step, position + step) for at, position, count in box.spans(first, last) for step in range(count)]
    assert found == list(enumerate(places(box)))[first:last]


@given(boxes(), st.data())
def test_what_a_span_of_the_tensor_needs_of_a_box_is_contiguous(box: Box, data: st.DataObject) -> None:
    whole = torch.Size(box.shape).numel()
    start = data.draw(st.integers(0, whole))
    stop = data.draw(st.integers(start, whole))
    first, last = box.within(start, stop)
    assert [at for at, place in enumerate(places(box)) if start <= place < stop] == list(range(first, last))


def test_a_run_is_as_long_as_it_can_be() -> None:
    for sizes in product((1, 2), (1, 3), (1, 4)):
        found = list(Box((2, 3, 4), (0, 0, 0), sizes).spans(0, torch.Size(sizes).numel()))
        assert all(a[1] + a[2] < b[1] for a, b in pairwise(found)), sizes
