"""Pickles out of a bucket: whatever is in them, they end in an error of ours and change nothing in this process."""

from __future__ import annotations

import contextlib
import io
import pathlib
import pickle
import pickletools
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from checkpoint_sidecar.core.errors import CheckpointError, CorruptSnapshotError, UntrustedSnapshotError
from checkpoint_sidecar.training.dcp import unpickler
from checkpoint_sidecar.training.dcp.restricted import load_restricted
from checkpoint_sidecar.training.dcp.unpickler import load_metadata

GOLDEN = sorted(Path(__file__).with_name("golden").glob("*/*/.metadata"))
MOST_BYTES = 16 * 1024 * 1024
"""More than any of the pickles below may make this process take."""

HUGE = b"\x8a\x05\x00\x00\x00\x00\x01"  # 2**32
SOURCE = "torch.distributed.checkpoint.metadata"


def of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def nested(levels: int) -> bytes:
    """A tuple of two of itself, and so on: 2**levels parts in a few bytes."""
    return b")" + b"".join(b"q%ch%ch%c\x86" % (n, n, n) for n in range(levels))


NESTED_KEY = b"\x80\x02}(" + b")q\x00h\x00" + b"".join(b"\x86q%ch%c" % (n, n) for n in range(1, 60)) + b"\x86K\x01u."
SETS_A_CLASS = b"N}" + text("parser") + b"K\x01s\x86b."

METADATA_ATTACKS = {
    "sets an attribute of a path class": b"\x80\x02" + of("pathlib", "PosixPath") + SETS_A_CLASS,
    "sets an attribute of a metadata class": b"\x80\x02" + of(SOURCE, "ChunkStorageMetadata") + SETS_A_CLASS,
    "sets an attribute of a function": b"\x80\x02" + of("torch.serialization", "_get_layout") + SETS_A_CLASS,
    "replaces a class's dict": b"\x80\x02" + of(SOURCE, "Metadata") + b"}" + text("version") + b"K\x01sb.",
    "remembers far out": b"\x80\x02Nr\x00\x00\x00\x08.",
    "a tuple nested in itself as a key": NESTED_KEY,
    "a shape of endless dimensions": b"\x80\x02" + of("torch", "Size") + b"](" + b"K\x01" * 2000 + b"e\x85R.",
    "lists without end": b"\x80\x02](" + b"]" * 300_000 + b"e.",
    "marks without end": b"\x80\x02" + b"(" * 100_000,
    "an integer of a gigabyte": b"\x80\x02\x8b\x00\x00\x00\x40.",
    "a string of a gigabyte": b"\x80\x02X\x00\x00\x00\x40.",
    "bytes of many gigabytes": b"\x80\x04\x8e\x00\x00\x00\x00\x10\x00\x00\x00.",
    "an extension": b"\x80\x02\x82\x01.",
    "an object of another kind": b"\x80\x02(ios\nsystem\n.",
    "something persistent": b"\x80\x02K\x01Q.",
    "a module for a class": b"\x80\x04" + b"\x8c\x05torch\x8c\x0bSize.mro\x93.",
    "a list shared by two tensors": b"\x80\x02"
    + of(SOURCE, "TensorStorageMetadata")
    + b")\x81}("
    + text("chunks")
    + b"]q\x00"
    + text("size")
    + b"h\x00ub.",
    "paths that are no paths": b"\x80\x02"
    + of(SOURCE, "Metadata")
    + b")\x81}("
    + text("planner_data")
    + b"}"
    + text("a")
    + b")q\x00h\x00\x86\x85sub.",
}


def _process() -> dict[str, Any]:
    """What pickles can reach in this process."""
    reachable = [pathlib.PosixPath, pathlib.PurePosixPath, *unpickler.ALLOWED.values(), TensorProperties]
    return {repr(each): dict(vars(each)) for each in reachable if hasattr(each, "__dict__")} | {
        "torch": len(vars(torch))
    }


def measured(action: Callable[[], Any]) -> int:
    """Bytes that an action takes at most besides what is there, while it raises our error and changes nothing."""
    before = _process()
    tracemalloc.start()
    try:
        with pytest.raises((UntrustedSnapshotError, CorruptSnapshotError)):
            action()
        assert _process() == before
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("attack", METADATA_ATTACKS.values(), ids=METADATA_ATTACKS)
def test_metadata_that_attacks_is_refused(attack: bytes) -> None:
    assert measured(lambda: load_metadata(attack, subject="a")) < MOST_BYTES + 16 * len(attack)


