"""What a snapshot stores, as arrays: DCP's ``Metadata`` at a hundredth of its cost.

``Metadata`` has about seven Python objects for each chunk of each tensor; at a thousand ranks and tensors they take
gigabytes, and minutes to pickle. The same numbers in arrays take megabytes and milliseconds.
"""

from __future__ import annotations

import copyreg
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

Integers: TypeAlias = npt.NDArray[np.int64]


class TensorKind(NamedTuple):
    """What all chunks of a tensor have in common."""

    properties: TensorProperties
    size: torch.Size


def _nothing() -> Integers:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Inventory:
    """Tensors and objects, and where they are stored. A row stands for one chunk of a tensor, or for one object.

    Attributes:
        names: Names in the state dict.
        kinds: By name; None for an object.
        ends: By name: the row behind its last one. Rows have the order of names and of DCP's chunks.
        offsets, sizes: Of each row's chunk, by dimension; 0 in dimensions that the tensor lacks.
        planner_data: As in ``Metadata``.
        files: Names of files; empty before anything is stored.
        file, start, length: Each row's place: index in ``files``, and bytes.
    """

    names: tuple[str, ...]
    kinds: tuple[TensorKind | None, ...]
    ends: Integers
    offsets: Integers
    sizes: Integers
    planner_data: Any = None
    files: tuple[str, ...] = ()
    file: Integers = field(default_factory=_nothing)
    start: Integers = field(default_factory=_nothing)
    length: Integers = field(default_factory=_nothing)

    @classmethod
    def planned(cls, metadata: Metadata) -> Inventory | None:
        """Return the inventory of metadata without its places, or None if it has more to say than an inventory can."""
        if isinstance(metadata, PlannedMetadata) and "state_dict_metadata" not in vars(metadata):
            return metadata.contents
        if not _are_paths(metadata.planner_data):
            return None
        chunks: list[ChunkStorageMetadata | None] = []
        kinds: list[TensorKind | None] = []
        ends: list[int] = []
        for entry in metadata.state_dict_metadata.values():
            if isinstance(entry, TensorStorageMetadata):
                kinds.append(TensorKind(entry.properties, entry.size))
                chunks += entry.chunks
                if any(not len(chunk.offsets) == len(chunk.sizes) == len(entry.size) for chunk in entry.chunks):
                    return None
            else:
                kinds.append(None)
                chunks.append(None)
            ends.append(len(chunks))
        return cls(
            tuple(metadata.state_dict_metadata),
            tuple(kinds),
            np.array(ends, np.int64),
            padded([chunk.offsets if chunk else () for chunk in chunks]),
            padded([chunk.sizes if chunk else () for chunk in chunks]),
            metadata.planner_data,
        )

    @property
    def counts(self) -> Integers:
        """By name: its number of rows."""
        return np.diff(self.ends, prepend=0)

    @property
    def begins(self) -> Integers:
        """By name: its first row."""
        return self.ends - self.counts

    def rows(self, number: int) -> slice:
        """Return the rows of a name."""
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def chunks(self, number: int) -> list[ChunkStorageMetadata]:
        """Return the chunks of a tensor, by the number of its name."""
        kind, rows = self.kinds[number], self.rows(number)
        assert kind is not None
        offsets, sizes = (each[rows, : len(kind.size)].tolist() for each in (self.offsets, self.sizes))
        return [ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size in zip(offsets, sizes, strict=True)]

    def stored(self, number: int) -> TensorStorageMetadata | BytesStorageMetadata:
        """Return what DCP's metadata says about a name."""
        kind = self.kinds[number]
        return BytesStorageMetadata() if kind is None else TensorStorageMetadata(*kind, self.chunks(number))

    def place(self, row: int) -> _StorageInfo:
        """Return where a row is stored."""
        return _StorageInfo(self.files[self.file[row]], int(self.start[row]), int(self.length[row]))


def padded(rows: Iterable[Sequence[int]], *, width: int = 0) -> Integers:
    """Return rows of different lengths as one array, with zeros behind the shorter ones.

    Args:
        width: Length of all rows where there are none.
    """
    listed = list(rows)
    width = max(map(len, listed), default=width)
    filled = (row if len(row) == width else (*row, *(0,) * (width - len(row))) for row in listed)
    return np.fromiter(chain.from_iterable(filled), np.int64, len(listed) * width).reshape(len(listed), width)


def integers(values: Iterable[int]) -> Integers:
    return np.fromiter(values, np.int64)


def _are_paths(planner_data: Any) -> bool:
    """Whether planner data is what torch's planners note: the path in the state dict by name, or nothing."""
    return planner_data is None or (
        type(planner_data) is dict
        and all(
            type(name) is str and type(path) is tuple and all(type(part) in (str, int) for part in path)
            for name, path in planner_data.items()
        )
    )


class PlannedMetadata(Metadata):
    """DCP's metadata of contents, made when it is used; it is pickled as torch's own class."""

    contents: Inventory

    @classmethod
    def of(cls, contents: Inventory) -> PlannedMetadata:
        made = cls.__new__(cls)
        made.__dict__.update(contents=contents, planner_data=contents.planner_data)
        return made

    def __getattr__(self, name: str) -> Any:
        if name != "state_dict_metadata" or "contents" not in self.__dict__:
            raise AttributeError(name)
        contents = self.contents
        made = {each: contents.stored(number) for number, each in enumerate(contents.names)}
        self.state_dict_metadata = made
        return made

    def __reduce__(self) -> Any:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(Metadata)}
        return copyreg.__newobj__, (Metadata,), fields  # type: ignore[attr-defined]
