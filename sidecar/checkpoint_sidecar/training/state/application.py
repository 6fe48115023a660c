"""Translates between the application's named objects and the items that torch.distributed.checkpoint saves and loads.

| object | stored as |
| --- | --- |
| ``nn.Module`` | its state dict, sharded as it is, under names without wrappers |
| ``Optimizer`` | its state dict, sharded as it is, under the names of its parameters |
| object with ``state_dict``/``load_state_dict`` | one packed value for all ranks; large and sharded tensors beside it |
| the same with ``per_rank = True`` (``PerRank``, ``RandomState``) | one packed value per rank |
| plain value (None, bool, int, float, str, lists and dicts of them) | JSON text |

Destinations of a load follow from the snapshot's contents, never from the state of fresh objects: see ``contents`` for
the items of a snapshot and ``values`` for packed ones. Neither saving nor loading steps an optimizer.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.optim import Optimizer

from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError, IncompatibleSnapshotError
from checkpoint_sidecar.training.dcp.restricted import Trust, load_restricted
from checkpoint_sidecar.training.state import modules
from checkpoint_sidecar.training.state.captures import Capture, guarded
from checkpoint_sidecar.training.state.contents import PACKED, Contents, Leaf, Ref, retyped
from checkpoint_sidecar.training.state.destinations import Destinations
from checkpoint_sidecar.training.state.forms import Form, Opaque
from checkpoint_sidecar.training.state.leftovers import bounded
from checkpoint_sidecar.training.state.optimizers import NamedOptimizer, OptimizerState
from checkpoint_sidecar.training.state.values import MAGIC, unpack

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]

_RESTORE = "restore"
_DEEPEST = 100
_MOST_DIGITS = 4000
"""Maximum length of an integer that Python parses from text under its default limit."""


class PerRank:
    """Marks an object whose state differs from rank to rank, such as a data loader.

    Each rank gets its own state back. A rank without a saved state (there are more ranks than saved it) keeps its
    present state and logs a warning.
    """

    per_rank: ClassVar[bool] = True

    def __init__(self, wrapped: Stateful) -> None:
        self.wrapped = wrapped

    def state_dict(self) -> StateDict:
        return self.wrapped.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.wrapped.load_state_dict(state)


class Optional:
    """Marks an object that a snapshot may lack; then it keeps its present state.

    >>> Checkpointer({"model": model, "ema": Optional(ema)}, url=...)
    """

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped


class TrainingState:
    """Reads and writes the objects that make up a training run.

    Args:
        objects: Objects by name; the mapping is used, not copied. A restore changes plain lists and dicts in place, and
            replaces other plain values under their names.
        rank: This process's rank.
        trust: Whether values may hold any pickled class, or only types that can be rebuilt without running code.
        thaw: Whether a restore sets ``requires_grad`` of parameters as it was saved.

    Attributes:
        modules: The objects that are modules, by name.

    Raises:
        ConfigurationError: An object is not of a kind above, is on the meta device, or is an optimizer with a
            parameter that no module of the state contains.
    """

    def __init__(
        self, objects: MutableMapping[str, Any], *, rank: int, trust: Trust = "safe", thaw: bool = True
    ) -> None:
        self._thaw = thaw
        self._objects = objects
        self._rank = rank
        self._trust = trust
        self._proven: set[str] = set()
        self._again: list[tuple[Stateful, Any]] = []
        for name, value in self._items():
            _check(name, value)
        self.modules = {name: value for name, value in self._items() if isinstance(value, Module)}
        self._optimizers = {
            name: NamedOptimizer(name, value, self.modules)
            for name, value in self._items()
            if isinstance(value, Optimizer)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all objects."""
        return tuple(self._objects)

    def only(self, name: str) -> TrainingState:
        """Return the state of one object. Loading into it leaves ``requires_grad`` as it is.

        Raises:
            ConfigurationError: There is no such object.
        """
        if name not in self._objects:
            raise ConfigurationError(
                "load a part of the state",
                name,
                f"the state has no such object: it has {', '.join(self._objects) or 'none'}",
                "Name one of them as the part.",
            )
        return TrainingState({name: self._objects[name]}, rank=self._rank, trust=self._trust, thaw=False)

    # Saving

    def module(self, name: str) -> Module:
        """Return one object, which must be a module.

        Raises:
            ConfigurationError: There is no such object, or it is something else.
        """
        found = self.only(name)._objects[name]
        if not isinstance(found, Module):
            raise ConfigurationError(
                "load weights into", name, f"it is a {type(found).__name__}, not a module", "Name a module as the part."
            )
        return found

    def capture(self) -> StateDict:
        """Return a state dict that shares memory with the objects. Changes none of them. Collective under FSDP1.

        Raises:
            ConfigurationError: Part of the state could not be restored; the message names it.
        """
        first = not self._proven
        capture = Capture(rank=self._rank, pickles=self._trust == "full", proven=self._proven)
        captured: StateDict = {}
        # Collective captures come first: a rank that refuses an object must not be missing from them.
        state_of = {name: guarded(name, partial(modules.module_state, each)) for name, each in self.modules.items()}
        held = {name: guarded(name, each.capture) for name, each in self._optimizers.items()}
        for name, value in self._items():
            if isinstance(value, Module):
                captured[name] = capture.module(name, value, state_of[name])
            elif name in self._optimizers:
                captured[name] = capture.optimizer(name, self._optimizers[name], held[name])
            elif _per_rank(value):
                captured[name] = capture.own(name, value, self._rank_key)
            elif isinstance(value, Stateful):
                captured[name] = capture.shared(name, value)
            else:
                _check_plain(name, value)
                captured[name] = json.dumps(value)
        if first and self._rank == 0 and (lost := self._not_saved()):
            logger.info("not in a snapshot, and not restored: %s", "; ".join(lost))
        return captured

    def _not_saved(self) -> list[str]:
        """Describe state of the objects that snapshots leave out."""
        lost = list(
            bounded(
                f"{name}.{buffer} (not persistent)"
                for name, module in self.modules.items()
                for buffer in modules.unsaved_buffers(module)
            )
        )
        lost += (
            f"the gradients of {name}"
            for name, module in self.modules.items()
            if any(each.grad is not None for each in module.parameters())
        )
        if self._objects and not any(_at_first_step(value) for _, value in self._items()):
            lost.append("the random number generators (add RandomState() to the state)")
        return lost

    # Loading

    def destinations(self, contents: Contents) -> Destinations:
        """Return where to load each item that this rank needs, and the mismatches. Collective under FSDP1.

        Args:
            contents: Contents of the snapshot, with the values that ``Contents.shared_items`` names.

        Raises:
            CheckpointError: The description of an object cannot be read.
        """
        found = Destinations(contents, self._meshes(), self._rank)
        for name, value in self._items():
            if name not in contents.names:
                optional = isinstance(self._objects[name], Optional)
                (found.leftovers.absent if optional else found.leftovers.missing).add(name)
            elif isinstance(value, Module):
                described = self._module(name, contents, _itself)
                found.add_module(name, value, described["state"], described["ties"])
            elif name in self._optimizers:
                found.add_optimizer(name, self._optimizers[name], self._optimizer(name, contents, _itself))
            elif isinstance(value, Stateful):
                self._add_stateful(found, name, value, contents)
        found.leftovers.gone |= contents.names - set(self._objects)
        return found

    def _add_stateful(self, found: Destinations, name: str, value: Stateful, contents: Contents) -> None:
        own, packed = f"{name}.{self._rank_key}", f"{name}.{PACKED}"
        if _per_rank(value) and own in contents.objects:
            found.add_object(own)
            for item in contents.below(name):
                if item.startswith(f"{own}:"):
                    found.add_whole(item)
        elif contents.ranks(name):
            if not _per_rank(value):
                found.leftovers.misfits.add(f"{name} was saved by each rank for itself: wrap it in PerRank")
        elif packed in contents.objects:
            described = self._unpack(name, contents.values[packed], _itself)
            found.add_refs(described, self._counterparts(name, value, contents))
        else:
            found.add_refs(contents.flattened(name, _itself), self._counterparts(name, value, contents))

    def apply(self, loaded: Contents | StateDict) -> None:
        """Restore a loaded state into the objects. Collective where the modules are sharded.

        Args:
            loaded: Contents of the snapshot with all loaded values, or the result of ``capture``.

        Raises:
            IncompatibleSnapshotError: An object refuses its state; the message names it.
        """
        contents = loaded if isinstance(loaded, Contents) else Contents.held(loaded)
        self._again.clear()

        def put(ref: Ref) -> Any:
            return _revived(contents.values.get(ref.item), ref.form)

        # Modules first: only now do lazy ones create the parameters that the optimizers' state belongs to.
        for name, value in sorted(self._items(), key=lambda item: not isinstance(item[1], Module)):
            if name not in contents.names:
                self._warn_of_absence(name, value)
            elif isinstance(value, Module):
                self._apply_module(name, value, self._module(name, contents, put))
            elif name in self._optimizers:
                self._optimizers[name].restore(self._optimizer(name, contents, put))
            elif isinstance(value, Stateful):
                self._apply_stateful(name, value, contents, put)
            else:
                self._apply_plain(name, contents.values.get(name))

    def apply_again(self) -> None:
        """Restore the random number generators once more, which may have been used since the restore."""
        for value, state in self._again:
            value.load_state_dict(state)
        self._again.clear()

    def _apply_module(self, name: str, module: Module, described: dict[str, Any]) -> None:
        live = modules.module_state(module)
        known = {*live, *modules.replaceable(module)}
        state = {key: value for key, value in described["state"].items() if key in known}
        try:
            modules.put_module_state(module, state, strict=state.keys() >= live.keys(), versions=described["versions"])
        except Exception as error:
            what = "refused it" if isinstance(error, RuntimeError) else f"raised {type(error).__name__}"
            raise IncompatibleSnapshotError(
                _RESTORE,
                name,
                f"its load_state_dict {what}: {error}",
                "Build the module as it was when the snapshot was saved.",
            ) from error
        if self._thaw and described["frozen"] is not None and not modules.is_flat(module):
            changed = modules.thaw(module, described["frozen"], state.keys())
            if changed:
                logger.warning(
                    "%s: requires_grad is set to its saved value again: %s", name, ", ".join(bounded(changed))
                )

    def _apply_stateful(self, name: str, value: Stateful, contents: Contents, put: Leaf) -> None:
        own, packed = f"{name}.{self._rank_key}", f"{name}.{PACKED}"
        if _per_rank(value) and own in contents.objects:
            state = self._own(own, contents)
        elif contents.ranks(name):
            self._warn_of_absence(name, value)
            return
        elif packed in contents.objects:
            state = self._unpack(name, contents.values[packed], put)
        else:
            state = retyped(contents.flattened(name, put), value.state_dict())
        try:
            value.load_state_dict(state)
        except Exception as error:
            raise IncompatibleSnapshotError(
                _RESTORE,
                name,
                f"its load_state_dict raised {type(error).__name__}: {error}",
                "Build the object as it was when the snapshot was saved.",
            ) from error
        if _at_first_step(value):
            self._again.append((value, state))

    def _warn_of_absence(self, name: str, value: Any) -> None:
        what = self._rank_key if _per_rank(value) else "state of it"
        logger.warning("%s: the snapshot has no %s; it keeps its present state", name, what)

    def _apply_plain(self, name: str, text: Any) -> None:
        if not isinstance(text, str):
            raise IncompatibleSnapshotError(
                _RESTORE, name, "it was saved as an object with a state_dict, but is a plain value here"
            )
        loaded, holder = json.loads(text), self._objects[name]
        present = holder.wrapped if isinstance(holder, Optional) else holder
        if isinstance(present, dict) and isinstance(loaded, dict):
            present.clear()
            present.update(loaded)
        elif isinstance(present, list) and isinstance(loaded, list):
            present[:] = loaded
        elif isinstance(holder, Optional):
            holder.wrapped = loaded
        else:
            self._objects[name] = loaded

    # An object as the snapshot describes it; ``leaf`` chooses the stand-ins for its tensors

    def _module(self, name: str, contents: Contents, leaf: Leaf) -> dict[str, Any]:
        """Return ``state`` by clean name, ``ties``, ``frozen``, ``versions``; the latter three are None if unknown."""
        merged: dict[str, Any] = {"state": {}, "ties": None, "frozen": None, "versions": None}
        for form in contents.forms(name):
            found = self._unpack(name, contents.values[form], leaf)
            objects = {key: self._unpack(name, contents.values[f"{name}.{key}"], leaf) for key in found["objects"]}
            written = found.get("versions")  # empty if all were of version 1
            merged = {
                "state": found["state"] | objects | merged["state"],
                "ties": [*(merged["ties"] or ()), *found["ties"]],
                "frozen": [*(merged["frozen"] or ()), *found["frozen"]],
                "versions": merged["versions"] if written is None else (merged["versions"] or {}) | written,
            }
        if not contents.forms(name):
            merged["state"] = contents.flattened(name, leaf)
        return merged

    def _optimizer(self, name: str, contents: Contents, leaf: Leaf) -> OptimizerState:
        merged: OptimizerState | None = None
        for form in contents.forms(name):
            found = self._unpack(name, contents.values[form], leaf)
            each = OptimizerState(found["param_groups"], found["state"], found["loose"], found["rest"])
            merged = each if merged is None else merged.merged(each)
        if merged is not None:
            return merged
        flat = contents.flattened(name, leaf)
        return OptimizerState(flat.get("param_groups", []), flat.get("state", {}))

    def _own(self, item: str, contents: Contents) -> Any:
        data = contents.values[item]
        if data.startswith(MAGIC):

            def find(part: str, form: Form) -> Any:
                return _revived(contents.values[f"{item}:{part}"], form)

            return unpack(data, find, subject=item, trusted=self._trust == "full")
        return load_restricted(io.BytesIO(data), subject=item, trust=self._trust)

    def _unpack(self, name: str, data: bytes, leaf: Leaf) -> Any:
        def find(part: str, form: Form) -> Any:
            return leaf(Ref(f"{name}.{part}", form))

        return unpack(data, find, subject=name, trusted=self._trust == "full")

    def _counterparts(self, name: str, value: Stateful, contents: Contents) -> dict[str, Any]:
        """Return an object's present sharded tensors, by item name: loaded ones are sharded like them."""
        if not torch.distributed.is_initialized() or not any(item in contents.tensors for item in contents.below(name)):
            return {}
        try:
            captured = Capture(rank=self._rank, pickles=True, proven=set()).shared(name, value)
        except CheckpointError:
            return {}
        flat = Contents.held({name: captured})
        return {
            item: flat.values[item]
            for item in flat.tensors
            if isinstance(flat.values[item], DTensor) or hasattr(flat.values[item], "local_shards")
        }

    def _meshes(self) -> list[DeviceMesh]:
        found = (
            parameter.device_mesh
            for module in self.modules.values()
            for parameter in module.parameters()
            if isinstance(parameter, DTensor)
        )
        return list(dict.fromkeys(found))

    @property
    def _rank_key(self) -> str:
        return f"rank-{self._rank:05d}"

    def _items(self) -> Iterator[tuple[str, Any]]:
        for name, value in list(self._objects.items()):
            yield name, value.wrapped if isinstance(value, Optional) else value