def test_a_refusal_is_final_and_names_the_way_out() -> None:
    with pytest.raises(UntrustedSnapshotError, match=r"os\.system.*trust=\"full\"") as refusal:
        load_metadata(b"\x80\x02" + of("os", "system") + text("true") + b"\x85R.", subject="s3://b/.metadata")
    assert "s3://b/.metadata" in str(refusal.value)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parts[-3]} {path.parts[-2]}")
def test_what_torch_writes_is_read_as_torch_reads_it(path: Path) -> None:
    data = path.read_bytes()
    safe, full = (load_metadata(data, subject="a", trusted=trusted) for trusted in (False, True))
    for name in ("state_dict_metadata", "planner_data", "storage_data"):
        assert getattr(safe, name) == getattr(full, name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_protocols_are_read(protocol: int) -> None:
    chunk = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([300, 70_000]))
    tensor = TensorStorageMetadata(TensorProperties(torch.bfloat16), torch.Size([300, 70_000]), [chunk])
    metadata = Metadata({"name": tensor}, {"a": ("a", 3)}, {})
    assert load_metadata(pickle.dumps(metadata, protocol), subject="a") == metadata


@given(st.sampled_from(GOLDEN), st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_end_in_an_error_of_ours_or_in_metadata(path: Path, data: st.DataObject) -> None:
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    before = _process()
    try:
        found = load_metadata(bytes(damaged), subject="a")
        assert type(found) is Metadata
        hash(next(iter(found.__dict__.get("storage_data") or {None: 0})))
    except (UntrustedSnapshotError, CorruptSnapshotError):
        pass
    assert _process() == before


_PIECES = st.one_of(
    st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes]),
    st.sampled_from(
        [
            of(SOURCE, "ChunkStorageMetadata"),
            of(SOURCE, "MetadataIndex"),
            of("torch", "Size"),
            of("torch", "float32"),
            of("pathlib", "PosixPath"),
            of("collections", "OrderedDict"),
            of("torch._utils", "_rebuild_tensor_v2"),
            of("builtins", "bytearray"),
            text("offsets"),
            HUGE,
            b"h\x00",
            b")\x81",
            b"\x85R",
            b"}s",
            b"q\x00",
        ]
    ),
    st.binary(max_size=3),
)


@given(st.lists(_PIECES, max_size=40))
@settings(max_examples=300, deadline=None)
def test_random_opcodes_end_in_an_error_of_ours(pieces: list[bytes]) -> None:
    program = b"\x80\x02" + b"".join(pieces) + b"."
    before = _process()
    with pytest.raises((UntrustedSnapshotError, CorruptSnapshotError)):
        load_metadata(program, subject="a")
    with contextlib.suppress(CheckpointError):
        load(archive(program))
    assert _process() == before


