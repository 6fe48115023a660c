"""The global plan of all ranks' plans, on arrays: the same decisions as by items, at a hundredth of their cost.

What is usual is decided here. Whatever might be refused is left to the way by items, which says what is wrong.

Where several ranks send the plans of an earlier save, byte for byte, the decision is that of the earlier save. Only
digests of values differ from save to save; they are compared each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch.distributed.checkpoint.planner import SavePlan, WriteItemType

from checkpoint_sidecar.engine.assignment import Chunk, assign
from checkpoint_sidecar.engine.boxes import tiles
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan, AssignedItems, AssignedPlan, PackedPlan, PlanArrays
from checkpoint_sidecar.training.dcp.coverage import not_in_slabs
from checkpoint_sidecar.training.dcp.inventory import Integers, Inventory, integers
from checkpoint_sidecar.training.dcp.item_table import ItemTable
from checkpoint_sidecar.training.dcp.remembered import Recent, digest_of
from checkpoint_sidecar.training.dcp.replicas import Kind

FRAME_BYTES = 1600
"""Bytes that ``torch.save`` adds to a tensor, approximately."""


@dataclass(frozen=True, slots=True)
class GlobalPlan:
    """What each rank writes.

    Attributes:
        contents: What all of them write, without places.
    """

    plans: list[AssignedPlan]
    contents: Inventory


_decisions: Recent[_Decision | None] = Recent(2)  # a program may save model and optimizer one after the other


def global_plan(plans: Sequence[SavePlan], **options: Any) -> GlobalPlan | None:
    """Let one holder write each item, or several some rows each; see ``save_planner.balanced``.

    Args:
        options: See ``assign``.

    Returns:
        The plan; None if items have to be looked at one by one, because something might be refused.
    """
    known = [plan for plan in plans if isinstance(plan, ArrayPlan)]
    if len(plans) == 1:
        # To pack a plan that does not travel takes as long as to plan again.
        return _planned(_Decision.of(known, options), plans) if known and known[0].arrays is not None else None
    packed = [plan.packed for plan in known if plan.packed is not None]
    if len(packed) < len(plans):
        return None
    asked = [repr(options).encode(), *chain.from_iterable((each.table, each.places) for each in packed)]
    decision = _decisions.get(digest_of(asked), lambda: _Decision.of(known, options))
    if decision is None or (len({plan.seed for plan in known}) == 1 and decision.contradicted(packed)):
        return None
    return _planned(decision, plans)


def _planned(decision: _Decision | None, plans: Sequence[SavePlan]) -> GlobalPlan | None:
    if decision is None:
        return None
    decided = zip(decision.assigned, plans, decision.payload_bytes, strict=True)
    return GlobalPlan([AssignedPlan.of(each, plan, None, size) for each, plan, size in decided], decision.contents)


@dataclass(frozen=True, eq=False, slots=True)
class _Decision:
    """What follows from the plans of all ranks, apart from digests.

    Attributes:
        assigned, payload_bytes: By rank, as in ``AssignedPlan``.
        contents: What all ranks write.
        replicas: Items that several ranks hold, in the order of parts.
        part: The part of each of these.
    """

    assigned: list[bytes]
    payload_bytes: list[int]
    contents: Inventory
    replicas: Integers
    part: Integers

    @classmethod
    def of(cls, plans: Sequence[ArrayPlan], options: Mapping[str, Any]) -> Self | None:
        arrays = [plan.arrays for plan in plans if plan.arrays is not None]
        items = _PlannedItems.of(arrays)
        parts = _SharedParts.of_items(items)
        if _may_be_refused(items, parts):
            return None
        shares = _Shares.of(items, parts, len(plans), **options)
        order, contents = _contents(items, parts, shares, arrays)
        if not all(_covered(contents, number) for number in not_in_slabs(contents)):
            return None
        hints = np.empty_like(order)
        hints[order] = np.arange(len(order)) - np.repeat(contents.begins, contents.counts)
        payload = np.bincount(shares.rank, _payload_bytes(items, shares.item, shares.sizes), minlength=len(plans))
        replicated = parts.counts[parts.of] > 1
        return cls(
            [each.packed() for each in _assigned(items, shares, hints, len(plans))],
            [int(size) for size in payload],
            contents,
            parts.order[replicated],
            parts.of[replicated],
        )

    def contradicted(self, plans: Sequence[PackedPlan]) -> bool:
        """Return whether ranks hold different values of one part."""
        if not len(self.replicas):
            return False
        digested, digests = (
            np.concatenate(column)[self.replicas] for column in zip(*map(PackedPlan.values, plans), strict=True)
        )
        compared = np.flatnonzero(digested)
        of, values = self.part[compared], digests[compared]
        return bool(((of[1:] == of[:-1]) & (values[1:] != values[:-1])).any())


@dataclass(frozen=True, eq=False, slots=True)
class _PlannedItems:
    """The items of all plans, in the order of ranks and of each plan.

    Attributes:
        names: Distinct names.
        name: Index in ``names``.
        form: Identifies what all items of a name have in common.
        unique: Whether no other item has its name: objects and whole tensors.
        dimensions: -1 for an object.
        buffers: Whether it belongs to a module's buffers.
    """

    names: tuple[str, ...]
    rank: Integers
    position: Integers
    name: Integers
    form: Integers
    unique: Integers
    dimensions: Integers
    itemsize: Integers
    divisible: Integers
    buffers: Integers
    mesh: Integers
    offsets: Integers
    sizes: Integers

    @classmethod
    def of(cls, plans: Sequence[PlanArrays]) -> _PlannedItems:
        names: dict[str, int] = {}
        forms: dict[object, int] = {}
        tables: dict[int, Integers] = {}
        for plan in plans:
            if id(plan.table) not in tables:
                tables[id(plan.table)] = _columns(plan.table, names, forms)
        width = max(plan.offsets.shape[1] for plan in plans)
        counts = [len(plan.hints) for plan in plans]
        return cls(
            tuple(names),
            np.repeat(np.arange(len(plans)), counts),
            np.concatenate([np.arange(count) for count in counts]),
            **dict(zip(_OF_TABLE, np.concatenate([tables[id(plan.table)] for plan in plans]).T, strict=True)),
            offsets=np.concatenate([_widened(plan.offsets, width) for plan in plans]),
            sizes=np.concatenate([_widened(plan.sizes, width) for plan in plans]),
        )


_OF_TABLE = ("name", "form", "unique", "dimensions", "itemsize", "divisible", "buffers", "mesh")


def _columns(table: ItemTable, names: dict[str, int], forms: dict[object, int]) -> Integers:
    """Return the columns of ``_PlannedItems`` that a table gives, ``_OF_TABLE``."""
    rows = []
    for number, (name, kind, type_) in enumerate(zip(table.names, table.kinds, table.types, strict=True)):
        holding = table.holdings[number] if table.holdings else None
        held_as = holding.kind if holding else (Kind.OBJECT if kind is None else Kind.TENSOR)
        form = (type_, held_as, kind and (kind.properties.dtype, kind.size))
        rows.append(
            (
                names.setdefault(name, len(names)),
                forms.setdefault(form, len(forms)),
                type_ is not WriteItemType.SHARD,
                -1 if kind is None else len(kind.size),
                0 if kind is None else kind.properties.dtype.itemsize,
                holding.divisible if holding else kind is not None,
                bool(holding and holding.buffers_of),
                holding.mesh if holding else 0,
            )
        )
    return np.array(rows, np.int64).reshape(len(rows), len(_OF_TABLE))


@dataclass(frozen=True, eq=False, slots=True)
class _SharedParts:
    """Items at one place of one tensor, or of one name, together: what several ranks hold alike.

    Attributes:
        order: Items, by part and rank.
        of: The part of each item in that order.
        begins, counts: Where the items of each part lie in it.
        first: The lowest rank's item. Parts have the order of these.
    """

    order: Integers
    of: Integers
    begins: Integers
    counts: Integers
    first: Integers

    @classmethod
    def of_items(cls, items: _PlannedItems) -> _SharedParts:
        places = (items.name, *items.offsets.T)
        order = np.lexsort(places[::-1])
        new = np.ones(len(order), bool)
        new[1:] = np.logical_or.reduce([place[order[1:]] != place[order[:-1]] for place in places])
        begins = np.flatnonzero(new)
        counts = np.diff(begins, append=len(order))
        by_appearance = np.argsort(order[begins])
        begins, counts = begins[by_appearance], counts[by_appearance]
        moved = np.cumsum(counts) - counts
        rows = np.repeat(begins - moved, counts) + np.arange(len(order))
        return cls(order[rows], np.repeat(np.arange(len(begins)), counts), moved, counts, order[begins])

    def items(self, part: int) -> Integers:
        """Return the items of a part, by rank."""
        begin = self.begins[part]
        return self.order[begin : begin + self.counts[part]]

    def item(self, items: _PlannedItems, part: int, rank: int) -> int:
        """Return a rank's item of a part."""
        held = self.items(part)
        return int(held[np.searchsorted(items.rank[held], rank)])

    def all_of(self, flags: Integers) -> npt.NDArray[np.bool_]:
        """Return for each part whether a flag is set for all of its items."""
        held = flags[self.order]
        return (np.minimum.reduceat(held, self.begins) if len(held) else held).astype(bool)


