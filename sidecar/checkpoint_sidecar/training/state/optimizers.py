"""Captures and restores the state of optimizers by the names of their parameters, without taking a step.

An optimizer numbers its parameters in the order of its groups. A snapshot names them instead, so that it fits an
optimizer that was built in another order or has no state yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module
from torch.optim import Optimizer

from checkpoint_sidecar.core.errors import ConfigurationError, IncompatibleSnapshotError
from checkpoint_sidecar.training.state.modules import is_flat, module_state, parameter_names, sharded_state

_PARAMS = "params"


@dataclass(slots=True)
class OptimizerState:
    """State of an optimizer, by parameter names.

    Attributes:
        groups: Parameter groups; ``params`` has names.
        state: State of each parameter that has one.
        loose: State that does not belong to a parameter, by the optimizer's own keys.
        rest: Everything else in its ``state_dict``.
    """

    groups: list[dict[str, Any]]
    state: dict[str, Any] = field(default_factory=dict)
    loose: dict[Any, Any] = field(default_factory=dict)
    rest: dict[Any, Any] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Names of all parameters in its groups."""
        return {name for group in self.groups for name in group[_PARAMS]}

    def described(self) -> dict[str, Any]:
        """Return the plain value that is packed."""
        return {"state": self.state, "param_groups": self.groups, "loose": self.loose, "rest": self.rest}

    def merged(self, other: OptimizerState) -> OptimizerState:
        """Combine the states of two pipeline ranks, each of which has its own parameters."""
        own = self.names
        groups = [dict(group, params=list(group[_PARAMS])) for group in self.groups]
        for index, group in enumerate(other.groups):
            added = [name for name in group[_PARAMS] if name not in own]
            if index < len(groups):
                groups[index][_PARAMS] += added
            else:
                groups.append(group | {_PARAMS: added})
        return OptimizerState(groups, other.state | self.state, other.loose | self.loose, other.rest | self.rest)


