"""A save planner for ``dcp.save`` that lets all ranks write about the same number of bytes."""

from __future__ import annotations

import dataclasses
import io
import logging
import zlib
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.engine.assignment import AssignedRows, Chunk, assign
from checkpoint_sidecar.training.dcp.archives import payload_bytes
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan, AssignedPlan
from checkpoint_sidecar.training.dcp.global_plan import FRAME_BYTES, global_plan
from checkpoint_sidecar.training.dcp.inventory import PlannedMetadata
from checkpoint_sidecar.training.dcp.memory import is_plain
from checkpoint_sidecar.training.dcp.object_archives import PickleSizes, archive_of
from checkpoint_sidecar.training.dcp.replicas import Holding, Kind, ReplicaComparison, compare
from checkpoint_sidecar.training.state import digests

logger = logging.getLogger(__name__)

_SAVES_BETWEEN_CHECKS = 10
"""How many saves pass between checks of sharded tensors' replicas, which are equal by construction."""


@dataclasses.dataclass(slots=True)
class History:
    """A record of one process's saves.

    Attributes:
        saves: Number of saves so far.
        reported: Modules whose buffers were reported to differ.
        sizes: Sizes of the objects.
    """

    saves: int = 0
    reported: set[str] = dataclasses.field(default_factory=set)
    sizes: PickleSizes = dataclasses.field(default_factory=PickleSizes)


class BalancedSavePlanner(DefaultSavePlanner):
    """torch's planner, with replicated tensors and shards divided evenly among the ranks that hold them.

    torch assigns items by the size of the whole tensor, and never divides one. This planner counts the bytes that are
    written, and lets the holders of a large chunk write some rows each; any reader reassembles them.

    Values that several ranks hold under one name are compared first; ``training.dcp.replicas`` lists the refusals.

    Args:
        flatten_state_dict: See ``DefaultSavePlanner``.
        flatten_sharded_tensors: See ``DefaultSavePlanner``.
        buffers: By module, the flattened names of its buffers and other state besides parameters. Their values may
            differ between ranks: those of the lowest rank are saved.
        history: Shared by the planners of successive saves.

    Raises (from DCP, wrapped; see ``failures.raising_ours``):
        ConfigurationError: Ranks hold different values under one name.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        *,
        buffers: Mapping[str, AbstractSet[str]] | None = None,
        history: History | None = None,
    ) -> None:
        super().__init__(flatten_state_dict, flatten_sharded_tensors)
        self._held: dict[str, list[WriteItem]] = {}
        self._module_of = {name: module for module, names in (buffers or {}).items() for name in names}
        self._history = history or History()
        self._saves_before = 0

    def create_local_plan(self) -> SavePlan:
        try:
            plan = super().create_local_plan()
        except Exception as error:
            raise _unplannable(self.state_dict, error) from error
        self._saves_before = self._history.saves
        self._history.saves += 1
        self._held = defaultdict(list)
        for item in plan.items:
            self._held[item.index.fqn].append(item)
        several = dist.is_initialized() and dist.get_world_size() > 1
        holdings = tuple(self._holding(item, several=several) for item in plan.items)
        return ArrayPlan.of(plan, holdings, self._saves_before)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        found = global_plan(all_plans)
        if found is None:
            compared = compare(all_plans)
            self._report(compared)
            return super().create_global_plan(balanced(all_plans, compared))
        self.global_plan, self.metadata = list(found.plans), PlannedMetadata.of(found.contents)
        return self.global_plan, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        if isinstance(new_plan, AssignedPlan):
            new_plan = new_plan.within(self.plan)
        return super().finish_plan(new_plan)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.tensor_data is None:
            return super().resolve_data(write_item)
        held = next(item for item in self._held[write_item.index.fqn] if _contains(item, write_item))
        data = super().resolve_data(held)
        assert isinstance(data, torch.Tensor)
        for dimension, (start, length) in enumerate(_place(held, write_item)):
            # An item that is written whole does not have to be divisible.
            if length < data.size(dimension):
                data = data.narrow(dimension, start, length)
        return data

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002 - torch's name
        if write_item.type is not WriteItemType.BYTE_IO:
            return super().transform_object(write_item, object)
        return archive_of(write_item.index.fqn, object, self._history.sizes)

    def _holding(self, item: WriteItem, *, several: bool) -> Holding:
        value = self.state_dict[item.index.fqn]
        # A ShardedTensor with no part or several parts on this rank raises an error here.
        if isinstance(value, torch.Tensor) and not isinstance(value, ShardedTensor) and value.is_nested:
            raise _unsavable(item.index.fqn, value, "its rows have different lengths")
        seed = self._saves_before
        if item.type is WriteItemType.SHARD:
            part = value.to_local() if isinstance(value, DTensor) else self.lookup_object(item.index)
            mesh, compared = _replication(value, every_rank_checks=seed % _SAVES_BETWEEN_CHECKS == 0)
            digest = digests.of_tensor(part, seed) if several and compared else None
            return Holding(Kind.SHARD, digest, divisible=_divisible(part), mesh=mesh)
        module = self._module_of.get(item.index.fqn, "")
        if item.type is WriteItemType.TENSOR:
            digest = digests.of_tensor(value, seed) if several else None
            return Holding(Kind.TENSOR, digest, divisible=_divisible(value), buffers_of=module)
        return Holding(Kind.OBJECT, digests.of_object(value, seed) if several else None, buffers_of=module)

    def _report(self, compared: ReplicaComparison) -> None:
        for module, names in compared.differing.items():
            if module not in self._history.reported:
                self._history.reported.add(module)
                logger.warning(
                    "%s: buffers differ from rank to rank (%s); a snapshot keeps those of the lowest rank, for the "
                    "whole module. Use SyncBatchNorm or similar if you need them all",
                    module,
                    ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
                )


def balanced(plans: list[SavePlan], compared: ReplicaComparison | None = None, **options: Any) -> list[SavePlan]:
    """Return the plans of all ranks with each item in one plan only, and large items divided.

    Args:
        compared: The compared items; by default they are compared here.
        options: See ``assign``.
    """
    replicas = (compared or compare(plans)).replicas
    chunks = [
        Chunk(
            payload_bytes(replica.item) + FRAME_BYTES, _rows(replica.item) if replica.divisible else 1, replica.holders
        )
        for replica in replicas
    ]
    written: list[list[WriteItem]] = [[] for _ in plans]
    for replica, assigned in zip(replicas, assign(chunks, len(plans), **options), strict=True):
        for rows in assigned:
            written[rows.rank].append(replica.item if len(assigned) == 1 else _cut(replica.item, rows))
    return [SavePlan(**_fields(plan) | {"items": own}) for plan, own in zip(plans, written, strict=True)]


def _unplannable(state: dict[str, Any], failure: Exception) -> ConfigurationError:
    """Return an error that names the value for which torch cannot make a plan."""
    for name, value in state.items():
        try:
            create_default_local_save_plan({name: value}, is_coordinator=True)
        except Exception as error:  # noqa: BLE001 - a tensor class may raise anything
            return _unsavable(name, value, str(error).partition("\n")[0])
    return _unsavable("the state dict", state, str(failure).partition("\n")[0])


def _unsavable(name: str, value: Any, cause: str) -> ConfigurationError:
    kind = type(value).__name__
    return ConfigurationError(
        "save",
        name,
        f"torch.distributed.checkpoint cannot save this {kind}: {cause}",
        "Convert it to a plain tensor first.",
    )


def _fields(plan: SavePlan) -> dict[str, Any]:
    """Return the fields of torch's own plan class."""
    return {field.name: getattr(plan, field.name) for field in dataclasses.fields(SavePlan)}


