"""Writes DCP's ``.metadata`` from arrays: a pickle of torch's own classes, without their objects.

A pickle is a program for a stack machine, documented in Python's ``pickletools``. The chunks of a tensor differ in
numbers only, so that the program of one of them, repeated with other numbers, makes all of them: numpy writes it a
hundred times faster than the pickler. torch 2.6 and later versions read it.
"""

from __future__ import annotations

import copyreg
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorProperties

from checkpoint_sidecar.training.dcp.inventory import Integers, Inventory
from checkpoint_sidecar.training.dcp.remembered import once_for_each

VERSION = "1.0.0"
"""Of DCP's metadata."""

_Bytes: TypeAlias = npt.NDArray[np.uint8]

_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES = {
    "Metadata": _METADATA,
    "TensorStorageMetadata": _METADATA,
    "BytesStorageMetadata": _METADATA,
    "ChunkStorageMetadata": _METADATA,
    "MetadataIndex": _METADATA,
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "Size": "torch",
}
_FIELDS = ("offsets", "sizes", "properties", "size", "chunks", "fqn", "offset", "index", "relative_path", "length")
_SHARED = {name: number for number, name in enumerate((*_CLASSES, *_FIELDS))}
"""What rows refer to, by its number in the pickle's memo."""

_BUILT = pickle.SETITEMS + pickle.BUILD
_MOST_INT32 = 2**31 - 1


def metadata_bytes(metadata: Metadata, inventory: Inventory | None, *, prefix: str = "") -> bytes:
    """Return DCP's pickle of the metadata, in torch's own classes only, which torch 2.6 and later versions read.

    Args:
        inventory: That of the metadata, ``Inventory.of``.
        prefix: Put in front of every file's path, for a pointer one level above the save's folder.
    """
    (data,) = metadata_pickles(metadata, inventory, [prefix])
    return data


