"""The index in ``.metadata``; ``core.metadata_index`` says where it lies.

It is msgpack, with tables of integers as ``columns.pack_rows`` packs them; docs/format.md describes both. What an index
cannot describe has none, and is read from the pickle.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch.distributed.checkpoint.metadata import TensorProperties

from checkpoint_sidecar.core.errors import CorruptSnapshotError
from checkpoint_sidecar.training.dcp.columns import inflate, pack_rows, unpack_columns, unpack_rows
from checkpoint_sidecar.training.dcp.inventory import Integers, Inventory, TensorKind
from checkpoint_sidecar.training.dcp.remembered import once_for_each

FORMAT = 1
_MOST_BYTES = 4 * 1024**3
_OPERATION = "read the index of"

_Number = Annotated[int, msgspec.Meta(ge=0)]


class _Kind(msgspec.Struct, frozen=True, array_like=True):
    """A tensor's dtype, by torch's name of it, and shape; and properties that torch notes and does not use."""

    dtype: str
    size: tuple[_Number, ...]
    requires_grad: bool
    pin_memory: bool


class _Names(msgspec.Struct, frozen=True, array_like=True):
    names: tuple[str, ...]
    kinds: tuple[_Kind | None, ...]
    paths: tuple[tuple[str, tuple[str | int, ...]], ...] | None
    files: tuple[str, ...]


class _ChunkIndex(msgspec.Struct, frozen=True):
    """The index.

    Attributes:
        names: Compressed with zlib, because names repeat.
        counts: Number of rows of each name.
        rows: Offsets and sizes by dimension; file, start and length.
    """

    format: int
    names: bytes
    counts: bytes
    rows: bytes


@once_for_each
def encode(inventory: Inventory) -> bytes | None:
    """Return the index of a complete inventory, or None if an index cannot describe it."""
    kinds = [None if kind is None else _kind(kind) for kind in inventory.kinds]
    if any(described is None for described, kind in zip(kinds, inventory.kinds, strict=True) if kind):
        return None
    paths = inventory.planner_data
    names = _Names(inventory.names, tuple(kinds), None if paths is None else tuple(paths.items()), inventory.files)
    rows = np.column_stack([inventory.offsets, inventory.sizes, inventory.file, inventory.start, inventory.length])
    try:
        described = msgspec.msgpack.encode(names)
    except (OverflowError, UnicodeEncodeError):
        return None
    index = _ChunkIndex(FORMAT, zlib.compress(described, 6), pack_rows(inventory.counts[:, None]), pack_rows(rows))
    return msgspec.msgpack.encode(index)


def decode(data: bytes | memoryview, *, subject: str) -> Inventory:
    """Return the inventory that an index describes.

    Args:
        subject: Name in errors.

    Raises:
        CorruptSnapshotError: It is not an index, or contradicts itself.
    """
    try:
        index = msgspec.msgpack.decode(data, type=_ChunkIndex)
        names = msgspec.msgpack.decode(inflate(index.names, most=_MOST_BYTES), type=_Names)
        kinds = tuple(None if kind is None else _described(kind) for kind in names.kinds)
        counts = unpack_rows(index.counts, most=_MOST_BYTES).reshape(-1)
        *places, file, start, length = unpack_columns(index.rows, int(counts.sum()), most=_MOST_BYTES)
    except (msgspec.MsgspecError, zlib.error, ValueError, LookupError) as error:
        raise _unreadable(subject, str(error)) from error
    width = len(places) // 2
    needed = max((len(kind.size) for kind in kinds if kind), default=0)
    if index.format != FORMAT or not len(kinds) == len(names.names) == len(counts) or needed > width:
        raise _unreadable(subject, "its parts do not belong together")
    numbers = (counts, file, start, length, *places)
    if any(each.min(initial=0) < 0 for each in numbers) or file.max(initial=-1) >= len(names.files):
        raise _unreadable(subject, "its numbers are out of range")
    if any(kind is None and count != 1 for kind, count in zip(kinds, counts.tolist(), strict=True)):
        raise _unreadable(subject, "an object has several parts")
    return Inventory(
        names.names,
        kinds,
        np.cumsum(counts),
        _together(places[:width], len(file)),
        _together(places[width : 2 * width], len(file)),
        None if names.paths is None else dict(names.paths),
        names.files,
        file,
        start,
        length,
    )


def _together(columns: list[Integers], rows: int) -> Integers:
    return np.column_stack(columns) if columns else np.zeros((rows, 0), np.int64)


def _kind(kind: TensorKind) -> _Kind | None:
    known = kind.properties
    plain = TensorProperties(known.dtype, requires_grad=known.requires_grad, pin_memory=known.pin_memory)
    plain.strides = getattr(known, "strides", None)
    name = str(known.dtype).removeprefix("torch.")
    return _Kind(name, tuple(kind.size), known.requires_grad, known.pin_memory) if known == plain else None


def _described(kind: _Kind) -> TensorKind:
    dtype = vars(torch).get(kind.dtype)
    if not isinstance(dtype, torch.dtype):
        raise LookupError(f"torch has no dtype {kind.dtype!r}")  # noqa: TRY004 - the data is wrong, not a type
    properties = TensorProperties(dtype, requires_grad=kind.requires_grad, pin_memory=kind.pin_memory)
    return TensorKind(properties, torch.Size(kind.size))


def _unreadable(subject: str, cause: str) -> CorruptSnapshotError:
    return CorruptSnapshotError(_OPERATION, subject, f"it cannot be read: {cause}", evidence="ManifestMismatch")
