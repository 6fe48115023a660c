"""Plans that travel between ranks as arrays: a rank's own plan to rank 0, and what it is to write back to it.

DCP pickles each rank's list of items, and rank 0 unpickles all of them: at a thousand ranks and tensors 220 MB, and
minutes. Here a plan travels as a table that describes its items, which most ranks have in common, and an array of where
each rank's part of them lies. Its items are made when a planner asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from checkpoint_sidecar.training.dcp.archives import payload_bytes
from checkpoint_sidecar.training.dcp.columns import pack_rows, unpack_rows
from checkpoint_sidecar.training.dcp.inventory import Integers, TensorKind, integers, padded
from checkpoint_sidecar.training.dcp.item_table import ItemTable
from checkpoint_sidecar.training.dcp.replicas import DescribedPlan, Holding

_NO_HINT = -1


class PackedPlan(NamedTuple):
    """The items of a plan as they travel.

    Attributes:
        table: An ``ItemTable``.
        places: Hints, offsets and sizes. Like the table, they are the same in every save of a training.
        digests: What the items' values were.
    """

    table: bytes
    places: bytes
    digests: bytes

    def values(self) -> tuple[Integers, Integers]:
        """Return ``PlanArrays.digested`` and ``digests``."""
        digested, digests = unpack_rows(self.digests).T
        return digested, digests


@dataclass(frozen=True, eq=False, slots=True)
class PlanArrays:
    """The items of a plan.

    Attributes:
        offsets, sizes: Of each item's chunk, by dimension; 0 in dimensions that the tensor lacks.
        hints: ``MetadataIndex.index`` of each item, or -1.
        digested: Whether each item has a digest.
        digests: ``Holding.digest``, unsigned numbers of 64 bits.
    """

    table: ItemTable
    offsets: Integers
    sizes: Integers
    hints: Integers
    digested: Integers
    digests: Integers

    @classmethod
    def of(cls, items: Sequence[WriteItem], holdings: Sequence[Holding], planner_data: Any) -> Self | None:
        """Return the arrays of a plan, or None if an item is not of the form that torch gives it."""
        kinds: list[TensorKind | None] = []
        places: list[tuple[Sequence[int], Sequence[int]]] = []
        for item in items:
            data, index = item.tensor_data, item.index
            if data is None:
                if item.type is not WriteItemType.BYTE_IO or item.bytes_io_data is not None or index.offset is not None:
                    return None
                kinds.append(None)
                places.append(((), ()))
            else:
                chunk = data.chunk
                if item.type is WriteItemType.BYTE_IO or chunk is None or index.offset != chunk.offsets:
                    return None
                if not len(chunk.offsets) == len(chunk.sizes) == len(data.size):
                    return None
                kinds.append(TensorKind(data.properties, data.size))
                places.append((chunk.offsets, chunk.sizes))
        table = ItemTable(
            tuple(item.index.fqn for item in items),
            tuple(item.type for item in items),
            tuple(kinds),
            tuple(holding._replace(digest=None) for holding in holdings),
            planner_data,
        )
        digests = [holding.digest for holding in holdings] or [None] * len(items)
        return cls(
            table,
            padded([offsets for offsets, _ in places]),
            padded([sizes for _, sizes in places]),
            integers(_NO_HINT if item.index.index is None else item.index.index for item in items),
            integers(digest is not None for digest in digests),
            np.fromiter((digest or 0 for digest in digests), np.uint64).view(np.int64),
        )

    @classmethod
    def unpacked(cls, packed: PackedPlan) -> Self:
        """Return what ``packed`` has packed."""
        places = unpack_rows(packed.places)
        dimensions = places.shape[1] // 2
        offsets, sizes = places[:, 1 : 1 + dimensions], places[:, 1 + dimensions :]
        return cls(ItemTable.unpacked(packed.table), offsets, sizes, places[:, 0], *packed.values())

    def packed(self) -> PackedPlan:
        places = np.column_stack([self.hints, self.offsets, self.sizes])
        values = np.column_stack([self.digested, self.digests])
        return PackedPlan(self.table.packed(), pack_rows(places), pack_rows(values))

    def holdings(self) -> tuple[Holding, ...]:
        digests = self.digests.view(np.uint64).tolist()
        return tuple(
            holding._replace(digest=digest) if digested else holding
            for holding, digest, digested in zip(self.table.holdings, digests, self.digested.tolist(), strict=False)
        )

    def items(self) -> list[WriteItem]:
        offsets, sizes, hints = (each.tolist() for each in (self.offsets, self.sizes, self.hints))
        made = []
        for number, (name, kind) in enumerate(zip(self.table.names, self.table.kinds, strict=True)):
            hint = None if hints[number] == _NO_HINT else hints[number]
            index, data = MetadataIndex(name, index=hint), None
            if kind is not None:
                dimensions = len(kind.size)
                chunk = ChunkStorageMetadata(
                    torch.Size(offsets[number][:dimensions]), torch.Size(sizes[number][:dimensions])
                )
                index, data = MetadataIndex(name, chunk.offsets, hint), TensorWriteData(chunk, *kind)
            made.append(WriteItem(index, self.table.types[number], tensor_data=data))
        return made


class ArrayPlan(DescribedPlan):
    """A plan that travels as arrays, if its items have the form that torch gives them, and otherwise as any plan.

    Attributes:
        arrays: The items as arrays; None if they have another form.
        packed: The arrays as they travel.
    """

    arrays: PlanArrays | None
    packed: PackedPlan | None

    @classmethod
    def of(cls, plan: SavePlan, holdings: tuple[Holding, ...] = (), seed: int = 0) -> Self:
        made = cls(plan.items, plan.storage_data, plan.planner_data, plan.usable)
        made.__dict__.update(holdings=holdings, seed=seed)
        return made

    @classmethod
    def received(cls, packed: PackedPlan, storage_data: Any, usable: bool, seed: int) -> Self:
        """Return the plan that another rank has sent."""
        made = cls.__new__(cls)
        made.__dict__.update(packed=packed, storage_data=storage_data, usable=usable, seed=seed)
        return made

    @cached_property
    def planner_data(self) -> Any:
        """Unpacked when it is asked for: a plan that is remembered is not unpacked at all."""
        assert self.packed is not None
        return ItemTable.unpacked(self.packed.table).planner_data

    def __getattr__(self, name: str) -> Any:
        """Make what is asked for from what there is, the items of a plan or what another rank has sent of them."""
        known = self.__dict__
        sent: PackedPlan | None = known.get("packed")
        if name == "arrays" and sent is not None:
            known[name] = PlanArrays.unpacked(sent)
        elif name == "arrays" and "items" in known:
            known[name] = PlanArrays.of(self.items, self.holdings, self.planner_data)
        elif name == "packed" and "items" in known:
            known[name] = self.arrays and self.arrays.packed()
        elif name == "items" and self.arrays is not None:
            known[name] = self.arrays.items()
        elif name == "holdings":
            # A plan that dataclasses.replace has made has items, and no descriptions.
            known[name] = self.arrays.holdings() if sent is not None and self.arrays is not None else ()
        else:
            raise AttributeError(name)
        return known[name]

    def __reduce__(self) -> Any:
        if self.packed is None:
            return _as_sent, (self.items, self.storage_data, self.planner_data, self.usable, self.holdings, self.seed)
        return ArrayPlan.received, (self.packed, self.storage_data, self.usable, self.seed)


def _as_sent(
    items: list[WriteItem], storage: Any, planner: Any, usable: bool, holdings: tuple[Holding, ...], seed: int
) -> ArrayPlan:
    return ArrayPlan.of(SavePlan(items, storage, planner, usable), holdings, seed)


@dataclass(frozen=True, eq=False, slots=True)
class AssignedItems:
    """What one rank is to write of its own plan.

    Attributes:
        positions: Of items in that plan.
        offsets, sizes: Of the part to write: the item's chunk, or some rows of it.
        cut: Whether it is less than the item's chunk.
        hints: ``MetadataIndex.index`` of each.
    """

    positions: Integers
    offsets: Integers
    sizes: Integers
    cut: Integers
    hints: Integers

    def of(self, own: Sequence[WriteItem]) -> list[WriteItem]:
        """Return the items.

        Args:
            own: The items of the rank's plan.
        """
        columns = (each.tolist() for each in (self.positions, self.offsets, self.sizes, self.cut, self.hints))
        made = []
        for position, offsets, sizes, cut, hint in zip(*columns, strict=True):
            item = own[position]
            data = item.tensor_data
            if data is None:
                made.append(item)
            elif not cut:
                made.append(replace(item, index=MetadataIndex(item.index.fqn, item.index.offset, hint)))
            else:
                dimensions = len(data.size)
                chunk = ChunkStorageMetadata(torch.Size(offsets[:dimensions]), torch.Size(sizes[:dimensions]))
                index = MetadataIndex(item.index.fqn, chunk.offsets, hint)
                made.append(WriteItem(index, WriteItemType.SHARD, tensor_data=replace(data, chunk=chunk)))
        return made

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        rows = unpack_rows(data)
        dimensions = (rows.shape[1] - 3) // 2
        positions, cut, hints = rows[:, :3].T
        return cls(positions, rows[:, 3 : 3 + dimensions], rows[:, 3 + dimensions :], cut, hints)

    def packed(self) -> bytes:
        # Where an item is written whole, its rank knows where it lies.
        places = np.hstack([self.offsets, self.sizes]) * self.cut[:, None]
        return pack_rows(np.column_stack([self.positions, self.cut, self.hints, places]))


class AssignedPlan(SavePlan):
    """A rank's part of the global plan: what it writes of its own plan, which it still has.

    Attributes:
        assigned: What it writes: ``AssignedItems``, packed.
        own: The rank's own plan; None where it is not known yet.
        payload_bytes: Size of the tensors in it.
    """

    assigned: bytes
    own: SavePlan | None
    payload_bytes: int

    @classmethod
    def of(cls, assigned: bytes, own: SavePlan | None, storage_data: Any = None, payload_bytes: int = 0) -> Self:
        made = cls.__new__(cls)
        made.__dict__.update(assigned=assigned, own=own, storage_data=storage_data, payload_bytes=payload_bytes)
        return made

    @cached_property
    def planner_data(self) -> Any:
        return None if self.own is None else self.own.planner_data

    @classmethod
    def received(cls, assigned: bytes, storage_data: Any, payload_bytes: int) -> Self:
        return cls.of(assigned, None, storage_data, payload_bytes)

    def within(self, own: SavePlan) -> AssignedPlan:
        """Return the plan with the items of the rank's own plan."""
        return AssignedPlan.of(self.assigned, own, self.storage_data, self.payload_bytes)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("own")
        if name != "items" or own is None:
            raise AttributeError(name)
        self.__dict__[name] = AssignedItems.unpacked(self.assigned).of(own.items)
        return self.__dict__[name]

    def __reduce__(self) -> Any:
        if "assigned" not in self.__dict__:  # made by dataclasses.replace, of items
            return SavePlan, (self.items, self.storage_data, self.planner_data, self.usable)
        return AssignedPlan.received, (self.assigned, self.storage_data, self.payload_bytes)


def with_storage_data(plan: SavePlan, storage_data: Any) -> SavePlan:
    """Return a rank's part of the global plan with what a writer adds, as arrays where its class allows that."""
    if isinstance(plan, AssignedPlan) and "assigned" in vars(plan):
        return AssignedPlan.of(plan.assigned, plan.own, storage_data, plan.payload_bytes)
    if type(plan) in (SavePlan, ArrayPlan):
        return ArrayPlan.of(SavePlan(plan.items, storage_data, plan.planner_data, plan.usable))
    return replace(plan, storage_data=storage_data)


def plan_bytes(plan: SavePlan) -> int:
    """Return the size of the tensors in a plan."""
    if isinstance(plan, AssignedPlan) and "assigned" in vars(plan):
        return plan.payload_bytes
    return sum(map(payload_bytes, plan.items))