def metadata_pickles(
    metadata: Metadata,
    inventory: Inventory | None,
    prefixes: Sequence[str],
    *,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> list[bytes]:
    """Return the pickle with each of these prefixes, see ``metadata_bytes``. Nearly all of their bytes are the same.

    Args:
        elsewhere: Whole paths by name, in place of prefix and name. Without a prefix, names stay.
    """
    if inventory is None:
        return [_pickled(_under(prefix, metadata, elsewhere)) for prefix in prefixes]
    rest = [_contents(inventory), *_end(metadata.storage_meta)]
    return [b"".join([_beginning(inventory, prefix, elsewhere), *rest]) for prefix in prefixes]


def _path(name: str, prefix: str, elsewhere: Mapping[str, str]) -> str:
    return elsewhere.get(name, f"{prefix}/{name}") if prefix else name


def _beginning(inventory: Inventory, prefix: str, elsewhere: Mapping[str, str]) -> bytes:
    """Return the part that names what the rest refers to: only this part contains the paths of files."""
    parts = [
        pickle.PROTO + b"\x04",
        _class("Metadata") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT,
        pickle.MARK,
        _text("version"),
        # What the rest refers to is named once, in a value that the true version replaces below.
        pickle.MARK,
        *(_class(name) + pickle.MEMOIZE for name in _CLASSES),
        *(_text(name) + pickle.MEMOIZE for name in _FIELDS),
        *(_text(name) + pickle.MEMOIZE for name in inventory.names),
        *(_text(_path(name, prefix, elsewhere)) + pickle.MEMOIZE for name in inventory.files),
        pickle.TUPLE,
    ]
    return b"".join(parts)


@once_for_each
def _contents(inventory: Inventory) -> bytes:
    """Return the part that describes tensors and objects and says where they are: nearly all of the pickle."""
    names = range(len(_SHARED), len(_SHARED) + len(inventory.names))
    parts = [
        _text("state_dict_metadata"),
        *_described(inventory, names),
        _text("planner_data"),
        _value(inventory.planner_data),
        _text("storage_data"),
        *_stored(inventory, names, first_file=names.stop),
    ]
    return b"".join(parts)


def _end(storage_meta: StorageMeta | None) -> list[bytes]:
    return [
        _text("storage_meta"),
        _value(storage_meta),
        pickle.SETITEMS,
        pickle.MARK,
        _text("version"),
        _text(VERSION),
        pickle.SETITEMS,
        pickle.BUILD,
        pickle.STOP,
    ]


def _described(inventory: Inventory, names: range) -> Iterator[bytes]:
    """Yield the dict of each name's chunks, dtype and shape."""

    def chunk(rows: Integers, dimensions: int | None) -> Iterator[bytes | _Bytes]:
        if dimensions is None:
            return
        yield _new("ChunkStorageMetadata") + _shared("offsets")
        yield from _size(inventory.offsets[rows, :dimensions])
        yield _shared("sizes")
        yield from _size(inventory.sizes[rows, :dimensions])
        yield _BUILT

    yield pickle.EMPTY_DICT
    for name, kind, chunks in zip(names, inventory.kinds, _by_name(inventory, chunk), strict=True):
        yield pickle.MARK + _reference(name)
        if kind is None:
            yield _shared("BytesStorageMetadata") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
        else:
            yield _new("TensorStorageMetadata")
            yield _shared("properties") + _value(kind.properties) + _shared("size") + _value(kind.size)
            yield _shared("chunks") + pickle.EMPTY_LIST + pickle.MARK + chunks + pickle.APPENDS + _BUILT
        yield pickle.SETITEMS


def _stored(inventory: Inventory, names: range, first_file: int) -> Iterator[bytes]:
    """Yield the dict of where each row is."""
    numbers = np.repeat(np.arange(len(names)), inventory.counts)
    hints = np.arange(len(numbers)) - inventory.begins[numbers]

    def place(rows: Integers, dimensions: int | None) -> Iterator[bytes | _Bytes]:
        yield _new("MetadataIndex") + _shared("fqn")
        yield _references(numbers[rows] + names.start)
        yield _shared("index")
        if dimensions is None:
            yield pickle.NONE
        else:
            yield _numbers(hints[rows])
            yield _shared("offset")
            yield from _size(inventory.offsets[rows, :dimensions])
        yield _BUILT + _new("_StorageInfo") + _shared("relative_path")
        yield _references(inventory.file[rows] + first_file)
        yield _shared("offset")
        yield _numbers(inventory.start[rows])
        yield _shared("length")
        yield _numbers(inventory.length[rows])
        yield _BUILT

    yield pickle.EMPTY_DICT
    for places in _by_name(inventory, place):
        yield pickle.MARK + places + pickle.SETITEMS


def _by_name(inventory: Inventory, program: Callable[[Integers, int | None], Iterable[bytes | _Bytes]]) -> list[bytes]:
    """Return the programs that make the rows of each name.

    Args:
        program: Returns the parts of the programs of some rows, from their number of dimensions, which is None for
            objects: bytes that are the same in all of them, and arrays that have a row for each.
    """
    dimensions = [None if kind is None else len(kind.size) for kind in inventory.kinds]
    found = [b""] * len(dimensions)
    begins, counts = inventory.begins, inventory.counts
    for each in set(dimensions):
        names = [number for number, count in enumerate(dimensions) if count == each]
        rows = np.concatenate([np.arange(begins[name], begins[name] + counts[name]) for name in names])
        programs = _side_by_side(program(rows, each), len(rows))
        ends = np.cumsum(counts[names]).tolist()
        for name, begin, end in zip(names, [0, *ends], ends, strict=False):
            found[name] = programs[begin:end].tobytes()
    return found


def _side_by_side(parts: Iterable[bytes | _Bytes], rows: int) -> _Bytes:
    columns = [
        np.broadcast_to(np.frombuffer(part, np.uint8), (rows, len(part))) if isinstance(part, bytes) else part
        for part in parts
    ]
    return np.concatenate(columns, axis=1) if columns else np.empty((rows, 0), np.uint8)


def _size(values: Integers) -> Iterator[bytes | _Bytes]:
    """Yield the program that makes a ``torch.Size`` of each row's numbers."""
    count = values.shape[1]
    yield _shared("Size")
    if not count:
        yield pickle.EMPTY_TUPLE
    elif count <= 3:
        yield from (_numbers(column) for column in values.T)
        yield (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)[count - 1]
    else:
        yield pickle.MARK
        yield from (_numbers(column) for column in values.T)
        yield pickle.TUPLE
    yield pickle.TUPLE1 + pickle.REDUCE


def _numbers(values: Integers) -> _Bytes:
    if not len(values) or values.max() <= _MOST_INT32:
        return _behind(pickle.BININT, values.astype("<i4"))
    return _behind(pickle.LONG1 + b"\x08", values.astype("<i8"))


def _references(numbers: Integers) -> _Bytes:
    return _behind(pickle.LONG_BINGET, numbers.astype("<u4"))


def _behind(opcode: bytes, values: npt.NDArray[Any]) -> _Bytes:
    rows = len(values)
    return _side_by_side([opcode, values.view(np.uint8).reshape(rows, values.itemsize)], rows)


def _reference(number: int) -> bytes:
    return pickle.LONG_BINGET + number.to_bytes(4, "little")


def _shared(name: str) -> bytes:
    return pickle.BINGET + bytes((_SHARED[name],))


def _new(name: str) -> bytes:
    """Return the program up to a new object's fields; ``_BUILT`` follows them."""
    return _shared(name) + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT + pickle.MARK


def _class(name: str) -> bytes:
    return pickle.GLOBAL + f"{_CLASSES[name]}\n{name}\n".encode()


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def _value(value: Any) -> bytes:
    """Return the program that makes any value, without use of the memo."""
    data = io.BytesIO()
    pickler = _PortablePickler(data, protocol=3)  # later ones divide pickles into frames
    pickler.fast = True
    pickler.dump(value)
    return data.getvalue()[len(pickle.PROTO) + 1 : -len(pickle.STOP)]


def _pickled(metadata: Metadata) -> bytes:
    data = io.BytesIO()
    _PortablePickler(data, protocol=3).dump(metadata)  # as above: ``core.stock_paths`` finds every text
    return data.getvalue()


def _under(prefix: str, metadata: Metadata, elsewhere: Mapping[str, str] = MappingProxyType({})) -> Metadata:
    if not prefix:
        return metadata
    stored = {
        index: dataclasses.replace(info, relative_path=_path(info.relative_path, prefix, elsewhere))
        for index, info in metadata.storage_data.items()
    }
    return dataclasses.replace(metadata, storage_data=stored)


class _PortablePickler(pickle.Pickler):
    """Leaves out a tensor's strides, which newer versions of torch write, older ones choke on, and none reads."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not TensorProperties:
            return NotImplemented
        return copyreg.__newobj__, (TensorProperties,), value.__getstate__()[:5]  # type: ignore[attr-defined]
