"""A save planner for ``dcp.save`` under which all ranks write about the same number of bytes."""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from checkpoint_sidecar.engine.spread import Chunk, Share, spread
from checkpoint_sidecar.training.archives import payload_bytes

_FRAME_BYTES = 1600
"""What ``torch.save`` adds to a tensor, about."""


class BalancedSavePlanner(DefaultSavePlanner):
    """torch's planner, but for who writes what several ranks hold: replicated tensors, and shards with replicas.

    torch goes by the size of the whole tensor when it divides them up, and never divides one. Here it is the bytes that
    are written that count, and large chunks are written by their holders together, some rows each; any reader puts
    them together again.

    Args:
        flatten_state_dict, flatten_sharded_tensors: See ``DefaultSavePlanner``.
    """

    def __init__(self, flatten_state_dict: bool = True, flatten_sharded_tensors: bool = True) -> None:
        super().__init__(flatten_state_dict, flatten_sharded_tensors)
        self._held: dict[str, list[WriteItem]] = {}

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self._held = defaultdict(list)
        for item in plan.items:
            self._held[item.index.fqn].append(item)
        return plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return super().create_global_plan(balanced(all_plans))

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.tensor_data is None:
            return super().resolve_data(write_item)
        held = next(item for item in self._held[write_item.index.fqn] if _contains(item, write_item))
        data = super().resolve_data(held)
        assert isinstance(data, torch.Tensor)
        for dimension, (start, length) in enumerate(_place(held, write_item)):
            data = data.narrow(dimension, start, length)
        return data


def balanced(plans: list[SavePlan], **options: Any) -> list[SavePlan]:
    """The plans of all ranks with every item in one of them only, large ones divided.

    Args:
        options: See ``spread``.
    """
    holders: dict[MetadataIndex, list[int]] = defaultdict(list)
    items: dict[MetadataIndex, WriteItem] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            holders[item.index].append(rank)
            items[item.index] = item
    chunks = [
        Chunk(payload_bytes(item) + _FRAME_BYTES, _rows(item), tuple(holders[index])) for index, item in items.items()
    ]
    written: list[list[WriteItem]] = [[] for _ in plans]
    for item, shares in zip(items.values(), spread(chunks, len(plans), **options), strict=True):
        for share in shares:
            written[share.rank].append(item if len(shares) == 1 else _cut(item, share))
    return [dataclasses.replace(plan, items=own) for plan, own in zip(plans, written, strict=True)]


def _rows(item: WriteItem) -> int:
    return item.tensor_data.chunk.sizes[_dimension(item)] if item.tensor_data and item.tensor_data.chunk.sizes else 1


def _dimension(item: WriteItem) -> int:
    """Along which an item is cut: the first one with a choice, because its rows are contiguous."""
    assert item.tensor_data is not None
    return next((index for index, size in enumerate(item.tensor_data.chunk.sizes) if size > 1), 0)


def _cut(item: WriteItem, share: Share) -> WriteItem:
    tensor = item.tensor_data
    assert tensor is not None
    dimension = _dimension(item)
    offsets, sizes = list(tensor.chunk.offsets), list(tensor.chunk.sizes)
    offsets[dimension] += share.start
    sizes[dimension] = share.stop - share.start
    chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    return WriteItem(
        MetadataIndex(item.index.fqn, chunk.offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(chunk, tensor.properties, tensor.size),
    )


def _place(held: WriteItem, wanted: WriteItem) -> list[tuple[int, int]]:
    """Where in a chunk another one lies: start and length in each dimension."""
    assert held.tensor_data is not None
    assert wanted.tensor_data is not None
    outer, inner = held.tensor_data.chunk, wanted.tensor_data.chunk
    return [(offset - base, size) for offset, base, size in zip(inner.offsets, outer.offsets, inner.sizes, strict=True)]


def _contains(held: WriteItem, wanted: WriteItem) -> bool:
    assert held.tensor_data is not None
    sizes = held.tensor_data.chunk.sizes
    return all(
        start >= 0 and start + length <= size for (start, length), size in zip(_place(held, wanted), sizes, strict=True)
    )
