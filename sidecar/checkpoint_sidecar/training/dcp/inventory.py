"""What a snapshot stores, as arrays: DCP's ``Metadata`` at a hundredth of its cost.

``Metadata`` has about seven Python objects for each chunk of each tensor; at a thousand ranks and tensors they take
gigabytes, and minutes to pickle. The same numbers in arrays take megabytes and milliseconds.
"""

from __future__ import annotations

import copyreg
import dataclasses
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
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

    Numbers that were read from an index have smaller types than others; sums of two of them fit.
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
            contents = metadata.contents
            if metadata.planner_data == contents.planner_data:
                return contents
            return replace(contents, planner_data=metadata.planner_data) if are_paths(metadata.planner_data) else None
        if not are_paths(metadata.planner_data):
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
        width = max((len(kind.size) for kind in kinds if kind), default=0)
        return cls(
            tuple(metadata.state_dict_metadata),
            tuple(kinds),
            np.array(ends, np.int64),
            padded([chunk.offsets if chunk else () for chunk in chunks], width=width),
            padded([chunk.sizes if chunk else () for chunk in chunks], width=width),
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

    def row(self, number: int, offset: Sequence[int] | None, hint: int | None) -> int:
        """Return the row of a name whose chunk has this offset.

        Args:
            hint: Its number among the name's rows, probably.

        Raises:
            KeyError: There is none.
        """
        rows = self.rows(number)
        kind = self.kinds[number]
        if (None if kind is None else len(kind.size)) != (None if offset is None else len(offset)):
            raise KeyError(self.names[number])
        if kind is None:
            return int(rows.start)
        wanted = np.array(offset, np.int64)
        offsets = self.offsets[rows, : len(kind.size)]
        if hint is None or not 0 <= hint < len(offsets) or (offsets[hint] != wanted).any():
            found = np.flatnonzero((offsets == wanted).all(axis=1))
            if not len(found):
                raise KeyError(self.names[number])
            hint = int(found[0])
        return int(rows.start) + hint

    def overlapping(self, number: int, chunks: Iterable[ChunkStorageMetadata]) -> Integers:
        """Return the rows of a tensor that hold elements of chunks of it."""
        kind, rows = self.kinds[number], self.rows(number)
        assert kind is not None
        offsets, sizes = (each[rows, : len(kind.size)] for each in (self.offsets, self.sizes))
        needed = np.zeros(len(offsets), bool)
        for chunk in chunks:
            start = np.array(chunk.offsets, np.int64)
            stop = start + np.array(chunk.sizes, np.int64)
            needed |= ((offsets < stop) & (start < offsets + sizes)).all(axis=1)
        found: Integers = rows.start + np.flatnonzero(needed)
        return found

    def chunks(self, number: int, rows: Integers | slice | None = None) -> list[ChunkStorageMetadata]:
        """Return the chunks of a tensor.

        Args:
            number: Of its name.
            rows: Which of its rows; by default all.
        """
        kind = self.kinds[number]
        assert kind is not None
        wanted = self.rows(number) if rows is None else rows
        dimensions = len(kind.size)
        offsets, sizes = (each[wanted, :dimensions].tolist() for each in (self.offsets, self.sizes))
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
        width: Minimum length.
    """
    listed = list(rows)
    width = max([width, *map(len, listed)])
    filled = (row if len(row) == width else (*row, *(0,) * (width - len(row))) for row in listed)
    return np.fromiter(chain.from_iterable(filled), np.int64, len(listed) * width).reshape(len(listed), width)


def integers(values: Iterable[int]) -> Integers:
    return np.fromiter(values, np.int64)


def are_paths(planner_data: Any) -> bool:
    """Whether planner data is what torch's planners note: the path in the state dict by name, or nothing."""
    return planner_data is None or (
        type(planner_data) is dict
        and all(
            type(name) is str and type(path) is tuple and all(type(part) in (str, int) for part in path)
            for name, path in planner_data.items()
        )
    )


class PlannedMetadata(Metadata):
    """DCP's metadata of contents, made when it is used; it is pickled as torch's own class.

    A planner and a program that saves may change it. It shares nothing with the contents that this would change there,
    because later saves use them.
    """

    contents: Inventory

    @classmethod
    def of(cls, contents: Inventory) -> PlannedMetadata:
        made = cls.__new__(cls)
        made.__dict__.update(contents=contents, planner_data=copy(contents.planner_data))
        return made

    def __getattr__(self, name: str) -> Any:
        if name != "state_dict_metadata" or "contents" not in self.__dict__:
            raise AttributeError(name)
        contents = self.contents
        made = {each: contents.stored(number) for number, each in enumerate(contents.names)}
        for entry in made.values():
            if isinstance(entry, TensorStorageMetadata):
                entry.properties = copy(entry.properties)
        self.state_dict_metadata = made
        return made

    def __reduce__(self) -> Any:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(Metadata)}
        return copyreg.__newobj__, (Metadata,), fields  # type: ignore[attr-defined]
