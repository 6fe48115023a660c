"""Any part of an exported file is what torch puts together, whatever shards a tensor was saved in."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError
from checkpoint_sidecar.engine.boxes import Box
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.exports import reading as reading_module
from checkpoint_sidecar.exports.choosing import ExportedTensor
from checkpoint_sidecar.exports.contents import ArchivePlace, StoredShard, StoredTensor
from checkpoint_sidecar.exports.files import ExportFile
from checkpoint_sidecar.exports.reading import SnapshotReading, locate_payloads
from checkpoint_sidecar.training.conversion import cast
from checkpoint_sidecar.training.dcp.memory import as_buffer
from doubles.memory import MemoryStore

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "uint8": torch.uint8}


def archive(tensor: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    torch.save(tensor, stream)
    return stream.getvalue()


def boxes(shape: tuple[int, ...], cuts: list[list[int]]) -> list[Box]:
    """The boxes of a grid; ``cuts`` has the edges by dimension."""
    found = [Box(shape, (), ())]
    for edges in cuts:
        found = [
            Box(shape, (*box.offsets, start), (*box.sizes, stop - start))
            for box in found
            for start, stop in pairwise(edges)
            if start < stop
        ]
    return found


@st.composite
def saved_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, str, list[Box], str]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    target = draw(st.sampled_from([dtype, "float16"])) if dtype != "uint8" else dtype
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    values = torch.arange(torch.Size(shape).numel()).reshape(shape).to(DTYPES[dtype])
    return values, target, boxes(shape, cuts), dtype


@settings(max_examples=150)
@given(st.lists(saved_tensors(), min_size=1, max_size=3), st.data())
def test_any_span_of_a_file_is_read_out_of_the_shards(
    saved: list[tuple[torch.Tensor, str, list[Box], str]], data: st.DataObject
) -> None:
    store, content, tensors, wanted = MemoryStore(), b"", [], b"head"
    for number, (values, target, parts, dtype) in enumerate(saved):
        shards = []
        for box in parts:
            part = values
            for dimension, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
                part = part.narrow(dimension, offset, size)
            stored = archive(part.clone(memory_format=torch.contiguous_format))
            shards.append(StoredShard(box, ArchivePlace("data", ByteRange(len(content), len(stored)))))
            content += stored
        tensor = StoredTensor(f"t{number}", dtype, tuple(values.shape), tuple(shards))
        tensors.append(ExportedTensor(tensor.name, tensor, target))
        written = values.to(getattr(torch, target)).contiguous()
        wanted += bytes(as_buffer(written)) if written.numel() else b""
    store.put("data", content)
    files = Files(store, "", None, settings=EngineSettings(connections=1))
    payloads = locate_payloads(files, [each.stored for each in tensors], subject="run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_module, "PIECE_BYTES", 16)
        reading = SnapshotReading(files, payloads, 64, cast)
        file = ExportFile("file", (b"head", *tensors))
        start = data.draw(st.integers(0, file.size))
        stop = data.draw(st.integers(start, file.size))
        found = bytearray(stop - start)
        reading.fill(file, start, memoryview(found))
    assert bytes(found) == wanted[start:stop]
    assert file.size == len(wanted)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        pytest.param(torch.zeros(2, 3).t().contiguous().t(), "not in row-major order", id="strides"),
        pytest.param(torch.zeros(9)[3:], "not in row-major order", id="offset"),
        pytest.param(torch.zeros(2, 4), "has another shape", id="shape"),
        pytest.param(torch.zeros(2, 3).to_sparse(), "no record|not in row-major|opcode", id="sparse"),
    ],
)
def test_what_is_not_stored_as_a_plain_tensor_is_refused(stored: torch.Tensor, says: str) -> None:
    store, data = MemoryStore(), archive(stored)
    store.put("data", data)
    shape = (2, 3) if stored.dim() == 2 else (6,)
    box = Box(shape, (0,) * len(shape), shape)
    place = ArchivePlace("data", ByteRange(0, len(data)))
    tensor = StoredTensor("weight", "float32", shape, (StoredShard(box, place),))
    files = Files(store, "", None, settings=EngineSettings())
    with pytest.raises(IncompatibleSnapshotError, match=f"export weight of run: .*({says})"):
        locate_payloads(files, [tensor], subject="run")