class NamedOptimizer:
    """An optimizer together with the modules that own its parameters.

    Args:
        name: Its name in the application's state.
        modules: All modules of that state, by name.

    Raises:
        ConfigurationError: One of its parameters is not in any of the modules.
    """

    def __init__(self, name: str, optimizer: Optimizer, modules: Mapping[str, Module]) -> None:
        self._name = name
        self._optimizer = optimizer
        self._modules = modules
        list(self._names())

    @property
    def flat(self) -> Module | None:
        """The module that FSDP1 has flattened, if the optimizer's parameters belong to one."""
        owner = self._owner()
        return self._modules[owner] if owner is not None and is_flat(self._modules[owner]) else None

    def capture(self) -> OptimizerState:
        """Return its present state; tensors share its memory. Collective under FSDP1."""
        state = self._optimizer.state_dict()
        if not {"state", "param_groups"} <= set(state):
            raise ConfigurationError(
                "save",
                self._name,
                f"its state_dict has {sorted(map(str, state))}, not state and param_groups",
                "Wrap it in an object with a state_dict and load_state_dict of its own.",
            )
        rest = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        if (module := self.flat) is not None:
            with sharded_state(module):
                state = FullyShardedDataParallel.optim_state_dict(
                    module, self._optimizer, state, group=_group_of(module)
                )
            groups = [
                group | {_PARAMS: [name.replace("_orig_mod.", "") for name in group[_PARAMS]]}
                for group in state["param_groups"]
            ]
            return OptimizerState(
                groups, {name.replace("_orig_mod.", ""): value for name, value in state["state"].items()}, {}, rest
            )
        names = {id(parameter): names[0] for parameter, names in self._names()}
        numbered = _numbered(state["param_groups"], self._optimizer.param_groups)
        groups = [
            {key: value for key, value in group.items() if key != _PARAMS}
            | {_PARAMS: [names[id(numbered[number])] for number in group[_PARAMS]]}
            for group in state["param_groups"]
        ]
        named: dict[str, Any] = {}
        loose: dict[Any, Any] = {}
        for key, value in state["state"].items():
            if isinstance(key, int) and key in numbered:
                named[names[id(numbered[key])]] = value
            else:
                loose[key] = value
        return OptimizerState(groups, named, loose, rest)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by every name that they may have in a snapshot."""
        return {name: parameter for parameter, names in self._names() for name in names}

    def homes(self) -> dict[str, Any]:
        """Return the parameters as their modules return them; their state has the same shape and sharding."""
        module = self.flat
        return self.parameters() if module is None else module_state(module)

    def misfits(self, saved: OptimizerState) -> tuple[list[str], list[str]]:
        """Return the names of parameters that the snapshot lacks, and those that the optimizer lacks."""
        known = saved.names
        live: set[str] = set()
        missing: list[str] = []
        for names in self._live_names():
            live.update(names)
            if not known.intersection(names):
                missing.append(names[0])
        return missing, sorted(known - live)

    def restore(self, saved: OptimizerState) -> None:
        """Restore a state through the optimizer's own ``load_state_dict``. Collective under FSDP1.

        Parameters without saved state keep their present state.

        Raises:
            IncompatibleSnapshotError: Parameters of one group were saved in several, or the optimizer refuses it.
        """
        if (module := self.flat) is not None:
            self._restore_flat(module, saved)
            return
        present = self._optimizer.state_dict()
        groups, numbers, state = [], _Numbers(), dict[int, Any]()
        names = {id(parameter): names for parameter, names in self._names()}
        for index, group in enumerate(self._optimizer.param_groups):
            aliases = [names[id(parameter)] for parameter in group[_PARAMS]]
            options = self._options(saved, index, aliases)
            own = {key: value for key, value in present["param_groups"][index].items() if key != _PARAMS}
            assigned = [numbers.of(parameter) for parameter in group[_PARAMS]]
            groups.append(own | options | {_PARAMS: assigned})
            kept = present["param_groups"][index][_PARAMS]
            for number, was, each in zip(assigned, kept, aliases, strict=True):
                found = next((name for name in each if name in saved.state), None)
                if found is not None:
                    state[number] = saved.state[found]
                elif not saved.names.intersection(each) and was in present["state"]:
                    state[number] = present["state"][was]
        self._load({**saved.rest, "state": {**saved.loose, **state}, "param_groups": groups})

    def _restore_flat(self, module: Module, saved: OptimizerState) -> None:
        fresh = self.capture()
        groups = [
            group | self._options(saved, index, [(name,) for name in group[_PARAMS]])
            for index, group in enumerate(fresh.groups)
        ]
        wanted = {
            "state": {name: value for name, value in saved.state.items() if name in fresh.names},
            "param_groups": groups,
        }
        with sharded_state(module):
            numbered = FullyShardedDataParallel.optim_state_dict_to_load(
                module, self._optimizer, wanted, group=_group_of(module)
            )
        self._load({**saved.rest, **numbered})

    def _options(self, saved: OptimizerState, index: int, names: list[tuple[str, ...]]) -> dict[str, Any]:
        """Return the saved options of the group that contains these parameters now."""
        found = {
            number
            for number, group in enumerate(saved.groups)
            for known in [set(group[_PARAMS])]
            if any(known.intersection(each) for each in names)
        }
        if len(found) > 1:
            raise IncompatibleSnapshotError(
                "restore",
                f"{self._name}.param_groups.{index}",
                f"its parameters were saved in groups {sorted(found)}, which have different options",
                "Build the optimizer with the groups it was saved with.",
            )
        if not found and index < len(saved.groups) and (not names or not saved.groups[index][_PARAMS]):
            found = {index}
        return {key: value for number in found for key, value in saved.groups[number].items() if key != _PARAMS}

    def _load(self, state: dict[str, Any]) -> None:
        parameters = _numbered(state["param_groups"], self._optimizer.param_groups)
        boxed = {
            key: _boxed(each) if key in parameters and isinstance(each, dict) else each
            for key, each in state["state"].items()
        }
        try:
            self._optimizer.load_state_dict({**state, "state": boxed})
        except Exception as error:
            raise IncompatibleSnapshotError(
                "restore",
                self._name,
                f"its load_state_dict raised {type(error).__name__}: {error}",
                "Build the optimizer as it was when the snapshot was saved.",
            ) from error
        # Undo the casts of Optimizer.load_state_dict, which converts tensors to the parameter's dtype.
        for number, parameter in parameters.items():
            present, saved = self._optimizer.state.get(parameter), state["state"].get(number)
            if isinstance(present, dict) and isinstance(saved, dict):
                present.update({key: _as_saved(saved.get(key), value) for key, value in present.items()})

    def _names(self) -> Iterator[tuple[torch.Tensor, tuple[str, ...]]]:
        """Return each parameter with its names in a snapshot; it is saved under the first."""
        owner = self._owner()
        named = {module: parameter_names(self._modules[module]) for module in self._modules}
        for index, group in enumerate(self._optimizer.param_groups):
            for position, parameter in enumerate(group[_PARAMS]):
                found = [(module, name) for module, names in named.items() for name in names.get(id(parameter), ())]
                if not found:
                    raise ConfigurationError(
                        "read the state of",
                        f"{self._name}.param_groups.{index}",
                        f"no module of the state holds parameter {position} of this group, of shape "
                        f"{list(parameter.shape)}",
                        "Pass every module whose parameters it has, and build the optimizer after they were sharded "
                        "(fully_shard, FSDP).",
                    )
                bare = [name for module, name in found if module == owner or owner is None]
                full = [f"{module}.{name}" for module, name in found]
                yield parameter, tuple(dict.fromkeys((*bare, *full) if owner is not None else (*full, *bare)))

    def _live_names(self) -> Iterator[tuple[str, ...]]:
        if self.flat is None:
            yield from (names for _, names in self._names())
        else:
            yield from ((name,) for name in self.capture().names)

    def _owner(self) -> str | None:
        """Return the first module that has all parameters, or None if they belong to several."""
        owned = {id(parameter) for group in self._optimizer.param_groups for parameter in group[_PARAMS]}
        for name, module in self._modules.items():
            if owned <= {id(parameter) for parameter in module.parameters()}:
                return name
        return None


class _Numbers:
    """Numbers parameters as ``Optimizer.state_dict`` does."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._next = 0

    def of(self, parameter: Any) -> int:
        number = self._known.setdefault(id(parameter), self._next)
        self._next += 1
        return number


