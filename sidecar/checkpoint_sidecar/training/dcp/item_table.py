"""What the items of a plan are, in few bytes: all ranks of a pipeline stage send the same.

The names of a thousand tensors, their kinds and their paths in the state dict take 110 kB as a pickle and 8 kB after
zlib. Once the numbers in names stand in columns of their own, and equal values only once, a tenth of that is left.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

from torch.distributed.checkpoint.planner import WriteItemType

from checkpoint_sidecar.training.dcp.columns import (
    TABLES,
    pack_table,
    pack_texts,
    pack_values,
    unpack_table,
    unpack_texts,
    unpack_values,
)
from checkpoint_sidecar.training.dcp.inventory import TensorKind, are_paths
from checkpoint_sidecar.training.dcp.replicas import Holding


@dataclass(frozen=True, slots=True)
class ItemTable:
    """What the items of a plan are, wherever their parts lie.

    Attributes:
        kinds: By item; None for an object.
        holdings: By item, without digests; empty for a plan without descriptions.
        planner_data: As in ``SavePlan``.
    """

    names: tuple[str, ...]
    types: tuple[WriteItemType, ...]
    kinds: tuple[TensorKind | None, ...]
    holdings: tuple[Holding, ...]
    planner_data: Any

    @classmethod
    @lru_cache(TABLES)
    def unpacked(cls, data: bytes) -> Self:
        """Return what ``packed`` has packed: one object for all ranks that sent the same. Do not change it."""
        texts, *columns, planner_data = unpack_table(data)
        names = unpack_texts(texts)
        types, kinds, holdings = map(unpack_values, columns)
        if isinstance(planner_data, PackedPaths):
            planner_data = planner_data.unpacked(names)
        return cls(names, types, kinds, holdings, planner_data)

    def packed(self) -> bytes:
        columns = (pack_values(self.types, _itself), pack_values(self.kinds, _key), pack_values(self.holdings, _itself))
        paths = PackedPaths.of(self.planner_data, self.names)
        return pack_table((pack_texts(self.names), *columns, self.planner_data if paths is None else paths))


class PackedPaths(NamedTuple):
    """What torch's planners note as planner data, in few bytes: by name, the path in the state dict.

    Attributes:
        names: Those of the paths; None if they are the names of the items.
        lengths: By name, the length of each part of it that is a part of the path; negative where that is a number.
    """

    names: bytes | None
    lengths: bytes

    @classmethod
    def of(cls, planner_data: Any, names: tuple[str, ...]) -> Self | None:
        """Return the paths, or None if the data is something else."""
        if type(planner_data) is not dict or not are_paths(planner_data):
            return None
        if any(name != ".".join(map(str, path)) for name, path in planner_data.items()):
            return None
        lengths = (
            tuple(len(part) if isinstance(part, str) else -len(str(part)) for part in path)
            for path in planner_data.values()
        )
        own = tuple(planner_data)
        return cls(None if own == names else pack_texts(own), pack_values(lengths, _itself))

    def unpacked(self, names: tuple[str, ...]) -> dict[str, tuple[str | int, ...]]:
        if self.names is not None:
            names = unpack_texts(self.names)
        return {name: _parts(name, lengths) for name, lengths in zip(names, unpack_values(self.lengths), strict=True)}


def _itself(value: Hashable) -> Hashable:
    return value


def _key(kind: TensorKind | None) -> Hashable:
    """Return what is equal for equal kinds; torch's class for their properties cannot be compared quickly."""
    return None if kind is None else (*vars(kind.properties).values(), kind.size)


def _parts(name: str, lengths: Iterable[int]) -> tuple[str | int, ...]:
    """Return a path from its name, in which dots stand between the parts, and what ``PackedPaths`` says of them."""
    parts: list[str | int] = []
    begin = 0
    for length in lengths:
        end = begin + abs(length)
        parts.append(name[begin:end] if length >= 0 else int(name[begin:end]))
        begin = end + 1
    return tuple(parts)
