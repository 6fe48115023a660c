"""Checks that the chunks of each tensor cover it exactly: in bounds, disjoint, and nothing left over. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from checkpoint_sidecar.engine.boxes import tiles
from checkpoint_sidecar.engine.budget import groups_within
from checkpoint_sidecar.training.dcp.inventory import Inventory, padded

_ROWS_AT_ONCE = 16 * 1024
"""So that the arrays of a check take few megabytes."""


def uncovered(inventory: Inventory) -> list[int]:
    """Return the numbers of the tensors whose chunks do not cover them."""
    return [number for number in not_in_slabs(inventory) if not _tiled(inventory, number)]


def not_in_slabs(inventory: Inventory) -> list[int]:
    """Return the numbers of the tensors whose chunks are not slabs that follow each other without a gap.

    Nearly all tensors are cut along one dimension, and many of those are checked at once.
    """
    counts = inventory.counts.tolist()
    numbers = [number for number, kind in enumerate(inventory.kinds) if kind is not None]
    groups = groups_within(_ROWS_AT_ONCE, numbers, counts.__getitem__)
    return [number for group in groups for number in _not_in_slabs(inventory, group)]


def _not_in_slabs(inventory: Inventory, numbers: Sequence[int]) -> list[int]:
    counts = inventory.counts[numbers]
    whole = padded([inventory.kinds[number].size for number in numbers])  # type: ignore[union-attr]
    scalars = np.array([not inventory.kinds[number].size for number in numbers])  # type: ignore[union-attr]
    if not whole.shape[1]:
        return [number for number, count in zip(numbers, counts.tolist(), strict=True) if count != 1]
    tensor = np.repeat(np.arange(len(numbers)), counts)
    rows = np.concatenate([np.arange(*inventory.rows(number).indices(len(inventory.offsets))) for number in numbers])
    offsets, sizes = (each[rows, : whole.shape[1]] for each in (inventory.offsets, inventory.sizes))
    partial = np.zeros(whole.shape, bool)
    np.logical_or.at(partial, tensor, (offsets != 0) | (sizes != whole[tensor]))
    dimension = partial.argmax(axis=1)
    each = np.arange(len(rows))
    start = offsets[each, dimension[tensor]]
    stop = start + sizes[each, dimension[tensor]]
    order = np.lexsort((stop, start, tensor))
    tensor, start, stop = tensor[order], start[order], stop[order]
    first = np.r_[True, tensor[1:] != tensor[:-1]] if len(tensor) else np.zeros(0, bool)
    expected = np.where(first, 0, np.r_[0, stop[:-1]]) if len(tensor) else start
    broken = np.zeros(len(numbers), bool)
    np.logical_or.at(broken, tensor, (start != expected) | (stop < start))
    last = np.r_[first[1:], True] if len(tensor) else first
    end = whole[np.arange(len(numbers)), dimension]
    broken[tensor[last]] |= stop[last] != end[tensor[last]]
    broken |= (partial.sum(axis=1) > 1) | (counts == 0)
    broken = np.where(scalars, counts != 1, broken)
    return [number for number, is_broken in zip(numbers, broken.tolist(), strict=True) if is_broken]


def _tiled(inventory: Inventory, number: int) -> bool:
    kind = inventory.kinds[number]
    assert kind is not None
    return tiles(kind.size, inventory.chunks(number))
