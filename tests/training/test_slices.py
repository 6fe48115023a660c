"""Where slices lie, compared with what torch itself says about the same views."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.training.dcp.slices import Slice


@st.composite
def slices(draw: st.DrawFn) -> Slice:
    sizes = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    offsets = tuple(draw(st.integers(0, size)) for size in sizes)
    lengths = tuple(draw(st.integers(0, size - offset)) for size, offset in zip(sizes, offsets, strict=True))
    return Slice(sizes, offsets, lengths)


def view_of(box: Slice) -> torch.Tensor:
    """The same box as a view of a tensor whose elements are their own positions."""
    view = torch.arange(torch.Size(box.sizes).numel()).reshape(box.sizes)
    for dimension, (offset, length) in enumerate(zip(box.offsets, box.lengths, strict=True)):
        view = view.narrow(dimension, offset, length)
    return view


@given(slices())
def test_a_slice_lies_where_torch_says(box: Slice) -> None:
    view = view_of(box)
    assert box.count == view.numel()
    if box.count:
        assert box.first == view.min()
        assert box.extent == view.max() - view.min() + 1
        assert box.contiguous == view.is_contiguous()
        memory = torch.arange(box.first, box.first + box.extent)
        assert torch.equal(memory.as_strided(box.lengths, box.strides), view)


@given(slices(), st.integers(1, 30))
def test_the_parts_of_a_slice_make_it_up_and_are_small(box: Slice, limit: int) -> None:
    parts = list(box.split(limit))
    assert sorted(int(i) for part in parts for i in view_of(part).flatten()) == sorted(view_of(box).flatten().tolist())
    assert all(part.extent <= max(limit, 1) or part.count == 1 for part in parts)


@pytest.mark.parametrize(
    ("box", "contiguous"),
    [
        pytest.param(Slice((8, 4), (2, 0), (3, 4)), True, id="rows"),
        pytest.param(Slice((8, 4), (0, 1), (8, 2)), False, id="columns"),
        pytest.param(Slice((8, 4), (5, 1), (1, 2)), True, id="a part of one row"),
        pytest.param(Slice((), (), ()), True, id="a scalar"),
        pytest.param(Slice((0, 4), (0, 0), (0, 4)), True, id="nothing"),
    ],
)
def test_a_slice_is_contiguous_when_nothing_lies_between_its_elements(box: Slice, contiguous: bool) -> None:
    assert box.contiguous is contiguous
