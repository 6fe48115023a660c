"""What is in a snapshot, from DCP's metadata, without torch. Pure.

``.metadata`` is a pickle of torch's classes. It is interpreted here without them: everything that it would build
becomes plain data, which is checked. See ``training.dcp.unpickler`` for the same with torch's classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError
from checkpoint_sidecar.core.pickles import MalformedError, RefusedError, read
from checkpoint_sidecar.engine.boxes import Box, tiles
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.safetensors import DTYPES

_OPERATION = "read the metadata of"


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """Where an archive that ``torch.save`` made of one item lies.

    Attributes:
        file: Name in the save's folder.
        span: Its bytes in the file.
    """

    file: str
    span: ByteRange


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A part of a tensor, as one rank saved it."""

    box: Box
    place: ArchivePlace


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a snapshot.

    Attributes:
        dtype: Torch's name of it.
        shards: Hold each element once; none if the tensor is empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shards: tuple[StoredShard, ...]

    @property
    def bytes(self) -> int:
        """Size of all elements."""
        return math.prod(self.shape) * DTYPES[self.dtype].bytes


@dataclass(frozen=True, slots=True)
class SnapshotContents:
    """Everything in a snapshot, in the order of its metadata.

    Attributes:
        tensors: By name.
        values: All other items by name, with their places.
    """

    tensors: Mapping[str, StoredTensor]
    values: Mapping[str, ArchivePlace]


def read_contents(data: bytes, *, subject: str) -> SnapshotContents:
    """Return the contents that DCP's metadata describes.

    Args:
        data: The bytes of ``.metadata``.
        subject: Name of the snapshot in errors.

    Raises:
        CorruptSnapshotError: The metadata is damaged.
        IncompatibleSnapshotError: It describes something that this version does not know.
    """
    try:
        return _contents(read(data, _PlainData()), subject)
    except (RefusedError, MalformedError, TypeError, ValueError, KeyError, AttributeError) as error:
        cause = f"it is not DCP's metadata: {str(error)[:200]}"
        raise CorruptSnapshotError(_OPERATION, subject, cause, evidence="ManifestMismatch") from error


@dataclass(eq=False, slots=True)
class _Instance:
    """A stand-in for an instance of a class; ``arguments`` are those of its constructor."""

    kind: str
    arguments: tuple[Any, ...]
    state: Any = None

    def field(self, name: str) -> Any:
        """Return a field; None if it has its default, which is not stored."""
        return self.state.get(name)


class _PlainData:
    """Builds a stand-in for each object of a pickle, without calling any code that the pickle names."""

    unshared: frozenset[type] = frozenset()

    def find(self, module: str, name: str) -> str:
        return f"{module}.{name}"

    def make(self, function: Any, arguments: Any) -> Any:
        if function == "torch.Size":
            return tuple(arguments[0])
        return _Instance(str(function), tuple(arguments))

    def build(self, instance: Any, state: Any) -> Any:
        instance.state = state
        return instance

    def persistent(self, identifier: Any) -> Any:
        raise RefusedError(f"it refers to {str(identifier)[:50]} outside of itself")

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        # An OrderedDict is a stand-in, too; no field read here is one.
        if isinstance(target, dict):
            target.update(zip(keys, values, strict=True))

    def append(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target += items


def _contents(metadata: _Instance, subject: str) -> SnapshotContents:
    places = {}
    for index, info in (metadata.field("storage_data") or {}).items():
        offset = index.field("offset")
        places[index.field("fqn"), None if offset is None else _shape(offset)] = _place(info, subject)
    tensors, values = {}, {}
    for name, entry in metadata.field("state_dict_metadata").items():
        if entry.kind.endswith(".TensorStorageMetadata"):
            tensors[str(name)] = _tensor(str(name), entry, places, subject)
        elif entry.kind.endswith(".BytesStorageMetadata"):
            values[str(name)] = places[name, None]
        else:
            raise ValueError(f"{name} is a {entry.kind}")
    return SnapshotContents(tensors, values)


def _tensor(
    name: str, entry: _Instance, places: Mapping[tuple[str, tuple[int, ...] | None], ArchivePlace], subject: str
) -> StoredTensor:
    shape = _shape(entry.field("size"))
    # The state of TensorProperties is a tuple that begins with the dtype; later versions of torch append to it.
    dtype = str(entry.field("properties").state[0]).removeprefix("torch.")
    if dtype not in DTYPES:
        raise IncompatibleSnapshotError(
            _OPERATION, f"{subject}: {name}", f"this version does not know the dtype {dtype}", "Upgrade it."
        )
    shards = tuple(
        StoredShard(box, places[name, box.offsets]) for box in _boxes(shape, entry.field("chunks")) if box.count
    )
    if not tiles(shape, [shard.box for shard in shards]):
        raise ValueError(f"the shards of {name} do not cover it")
    return StoredTensor(name, dtype, shape, shards)


def _boxes(shape: tuple[int, ...], chunks: list[_Instance]) -> Iterator[Box]:
    for chunk in chunks:
        offsets, lengths = _shape(chunk.field("offsets")), _shape(chunk.field("sizes"))
        if not len(shape) == len(offsets) == len(lengths):
            raise ValueError("a shard has another number of dimensions than its tensor")
        yield Box(shape, offsets, lengths)


def _place(info: _Instance, subject: str) -> ArchivePlace:
    if info.state.get("transform_descriptors"):
        raise IncompatibleSnapshotError(_OPERATION, subject, "its files are compressed or encrypted")
    name, offset, length = info.field("relative_path"), info.field("offset"), info.field("length")
    if type(name) is not str or type(offset) is not int or type(length) is not int or min(offset, length) < 0:
        raise ValueError("the place of an item is not one")
    return ArchivePlace(name, ByteRange(offset, length))


def _shape(value: Any) -> tuple[int, ...]:
    if not all(type(each) is int and each >= 0 for each in value):
        raise ValueError(f"{str(value)[:50]} is not a shape")
    return tuple(value)
