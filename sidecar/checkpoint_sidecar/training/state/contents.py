"""The contents of a snapshot, object by object, as any version stored them. Pure; nothing is read here.

DCP stores a flat set of named items. An item belongs to the object whose name is the start of the item's name:

| items of an object | hold |
| --- | --- |
| ``<object>`` | a plain value, as JSON text |
| ``<object>.__packed__`` | the packed state of an object that is not sharded |
| ``<object>.__form__.<digest>`` | the packed state of a module or optimizer, without tensors |
| ``<object>.rank-00003`` | the packed state of one rank |
| others | tensors that a packed state refers to; without a packed state, the flattened state of earlier versions |
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import Metadata

from checkpoint_sidecar.training.dcp.stored_items import stored_items
from checkpoint_sidecar.training.state.forms import Form

PACKED = "__packed__"
FORM = "__form__"

_RANK = re.compile(r"rank-\d{5,}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A placeholder in a described state for a tensor that is stored as a separate item.

    Attributes:
        item: The name of the item.
        form: The tensor's form.
        flattened: Whether an earlier version stored it; then only its shape and dtype are known.
    """

    item: str
    form: Form
    flattened: bool = False


Leaf: TypeAlias = Callable[[Ref], Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """The items of a snapshot.

    Attributes:
        tensors: Shape and dtype of each stored tensor, by item name.
        objects: Names of items that are not tensors.
        paths: Keys and positions that lead to an item in the nested state it was flattened from.
        values: Items that were read, by name: those of ``objects``, and those of ``tensors`` once they are loaded.
    """

    tensors: Mapping[str, Form]
    objects: frozenset[str]
    paths: Mapping[str, tuple[str | int, ...]]
    values: dict[str, Any] = field(default_factory=dict)
    _by_object: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Metadata) -> Contents:
        """Return the contents that DCP's metadata lists."""
        kinds = stored_items(metadata).kinds()
        tensors = {name: _form(kind.size, kind.properties.dtype) for name, kind in kinds.items() if kind is not None}
        return cls(tensors, frozenset(kinds.keys() - tensors.keys()), metadata.planner_data or {})

    @classmethod
    def held(cls, state: dict[str, Any]) -> Contents:
        """Return the contents of a captured state, with every value."""
        flat, paths = flatten_state_dict(state)
        tensors = {name: _form(value.size(), value.dtype) for name, value in flat.items() if is_tensor(value)}
        return cls(tensors, frozenset(flat.keys() - tensors.keys()), paths, dict(flat))

    def below(self, name: str) -> list[str]:
        """Return the items of an object."""
        if not self._by_object:
            by_object: dict[str, list[str]] = defaultdict(list)
            for item in (*self.tensors, *self.objects):
                by_object[item.partition(".")[0]].append(item)
            self._by_object.update(by_object)
        return self._by_object.get(name, [])

    @property
    def names(self) -> set[str]:
        """Return the names of all objects."""
        self.below("")
        return set(self._by_object)

    def forms(self, name: str) -> list[str]:
        """Return the items with packed states of a sharded object, in the same order on every rank."""
        return sorted(item for item in self.below(name) if item.startswith(f"{name}.{FORM}."))

    def ranks(self, name: str) -> list[str]:
        """Return the items with the packed state of one rank."""
        return [
            item for item in self.below(name) if item in self.objects and _RANK.fullmatch(item.removeprefix(f"{name}."))
        ]

    def shared_items(self, names: Iterable[str]) -> list[str]:
        """Return the items to read before memory is allocated: those that are not tensors and that every rank needs."""
        found: list[str] = []
        for name in names:
            packed = f"{name}.{PACKED}"
            if packed in self.objects:
                found.append(packed)
            elif forms := self.forms(name):
                found += forms
                found += [item for item in self.below(name) if item in self.objects and is_extra(item)]
            elif not self.ranks(name):
                found += [item for item in self.below(name) if item in self.objects]
        return sorted(found)

    def flattened(self, name: str, leaf: Leaf) -> Any:
        """Return the nested state of an object as earlier versions stored it.

        Keys are strings and empty dicts are absent, because flattening loses both.

        Args:
            leaf: Returns the stand-in for a tensor.
        """
        tree: dict[str, Any] = {}
        for item in sorted(self.below(name), key=lambda item: [str(part) for part in self.paths.get(item, ())]):
            tensor = self.tensors.get(item)
            value = leaf(Ref(item, tensor, flattened=True)) if tensor else self.values.get(item)
            set_element(tree, self.paths.get(item) or tuple(item.split(".")), value)
        return tree.get(name, {})


def refs_in(value: Any) -> Iterator[Ref]:
    """Yield every ``Ref`` in a described state."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from refs_in(each)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for each in value:
            yield from refs_in(each)
    elif isinstance(value, SimpleNamespace):
        yield from refs_in(vars(value))


def retyped(stored: Any, live: Any) -> Any:
    """Return a flattened state with the key types and empty dicts that a live one has in the same places."""
    if isinstance(live, Mapping) and isinstance(stored, Mapping):
        keys = {str(key): key for key in live}
        found = {keys.get(key, key): retyped(value, live.get(keys.get(key, key))) for key, value in stored.items()}
        missing = {key: value for key, value in live.items() if key not in found}
        found |= {key: {} for key, value in missing.items() if isinstance(value, Mapping) and not value}
        return Counter(_numbers(found)) if isinstance(live, Counter) else found
    return stored


def _numbers(found: dict[Any, Any]) -> dict[Any, Any]:
    """Convert the keys back to integers, such as those of a scheduler's milestones."""
    whole = all(isinstance(key, int) or re.fullmatch(r"-?\d+", str(key)) for key in found)
    return {int(key): value for key, value in found.items()} if whole else found


def is_extra(name: str) -> bool:
    """Return whether the name denotes the extra state (``get_extra_state``) of a module or submodule."""
    return name.rpartition(".")[2] == "_extra_state"


def is_tensor(value: Any) -> bool:
    """Return whether DCP stores a value as a tensor."""
    return isinstance(value, torch.Tensor | ShardedTensor)


def _form(size: Iterable[int], dtype: torch.dtype) -> Form:
    return Form(str(dtype).removeprefix("torch."), tuple(size))
