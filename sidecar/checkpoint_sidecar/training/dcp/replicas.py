"""Decides whether ranks hold one value under the same name. Pure: it uses plans and digests, never the data.

A checkpoint keeps one value per name. If ranks hold different values and each writes a part, the result is a value that
no rank ever had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from checkpoint_sidecar.core.errors import ConfigurationError

_OPERATION = "save"
_CURE = (
    "A checkpoint keeps one value per name: wrap an object that differs from rank to rank in PerRank, give the stages "
    "of a pipeline different names, or make a tensor's parts one DTensor."
)
_MOST_NAMES = 8


class Kind(StrEnum):
    """The way a value is held."""

    TENSOR = "a whole tensor"
    SHARD = "a part of a sharded tensor"
    OBJECT = "an object"


class Holding(NamedTuple):
    """A rank's description of an item in its plan. A tuple, because each rank sends one for each of its items.

    Attributes:
        digest: Digest of its value; None if it was not computed.
        divisible: Whether it can be written in parts, by rows.
        buffers_of: The module whose buffer, or other state besides parameters, it is; empty for other items.
        mesh: Identifies the ranks that a sharded tensor is spread over.
    """

    kind: Kind
    digest: int | None = None
    divisible: bool = False
    buffers_of: str = ""
    mesh: int = 0


Holder: TypeAlias = tuple[int, WriteItem, Holding]
"""A rank, an item of its plan, and the rank's description of it."""


class DescribedPlan(SavePlan):
    """A rank's plan with its holdings.

    Attributes:
        holdings: The rank's holdings, by item; none if its planner gives none.
        seed: Seed of the digests in them; digests with different seeds cannot be compared.
    """

    holdings: tuple[Holding, ...]
    seed: int = 0


@dataclass(slots=True)
class Replica:
    """An item and the ranks that hold it.

    Attributes:
        divisible: Whether all of those ranks can write it in parts.
    """

    item: WriteItem
    holders: tuple[int, ...]
    divisible: bool


@dataclass(slots=True)
class ReplicaComparison:
    """The items of all ranks, each listed once.

    Attributes:
        differing: Names of buffers that differ between ranks, by module; the lowest rank's buffers are saved.
    """

    replicas: list[Replica] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)


def compare(plans: Sequence[SavePlan]) -> ReplicaComparison:
    """Compare the values that all ranks plan to save under the same names.

    All buffers of a module are saved from the lowest rank that holds them, so that related ones, such as the mean and
    variance of batch norm, come from one rank. Values in plans without a description count as equal.

    Raises:
        ConfigurationError: Ranks hold different values under one name.
    """
    held: dict[MetadataIndex, list[Holder]] = defaultdict(list)
    for rank, plan in enumerate(plans):
        holdings = (plan.holdings if isinstance(plan, DescribedPlan) else ()) or map(_undescribed, plan.items)
        for item, holding in zip(plan.items, holdings, strict=True):
            held[item.index].append((rank, item, holding))
    _check_forms(held)
    comparable = len({plan.seed for plan in plans if isinstance(plan, DescribedPlan)}) == 1
    result = ReplicaComparison()
    drifted: dict[MetadataIndex, list[int]] = {}
    differing: dict[MetadataIndex, list[int]] = {}
    for index, holders in held.items():
        rank, item, first = holders[0]
        if len(holders) == 1:
            result.replicas.append(Replica(item, (rank,), divisible=first.divisible and not first.buffers_of))
            continue
        buffers_of = first.buffers_of if all(holding.buffers_of for _, _, holding in holders) else ""
        ranks = (rank,) if buffers_of else tuple(rank for rank, _, _ in holders)
        divisible = not buffers_of and all(holding.divisible for _, _, holding in holders)
        result.replicas.append(Replica(item, ranks, divisible))
        if not comparable or (other := _first_other(holders)) is None:
            continue
        if buffers_of:
            result.differing.setdefault(buffers_of, []).append(index.fqn)
        elif first.kind is Kind.SHARD and len({holding.mesh for _, _, holding in holders}) == 1:
            drifted[index] = [rank, other]
        else:
            differing[index] = [rank, other]
    if differing:
        raise _refused(differing, "hold different values under {these}", _CURE)
    if drifted:
        raise _refused(
            drifted,
            "hold different values of the same part of {these}, though its placement says that they are replicas",
            "Bring the replicas back in step, for example by a broadcast from one rank. " + _CURE,
        )
    return result