class _Box:
    """Hides a value from ``Optimizer.load_state_dict``, which would otherwise convert its parts."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _boxed(state: Any) -> Any:
    """Return a parameter's state with every value hidden that is not a dict, tensor or number."""
    if type(state) is dict:
        return {key: _boxed(value) for key, value in state.items()}
    return state if isinstance(state, torch.Tensor | int | float | complex | None) else _Box(state)


def _as_saved(saved: Any, present: Any) -> Any:
    if isinstance(present, _Box):
        return present.value
    if type(present) is dict:
        known = saved if isinstance(saved, dict) else {}
        return {key: _as_saved(known.get(key), value) for key, value in present.items()}
    if isinstance(saved, torch.Tensor) and isinstance(present, torch.Tensor):
        # The optimizer may have moved it to another device. Another dtype would change its bits.
        return present if saved.dtype == present.dtype and type(saved) is type(present) else saved
    # Any other difference is the optimizer's own conversion, such as a tensor for a step that was saved as a number.
    return present


def _numbered(packed: list[dict[str, Any]], groups: list[dict[str, Any]]) -> dict[int, Any]:
    """Return the parameters by their numbers in ``state_dict``."""
    return {
        number: parameter
        for numbers, group in zip(packed, groups, strict=True)
        for number, parameter in zip(numbers[_PARAMS], group[_PARAMS], strict=True)
    }


def _group_of(module: Module) -> Any:
    """Return the process group over which FSDP1 has sharded; None for hybrid strategies, which have two."""
    wrapped = FullyShardedDataParallel.fsdp_modules(module)[0]
    return None if "HYBRID" in wrapped.sharding_strategy.name else wrapped.process_group