def _may_be_refused(items: _PlannedItems, parts: _SharedParts) -> bool:
    """Return whether ranks may hold different things under one name, by what they say of them."""
    for same in (items.form, items.mesh):
        of_name = np.zeros(len(items.names), np.int64)
        of_name[items.name[::-1]] = same[::-1]  # the first item's, which is assigned last
        if (same != of_name[items.name]).any():
            return True
    alike = parts.first[parts.of]
    if (items.sizes[parts.order] != items.sizes[alike]).any():
        return True
    within = parts.of[1:] == parts.of[:-1]
    rank = items.rank[parts.order]
    if (within & (rank[1:] == rank[:-1])).any():
        return True
    return bool((np.bincount(items.name[parts.first])[items.name] > 1)[items.unique.astype(bool)].any())


@dataclass(frozen=True, eq=False, slots=True)
class _Shares:
    """What is written: for each part, one row for each rank that writes some of it. In the order of ranks and parts.

    Attributes:
        item: The rank's item.
        cut: Whether it is only some rows of the item.
    """

    part: Integers
    rank: Integers
    item: Integers
    offsets: Integers
    sizes: Integers
    cut: Integers

    @classmethod
    def of(cls, items: _PlannedItems, parts: _SharedParts, ranks: int, **options: Any) -> _Shares:
        buffers = parts.all_of(items.buffers)
        alone = buffers | (parts.counts == 1)
        weights = _payload_bytes(items, parts.first, items.sizes[parts.first]) + FRAME_BYTES
        loads = np.bincount(items.rank[parts.first[alone]], weights[alone], minlength=ranks)
        divisible = parts.all_of(items.divisible)
        sizes = items.sizes[parts.first]
        longer = sizes > 1
        dimension = longer.argmax(axis=1) if sizes.shape[1] else np.zeros(len(sizes), np.int64)
        several = np.flatnonzero(~alone).tolist()
        chunks = []
        for part in several:
            holders = items.rank[parts.items(part)].tolist()
            length = int(sizes[part, dimension[part]]) if items.dimensions[parts.first[part]] > 0 else 1
            chunks.append(Chunk(int(weights[part]), length if divisible[part] else 1, tuple(holders)))
        assigned = assign(chunks, ranks, loads=loads.tolist(), **options)
        shares = [(part, rows, len(each) > 1) for part, each in zip(several, assigned, strict=True) for rows in each]
        found = (parts.item(items, part, rows.rank) for part, rows, _ in shares)
        of = np.concatenate([np.flatnonzero(alone), integers(part for part, _, _ in shares)])
        item = np.concatenate([parts.first[alone], integers(found)])
        offsets, sizes = items.offsets[item], items.sizes[item]
        cut = np.concatenate([np.zeros(alone.sum(), np.int64), integers(cut for _, _, cut in shares)])
        for row in np.flatnonzero(cut).tolist():
            rows = shares[row - int(alone.sum())][1]
            offsets[row, dimension[of[row]]] += rows.start
            sizes[row, dimension[of[row]]] = rows.stop - rows.start
        order = np.lexsort((of, items.rank[item]))
        return cls(*(each[order] for each in (of, items.rank[item], item, offsets, sizes, cut)))