# Values that torch.save wrote


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def archive(program: bytes, *, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """What torch would take for an archive of its own, with another pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(0))) as source, zipfile.ZipFile(made, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
        for name, content in records.items():
            target.writestr(f"archive/data/{name}", content)
    return made.getvalue()


def load(data: bytes) -> Any:
    return load_restricted(io.BytesIO(data), subject="item", trust="safe")


TENSOR = (
    of("torch._utils", "_rebuild_tensor_v2")
    + b"(("
    + text("storage")
    + of("torch", "FloatStorage")
    + text("0")
    + text("cpu")
    + b"K\x01tQ"
)


ITEM_ATTACKS = {
    "a bytearray of four gigabytes": archive(b"\x80\x02" + of("builtins", "bytearray") + HUGE + b"\x85R."),
    "a tensor of four gigabytes": archive(b"\x80\x02" + of("torch", "FloatTensor") + HUGE + b"\x85R."),
    "a new tensor of four gigabytes": archive(b"\x80\x02" + of("torch", "Tensor") + HUGE + b"\x85\x81."),
    "a storage of four gigabytes": archive(b"\x80\x02" + of("torch.storage", "UntypedStorage") + HUGE + b"\x85R."),
    "a tensor by way of another function": archive(
        b"\x80\x02"
        + of("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + of("torch", "FloatTensor")
        + of("torch", "Tensor")
        + HUGE
        + b"\x85}tR."
    ),
    "bytes that double": archive(
        b"\x80\x02"
        + of("_codecs", "encode") * 26
        + text("some bytes")
        + text("latin1")
        + b"\x86R"
        + (text("hex") + b"\x86R") * 25
        + b"."
    ),
    "a tuple nested in itself as a key": archive(NESTED_KEY),
    "a dict copied again and again": archive(
        b"\x80\x02](}("
        + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(5000))
        + b"uq\x00"
        + (of("collections", "OrderedDict") + b"h\x00\x85R") * 20_000
        + b"e."
    ),
    "a compressed pickle": archive(b"\x80\x02X\x00\x00\x00\x04" + bytes(64 << 20) + b".", compression=8),
    "a compressed storage": archive(b"\x80\x02N.", compression=zipfile.ZIP_DEFLATED, **{"0": bytes(64 << 20)}),
    "an array of many gigabytes": archive(b"\x80\x02" + of("numpy", "ndarray") + HUGE + b"\x85\x85R."),
    "a list of a range": archive(
        b"\x80\x02" + of("builtins", "list") + of("builtins", "range") + HUGE + b"\x85R\x85R."
    ),
    "zeros by the billion": archive(b"\x80\x02" + of("builtins", "bytes") + HUGE + b"\x85R."),
    "a number of a billion digits": archive(
        b"\x80\x02" + of("fractions", "Fraction") + text("1e1000000000") + b"\x85R."
    ),
    "a number made of another": archive(
        b"\x80\x02" + of("builtins", "int") + of("decimal", "Decimal") + text("1e1000000000") + b"\x85R\x85R."
    ),
    "no archive": pickle.dumps(0),
    "the old format": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "nothing": b"",
}


@pytest.mark.parametrize("attack", ITEM_ATTACKS.values(), ids=ITEM_ATTACKS)
def test_an_item_that_attacks_is_refused(attack: bytes) -> None:
    assert measured(lambda: load(attack)) < MOST_BYTES + 16 * len(attack)


def test_an_archive_means_the_same_to_python_and_torch() -> None:
    good = saved(torch.arange(4))
    appended = good + saved(torch.arange(5))
    for hostile in (appended, b"some bytes" + good, good + b"\0", good[:-2] + b"\x04\x00four"):
        with pytest.raises((UntrustedSnapshotError, CorruptSnapshotError)):
            load(hostile)
    made = io.BytesIO(archive(b"\x80\x02K\x01."))
    with zipfile.ZipFile(made, "a") as twice:
        twice.writestr("archive/DATA.PKL", b"\x80\x02K\x02.")
    with pytest.raises(CorruptSnapshotError, match="one name"):
        load(made.getvalue())


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, "text", b"bytes", bytearray(b"bytes"), 1 << 70, True, {1, 2}, 3j],
        {"betas": [(0.9, 0.999)] * 1000, (1, ("a", 2)): "key"},
        [(0.9, 0.999)] * 1000,
        OrderedDict(a=1, b=torch.zeros(3)),
        Counter("abcab"),
        torch.Size([3, 4]),
        [list(range(1000))] * 1000,
        "e" * 100_000,
        list(range(50_000)),
        torch.float32,
        torch.device("cpu"),
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(1).expand(1_000_000),
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.empty(1 << 40, device="meta"),
        torch.empty(0),
        torch.zeros(3, dtype=torch.complex64).conj(),
        torch.zeros(3, dtype=torch.float8_e4m3fn),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_torch_save_wrote_comes_back(value: Any) -> None:
    found = load(saved(value))
    assert type(found) is type(value)
    if isinstance(value, torch.Tensor):
        assert (found.dtype, found.shape, found.layout) == (value.dtype, value.shape, value.layout)
        if not value.is_meta:
            one, other = (each.dequantize() if each.is_quantized else each.to_dense() for each in (found, value))
            assert torch.equal(one.to(torch.complex64), other.to(torch.complex64))
    else:
        assert repr(found) == repr(value)


@given(st.integers(0, 1 << 30), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_of_an_item_end_in_an_error_of_ours(position: int, byte: int) -> None:
    damaged = bytearray(saved({"a": [torch.arange(3), (1, "x")]}))
    damaged[position % len(damaged)] = byte
    with contextlib.suppress(CheckpointError):
        load(bytes(damaged))
