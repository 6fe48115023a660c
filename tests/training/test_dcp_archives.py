"""Laying out a save: tensors of every kind are sent as torch would save them, from where they are."""

from __future__ import annotations

import io
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from checkpoint_sidecar.engine.files import FilePlan
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp import archives
from checkpoint_sidecar.training.dcp.archives import TensorBytes, archived, lay_out
from doubles.memory import MemoryStore
from doubles.targets import load, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

GIB = 2**30


def item(name: str) -> WriteItem:
    return WriteItem(MetadataIndex(name), WriteItemType.TENSOR)


def contents(file: FilePlan) -> bytes:
    return b"".join(bytes(segment.view(0, segment.size)) for segment in file.segments)


def stored(tensor: torch.Tensor) -> bytes:
    (file,) = lay_out(archived([(item("x"), tensor)]), rank=0).files
    return contents(file)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)


TENSORS: dict[str, torch.Tensor] = {
    "contiguous": numbered(4, 5),
    "scalar": torch.tensor(7.5),
    "no elements": torch.zeros(3, 0),
    "transposed": numbered(4, 5).t(),
    "permuted": numbered(2, 3, 4).permute(2, 0, 1),
    "every second column": numbered(6, 6)[:, ::2],
    "one element of every second": numbered(2)[::2],
    "expanded": numbered(1, 5).expand(4, 5),
    "rows of a larger tensor": numbered(8, 5)[2:6],
    "channels last": numbered(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "conjugated": torch.randn(5, dtype=torch.complex64).conj(),
    "negated": torch.randn(5, dtype=torch.complex64).conj().imag,
    "parameter": nn.Parameter(torch.randn(3, 3)),
    "sparse": torch.eye(4).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_torch_loads_the_archive_of_any_tensor(tensor: torch.Tensor) -> None:
    loaded = torch.load(io.BytesIO(stored(tensor)), weights_only=False)
    assert (loaded.dtype, loaded.shape, loaded.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    plain = torch.Tensor.dequantize if tensor.is_quantized else torch.Tensor.to_dense
    assert torch.equal(plain(loaded), plain(tensor.detach()))


def test_of_a_view_that_torch_saves_itself_only_the_view_is_saved() -> None:
    view = torch.quantize_per_tensor(torch.randn(100_000), 0.1, 0, torch.qint8)[:4]
    assert len(stored(view)) < 5000


@pytest.mark.parametrize(
    ("name", "copies"), [("contiguous", False), ("rows of a larger tensor", False), ("transposed", True)]
)
def test_only_what_does_not_lie_in_order_is_copied(name: str, copies: bool) -> None:
    tensor = TENSORS[name].clone(memory_format=torch.preserve_format)
    segment = TensorBytes(tensor)
    view = segment.view(0, segment.size)
    before = bytes(view)
    tensor.add_(1)
    assert segment.in_memory is not copies
    assert (bytes(view) == before) is copies


@given(data=st.data())
@settings(deadline=None)
def test_any_range_of_any_layout_is_that_of_the_contiguous_tensor(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    tensor = numbered(*shape).permute(order)[:: data.draw(st.integers(1, 3))]
    whole = tensor.numpy().tobytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    segment = TensorBytes(tensor)
    assert segment.size == len(whole)
    assert bytes(segment.view(start, stop)) == whole[start:stop]


def test_a_part_of_a_tensor_out_of_order_costs_the_memory_of_that_part_only() -> None:
    segment = TensorBytes(torch.empty(1, 8192, 16384, dtype=torch.bfloat16).transpose(1, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, segment.size, segment.size // 4):
        segment.view(start, start + 1024 * 1024)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_rank_with_much_to_save_begins_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILE_BYTES", 10_000)
    tensors = {f"x{number}": torch.full((1_000,), float(number)) for number in range(8)}
    layout = lay_out(archived((item(name), tensor) for name, tensor in tensors.items()), rank=3)
    assert [file.name for file in layout.files] == ["__3_0.distcp", "__3_1.distcp", "__3_2.distcp", "__3_3.distcp"]
    files = {file.name: contents(file) for file in layout.files}
    for result in layout.results:
        place: Any = result.storage_data
        archive = files[place.relative_path][place.offset : place.offset + place.length]
        assert torch.equal(torch.load(io.BytesIO(archive)), tensors[result.index.fqn])


def test_several_files_of_a_rank_are_saved_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILE_BYTES", 10_000)
    state = {f"x{number}": torch.full((1_000,), float(number)) for number in range(8)}
    saved = save(MemoryStore(), state)
    assert len(saved.manifest.files) > 4
    loaded = {name: torch.zeros(1_000) for name in state}
    load(loaded, saved.reader())
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 12 * GIB, reason="needs 12 GiB of memory"
)
def test_a_tensor_larger_than_four_gibibytes_is_laid_out_whole(tmp_path: Path) -> None:
    tensor = torch.empty(5 * GIB // 2, dtype=torch.bfloat16)  # its pages are never touched
    tensor[-1] = 3.0
    layout = lay_out(archived([(item("large"), tensor)]), rank=0)
    (file,) = layout.files
    head, payload, tail = file.segments
    assert payload.in_memory
    assert payload.size == 5 * GIB
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.write(head.view(0, head.size))
        stream.seek(payload.size - 4096, os.SEEK_CUR)
        stream.write(payload.view(payload.size - 4096, payload.size))
        stream.write(tail.view(0, tail.size))
    loaded = torch.load(path, mmap=True)
    assert loaded.shape == tensor.shape
    assert loaded[-1] == 3.0
    assert loaded[0] == 0.0


def test_saving_needs_no_memory_beside_the_tensors(tmp_path: Path) -> None:
    state = {"x": torch.ones(64 * 1024 * 1024)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(open_store(StoreSettings(f"file://{tmp_path}")), state)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