def _payload_bytes(items: _PlannedItems, item: Integers, sizes: Integers) -> Integers:
    """Return the bytes of tensors of these sizes; 0 for objects."""
    inner = np.arange(sizes.shape[1]) < items.dimensions[item][:, None]
    found: Integers = np.where(inner, sizes, 1).prod(axis=1) * items.itemsize[item]
    return found


def _contents(
    items: _PlannedItems, parts: _SharedParts, shares: _Shares, plans: Sequence[PlanArrays]
) -> tuple[Integers, Inventory]:
    """Return what is written, name by name, and the rows of the shares in that order."""
    names, first, name = np.unique(items.name[shares.item], return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    number = np.empty_like(by_appearance)
    number[by_appearance] = np.arange(len(names))
    order = np.argsort(number[name], kind="stable")
    lowest = parts.first[shares.part[first[by_appearance]]].tolist()
    kinds = tuple(plans[items.rank[item]].table.kinds[items.position[item]] for item in lowest)
    ends = np.cumsum(np.bincount(number[name], minlength=len(names)))
    found = tuple(items.names[each] for each in names[by_appearance].tolist())
    return order, Inventory(found, kinds, ends, shares.offsets[order], shares.sizes[order], _paths(plans))


def _paths(plans: Sequence[PlanArrays]) -> Any:
    """Return the planner data of all plans together; that of the lowest rank decides."""
    distinct = {id(plan.table.planner_data): plan.table.planner_data for plan in plans}
    if all(data is None for data in distinct.values()):
        return None
    merged: dict[str, Any] = {}
    for data in reversed(distinct.values()):
        merged.update(data or {})
    return merged


def _covered(contents: Inventory, number: int) -> bool:
    """Return whether a tensor's chunks certainly cover it, in torch's opinion too, which looks at empty ones."""
    kind = contents.kinds[number]
    assert kind is not None
    chunks = contents.chunks(number)
    return tiles(kind.size, chunks) and all(
        size > 0 or offset in (0, whole)
        for chunk in chunks
        for offset, size, whole in zip(chunk.offsets, chunk.sizes, kind.size, strict=True)
    )


def _assigned(items: _PlannedItems, shares: _Shares, hints: Integers, ranks: int) -> Iterator[AssignedItems]:
    """Yield what each rank writes."""
    ends = np.searchsorted(shares.rank, np.arange(ranks), side="right").tolist()
    for begin, end in pairwise([0, *ends]):
        own = slice(begin, end)
        yield AssignedItems(
            items.position[shares.item[own]], shares.offsets[own], shares.sizes[own], shares.cut[own], hints[own]
        )


def _widened(rows: Integers, width: int) -> Integers:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
