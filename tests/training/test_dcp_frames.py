"""Frames: with a tensor's memory in between, they are the archive that torch itself saves."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.serialization import get_crc32_options, set_crc32_options

from checkpoint_sidecar.training.dcp.frames import Frame, frame, payload_matches

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint64,
    torch.bool,
]
SHAPES = [(), (1,), (0,), (3, 0, 2), (17,), (4, 3), (2, 3, 5), (1, 1)]
WITH_ELEMENTS = [shape for shape in SHAPES if 0 not in shape]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def shaped(*sizes: int) -> torch.Size:
    return torch.Size(sizes)


def tensor_of(dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    count = shape.numel() * dtype.itemsize
    pattern = (torch.arange(count) % 2).to(torch.uint8)
    return torch.empty(0, dtype=dtype).set_(pattern.untyped_storage(), 0, shape, torch.empty(shape).stride())


def memory(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def framed(tensor: torch.Tensor) -> bytes:
    around = frame(tensor.dtype, tensor.shape)
    return around.head + memory(tensor) + around.tail


def saved(tensor: torch.Tensor) -> bytes:
    data = io.BytesIO()
    torch.save(tensor, data)
    return data.getvalue()


@contextmanager
def archive_checksums(on: bool) -> Iterator[None]:
    before = get_crc32_options()
    set_crc32_options(on)
    frame.cache_clear()
    try:
        yield
    finally:
        set_crc32_options(before)
        frame.cache_clear()


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_frame_is_what_torch_saves(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(dtype, torch.Size(shape))
    with archive_checksums(False):
        assert framed(tensor) == saved(tensor)


@given(dtype=st.sampled_from(DTYPES), shape=st.lists(st.integers(0, 12), max_size=5).map(torch.Size))
@settings(max_examples=200, deadline=None)
def test_torch_loads_a_framed_tensor(dtype: torch.dtype, shape: torch.Size) -> None:
    tensor = tensor_of(dtype, shape)
    loaded = torch.load(io.BytesIO(framed(tensor)), weights_only=True)
    assert (loaded.dtype, loaded.shape) == (dtype, shape)
    assert memory(loaded) == memory(tensor)


@dtypes
@pytest.mark.parametrize("shape", WITH_ELEMENTS, ids=str)
def test_what_torch_saves_with_or_without_checksums_is_recognised(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(dtype, torch.Size(shape))
    for checksums in (True, False):
        with archive_checksums(checksums):
            archive = saved(tensor)
        expected = frame(dtype, tensor.shape)
        start = len(expected.head)
        assert payload_matches(memoryview(archive), expected)
        assert archive[start : start + expected.payload_bytes] == memory(tensor)


def test_the_frame_of_a_tensor_of_many_megabytes_is_what_torch_saves() -> None:
    tensor = torch.ones(300, 70_000, dtype=torch.bfloat16)
    with archive_checksums(False):
        assert framed(tensor) == saved(tensor)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(6, 4, dtype=torch.bfloat16),
        torch.zeros(4, 6, dtype=torch.float16),
        torch.zeros(6, 4, dtype=torch.bfloat16).t(),
        torch.zeros(4, 12, dtype=torch.bfloat16)[:, ::2],
        torch.zeros(8, 6, dtype=torch.bfloat16)[2:6],
        torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.bfloat16)),
        {"x": torch.zeros(4, 6, dtype=torch.bfloat16)},
    ],
    ids=["shape", "dtype", "transposed", "strided", "part of a larger storage", "parameter", "no tensor"],
)
def test_anything_but_a_contiguous_tensor_of_this_dtype_and_shape_is_not_recognised(other: torch.Tensor) -> None:
    expected = frame(torch.bfloat16, shaped(4, 6))
    assert not payload_matches(memoryview(saved(other)), expected)


@given(data=st.data())
def test_only_the_checksums_of_a_head_may_differ(data: st.DataObject) -> None:
    expected = frame(torch.float32, shaped(2, 3))
    head = bytearray(expected.head)
    position = data.draw(st.integers(0, len(head) - 1))
    head[position] ^= 1 << data.draw(st.integers(0, 7))
    is_checksum = any(expected.head[position - back :].startswith(b"PK\x07\x08") for back in range(4, 8))
    assert payload_matches(memoryview(head), expected) is is_checksum


def test_a_head_that_was_cut_off_is_not_recognised() -> None:
    expected = frame(torch.float32, shaped(2, 3))
    assert not payload_matches(memoryview(expected.head)[:-1], expected)


def test_a_frame_of_a_tensor_larger_than_memory_costs_none() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = frame(torch.bfloat16, shaped(5 * 2**30 // 2))
    assert large.payload_bytes == 5 * 2**30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_the_size_of_a_frame_is_that_of_the_archive() -> None:
    tensor = torch.ones(5, 7)
    assert frame(tensor.dtype, tensor.shape).size == len(saved(tensor)) == len(framed(tensor))


def test_equal_tensors_share_one_frame() -> None:
    first: Frame = frame(torch.float32, shaped(9, 9))
    assert frame(torch.float32, shaped(9, 9)) is first
