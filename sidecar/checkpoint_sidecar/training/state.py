"""The application's state: named objects on one side, what torch.distributed.checkpoint saves and loads on the other.

| object | stored as |
| --- | --- |
| ``nn.Module`` | its sharded state dict (``get_model_state_dict``), under fully qualified parameter names |
| ``Optimizer`` | its sharded state dict, under the parameter names of the module that owns its parameters |
| object with ``state_dict``/``load_state_dict`` | what its ``state_dict`` returns, once for all ranks |
| the same with ``per_rank = True`` (``PerRank``, ``RandomState``) | one opaque value per rank |
| plain value (None, bool, int, float, str, lists and dicts of them) | JSON text |
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, MutableMapping
from typing import Any, ClassVar, TypeVar

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn import Module
from torch.optim import Optimizer

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.restricted import Trust, load_restricted

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]
T = TypeVar("T")

_OPERATION = "describe the training state"


class PerRank:
    """Marks an object whose state differs from rank to rank, such as a data loader.

    Each rank gets its own state back. A rank that the snapshot does not know (more ranks than saved it) keeps the state
    it has, and a warning says so.
    """

    per_rank: ClassVar[bool] = True

    def __init__(self, wrapped: Stateful) -> None:
        self.wrapped = wrapped

    def state_dict(self) -> StateDict:
        return self.wrapped.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.wrapped.load_state_dict(state)


class TrainingState:
    """Reads and writes the objects that make up a training run.

    Args:
        objects: By name; kept, not copied. After a restore, plain values stand here again: lists and dicts are changed
            in place, others replaced under their name.
        rank: Of this process.
        trust: Whether per-rank values may hold any pickled class, or only what ``torch.load(weights_only=True)``
            allows.

    Raises:
        ConfigurationError: An object is none of the kinds above, or an optimizer's module is not among them.
    """

    def __init__(self, objects: MutableMapping[str, Any], *, rank: int, trust: Trust = "safe") -> None:
        self._objects = objects
        self._rank_key = f"rank-{rank:05d}"
        self._trust = trust
        for name, value in objects.items():
            _check(name, value)
        self._owners = {name: self._owner_of(name, value) for name, value in self._of_kind(Optimizer)}

    @property
    def modules(self) -> dict[str, Module]:
        """The modules among the objects, by name."""
        return dict(self._of_kind(Module))

    @property
    def optional(self) -> tuple[tuple[str, str], ...]:
        """Places in the state dict that a snapshot of fewer ranks does not have."""
        return tuple((name, self._rank_key) for name, value in self._objects.items() if _per_rank(value))

    def capture(self) -> StateDict:
        """A state dict that shares memory with the objects. Collective where the modules are sharded.

        The same dict serves as the template to load into: optimizers without state get it first.
        """
        captured: StateDict = {}
        for name, value in self._objects.items():
            if isinstance(value, Module):
                captured[name] = get_model_state_dict(value)
            elif isinstance(value, Optimizer):
                captured[name] = get_optimizer_state_dict(self._owners[name], value)
            elif _per_rank(value):
                captured[name] = {self._rank_key: _pack(value.state_dict())}
            elif isinstance(value, Stateful):
                captured[name] = value.state_dict()
            else:
                captured[name] = json.dumps(value)
        return captured

    def apply(self, loaded: StateDict) -> None:
        """Put a loaded state dict back into the objects. Collective where the modules are sharded."""
        for name, value in list(self._objects.items()):
            if isinstance(value, Module):
                set_model_state_dict(value, loaded[name])
            elif isinstance(value, Optimizer):
                set_optimizer_state_dict(self._owners[name], value, loaded[name])
            elif _per_rank(value):
                self._apply_own(name, value, loaded[name])
            elif isinstance(value, Stateful):
                value.load_state_dict(loaded[name])
            else:
                self._apply_plain(name, json.loads(loaded[name]))

    def _apply_own(self, name: str, value: Stateful, states: StateDict) -> None:
        if self._rank_key in states:
            packed = io.BytesIO(states[self._rank_key])
            value.load_state_dict(load_restricted(packed, subject=f"{name}.{self._rank_key}", trust=self._trust))
        else:
            logger.warning("%s: the snapshot has no %s; it keeps its present state", name, self._rank_key)

    def _apply_plain(self, name: str, loaded: Any) -> None:
        present = self._objects[name]
        if isinstance(present, dict) and isinstance(loaded, dict):
            present.clear()
            present.update(loaded)
        elif isinstance(present, list) and isinstance(loaded, list):
            present[:] = loaded
        else:
            self._objects[name] = loaded

    def _of_kind(self, kind: type[T]) -> Iterator[tuple[str, T]]:
        return ((name, value) for name, value in self._objects.items() if isinstance(value, kind))

    def _owner_of(self, name: str, optimizer: Optimizer) -> Module:
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for _, module in self._of_kind(Module):
            if owned <= {id(parameter) for parameter in module.parameters()}:
                return module
        raise ConfigurationError(
            _OPERATION,
            name,
            "no module of the state holds all parameters of this optimizer",
            "Pass the module too, and build the optimizer after the module was sharded (fully_shard, FSDP).",
        )


def _per_rank(value: Any) -> bool:
    return isinstance(value, Stateful) and getattr(value, "per_rank", False) is True


def _check(name: str, value: Any) -> None:
    if not name or "." in name:
        raise ConfigurationError(_OPERATION, repr(name), "a name must be non-empty and without dots", "Rename it.")
    if not isinstance(value, Module | Optimizer | Stateful) and not _is_plain(value):
        raise ConfigurationError(
            _OPERATION,
            name,
            f"a {type(value).__name__} is neither a module, an optimizer, an object with state_dict and "
            "load_state_dict, nor a plain JSON value",
            "Give it these two methods, or turn it into None, bool, int, float, str, lists and dicts with str keys.",
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def _pack(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