def _divisible(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and is_plain(tensor.detach())


def _replication(value: Any, *, every_rank_checks: bool) -> tuple[int, bool]:
    """Return the identity of the ranks that hold a sharded tensor, and whether to compare its replicas.

    Within one mesh, replicas are equal by construction. Next to a mesh of some ranks, other ranks may hold another
    tensor of the same name, as pipeline stages do: these are always compared.
    """
    if not isinstance(value, DTensor):
        return 0, every_rank_checks
    ranks = value.device_mesh.mesh.flatten()
    replicated = any(placement.is_replicate() for placement in value.placements)
    alone = dist.is_initialized() and ranks.numel() < dist.get_world_size()
    return zlib.crc32(ranks.sort().values.numpy().tobytes()), alone or (replicated and every_rank_checks)


def _rows(item: WriteItem) -> int:
    return item.tensor_data.chunk.sizes[_dimension(item)] if item.tensor_data and item.tensor_data.chunk.sizes else 1


def _dimension(item: WriteItem) -> int:
    """Return the dimension to cut along: the first that is longer than 1, because its rows are contiguous."""
    assert item.tensor_data is not None
    return next((index for index, size in enumerate(item.tensor_data.chunk.sizes) if size > 1), 0)


def _cut(item: WriteItem, share: AssignedRows) -> WriteItem:
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
    """Return the place of one chunk in another: start and length in each dimension."""
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