def _itself(ref: Ref) -> Ref:
    return ref


def _revived(value: Any, form: Form) -> Any:
    """Return a loaded item as it was saved."""
    value = value.tensor if isinstance(value, Opaque) else value
    return form.finish(value) if isinstance(value, torch.Tensor) else value


def _at_first_step(value: Any) -> bool:
    return getattr(value, "at_first_step", False) is True


def _per_rank(value: Any) -> bool:
    return isinstance(value, Stateful) and getattr(value, "per_rank", False) is True


def _check(name: str, value: Any) -> None:
    operation = "read the state of"
    if not name or "." in name:
        raise ConfigurationError(operation, repr(name), "a name must be non-empty and without dots", "Rename it.")
    if isinstance(value, Module):
        modules.check_module(name, value)
    elif isinstance(value, Optimizer | Stateful):
        return
    elif isinstance(value, dict | list) or value is None or isinstance(value, bool | int | float | str):
        _check_plain(name, value)
    else:
        raise ConfigurationError(
            operation,
            name,
            f"a {type(value).__name__} is neither a module, an optimizer, an object with state_dict and "
            "load_state_dict, nor a plain JSON value",
            "Give it these two methods, or turn it into None, bool, int, float, str, lists and dicts with str keys.",
        )


def _check_plain(name: str, value: Any) -> None:
    """Refuse a plain value that JSON would change.

    Raises:
        ConfigurationError: Part of the value would change; the message gives its place.
    """
    for place, cause in _changed_by_json(value, name, 0):
        raise ConfigurationError(
            "save",
            place,
            f"it cannot be restored exactly: {cause}",
            "Use None, bool, int, float, str, lists and dicts with str keys, or an object with state_dict and "
            "load_state_dict, which may hold any container.",
        )


def _changed_by_json(value: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST:
        yield place, f"it is nested more than {_DEEPEST} levels deep"
    elif isinstance(value, dict) and (not depth or type(value) is dict):
        for key, each in value.items():
            if type(key) is not str:
                yield f"{place}.{key!r}", f"the key is of type {type(key).__name__} and would become text"
            yield from _changed_by_json(each, f"{place}.{key}", depth + 1)
    elif isinstance(value, list) and (not depth or type(value) is list):
        for index, each in enumerate(value):
            yield from _changed_by_json(each, f"{place}.{index}", depth + 1)
    elif type(value) is int and value.bit_length() > 3 * _MOST_DIGITS:
        yield place, "the number has too many digits"
    elif value is not None and not isinstance(value, bool | int | float | str):
        yield place, f"it is a {type(value).__name__}"