def _undescribed(item: WriteItem) -> Holding:
    return Holding(Kind.TENSOR if item.tensor_data else Kind.OBJECT, divisible=item.tensor_data is not None)


def _first_other(holders: Sequence[Holder]) -> int | None:
    """Return the first rank whose value differs from the lowest rank's, or None if all comparable values are equal."""
    lowest: int | None = None
    for rank, _, holding in holders:
        if lowest is None:
            lowest = holding.digest
        elif holding.digest is not None and holding.digest != lowest:
            return rank
    return None


def _check_forms(held: dict[MetadataIndex, list[Holder]]) -> None:
    """Check that all items of one name have the same kind, dtype, shape and division."""
    names: dict[str, Holder] = {}
    meshes: dict[str, list[set[int]]] = defaultdict(list)
    for index, holders in held.items():
        known = names.setdefault(index.fqn, holders[0])
        for holder in holders:
            if holder is not known and (detail := _difference(known, holder, holders[0])):
                raise ConfigurationError(
                    _OPERATION,
                    index.fqn,
                    f"rank {known[0]} holds {detail[0]} under this name, but rank {holder[0]} holds {detail[1]}",
                    _CURE,
                )
        if known[2].kind is Kind.SHARD:
            meshes[index.fqn].append({holding.mesh for _, _, holding in holders})
    for name, each in meshes.items():
        if any(here != each[0] for here in each):
            raise ConfigurationError(
                _OPERATION, name, "several groups of ranks hold a tensor of this name, sharded differently", _CURE
            )


def _difference(known: Holder, holder: Holder, beside: Holder) -> tuple[str, str] | None:
    """Describe how two ranks' values of one name differ, or return None if they do not.

    Args:
        beside: The lowest rank's holding of the same part.
    """
    (_, one, first), (_, other, second) = known, holder
    whole, item = one.tensor_data, other.tensor_data
    alike = first.kind is second.kind
    if whole is not None and item is not None:
        alike = alike and whole.properties.dtype == item.properties.dtype and whole.size == item.size
    if not alike:
        return _form(one, first), _form(other, second)
    part = beside[1].tensor_data
    if part is not None and item is not None and part.chunk.sizes != item.chunk.sizes:
        return f"a part of {part.chunk.sizes}", f"a part of {item.chunk.sizes}"
    return None


def _form(item: WriteItem, holding: Holding) -> str:
    if item.tensor_data is None:
        return holding.kind.value
    return f"{holding.kind.value}, {item.tensor_data.properties.dtype} {list(item.tensor_data.size)}"


def _refused(found: dict[MetadataIndex, list[int]], what: str, hint: str) -> ConfigurationError:
    names = list(dict.fromkeys(index.fqn for index in found))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    one, other = next(iter(found.values()))
    these = "this name" if len(names) == 1 else "these names"
    return ConfigurationError(
        _OPERATION,
        ", ".join(names[:_MOST_NAMES]) + more,
        f"ranks {one} and {other} {what.format(these=these)}",
        hint,
    )


def buffers_among(module: torch.nn.Module, state: Mapping[str, object], *, prefix: str) -> set[str]:
    """Return the names in a module's state dict that are not parameters: buffers, extra state, additions by hooks.

    Args:
        state: The state dict, which shares the module's memory.
        prefix: The module's name in the whole state dict.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    places = {_place(parameter) for parameter in parameters.values()} - {0}
    return {
        f"{prefix}.{key}"
        for key, value in state.items()
        if key not in parameters and not (isinstance(value, torch.Tensor) and _place(value) in places)
    }


def _place(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor subclass without its own memory
        return 0
