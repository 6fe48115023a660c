"""Captures the objects of the application's state for DCP: packed, with their tensors as separate items.

See ``contents`` for the items of an object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn import Module

from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError
from checkpoint_sidecar.training.state import modules
from checkpoint_sidecar.training.state.contents import FORM, PACKED, is_extra, is_tensor
from checkpoint_sidecar.training.state.forms import Form, Opaque, elements, is_like, strides_of
from checkpoint_sidecar.training.state.optimizers import NamedOptimizer, OptimizerState
from checkpoint_sidecar.training.state.values import MAGIC, Packer, Path, Place, Unsupported, unpack

T = TypeVar("T")

INLINE_BYTES = 64 * 1024
"""A larger tensor of an object that is not sharded becomes a separate item, copied and uploaded like any tensor."""

_OPERATION = "save"
_MOST_NUMBERS = 64
"""Of a sequence that does not become part of a name; longer ones are not compared in every case."""


class Capture:
    """The contents of one save.

    Args:
        rank: This process's rank.
        pickles: Pickle values that cannot be packed, for readers that trust the snapshot.
        proven: Kinds of values that were read back once; this adds to it.
    """

    def __init__(self, *, rank: int, pickles: bool, proven: set[str]) -> None:
        self._rank = rank
        self._pickles = pickles
        self._proven = proven

    def module(self, name: str, module: Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Capture a module's state: tensors under clean names, and their description."""
        modules.check_module(name, module)
        items = _Items(self._rank)

        def place(path: Path, tensor: torch.Tensor, form: Form) -> tuple[str, Form] | None:
            # A tensor of the state dict itself, not one inside an extra state.
            return items.put(path[1:], tensor, form) if len(path) == 2 or _stands_alone(form) else None

        # Objects that belong to a submodule: like its buffers, they may differ between ranks.
        objects = {key: each for key, each in state.items() if is_extra(key) and not is_tensor(each)}
        described = {
            "state": {key: each for key, each in state.items() if key not in objects},
            "objects": sorted(objects),
            "ties": modules.tied_names(module),
            "frozen": modules.frozen_names(module),
            "versions": modules.versions(module),
        }
        data = self._pack(name, described, place, within="state")
        extras = {
            key: self._pack(name, each, place, at=("state", key), within="state") for key, each in objects.items()
        }
        return items.tree | extras | {FORM: {_digest(data): data}}

    def optimizer(self, name: str, optimizer: NamedOptimizer, captured: OptimizerState) -> dict[str, Any]:
        """Capture an optimizer's state: tensors under the names of parameters, and their description."""
        parameters = optimizer.parameters()
        items = _Items(self._rank)

        def place(path: Path, tensor: torch.Tensor, form: Form) -> tuple[str, Form] | None:
            if path[0] != "state" or form.raw:
                return items.put(path, tensor, form) if _stands_alone(form) else None
            parameter = parameters.get(path[1])
            if parameter is not None and is_like(tensor, parameter):
                differs = not form.distributed and not form.opaque and tensor.stride() != parameter.stride()
                form = form._replace(like=True, strides=strides_of(tensor) if differs else None)
            return items.put(path, tensor, form)

        data = self._pack(name, captured.described(), place)
        # For torch's own reader, which flattens all of an optimizer's state.
        tree: dict[str, Any] = {"state": {}} | items.tree
        for parameter, state in captured.state.items():
            for key, value in state.items() if isinstance(state, dict) else ():
                if isinstance(key, str) and _is_simple(value):
                    tree["state"].setdefault(parameter, {}).setdefault(key, value)
        tree["param_groups"] = [
            {key: value for key, value in group.items() if _is_simple(value)} for group in captured.groups
        ]
        return tree | {FORM: {_digest(_without_numbers(data, captured, tree)): data}}

    def shared(self, name: str, value: Stateful) -> dict[str, Any]:
        """Capture the state of an object that is the same on all ranks."""
        state = guarded(name, value.state_dict)
        items = _Items(self._rank)
        data = self._pack(
            name, state, lambda path, tensor, form: items.put(path, tensor, form) if _stands_alone(form) else None
        )
        return items.tree | {PACKED: data}

    def own(self, name: str, value: Stateful, key: str) -> dict[str, Any]:
        """Capture the state of an object that differs between ranks.

        Args:
            key: This rank's key.
        """
        state = guarded(name, value.state_dict)
        items = _Items(self._rank)

        def place(path: Path, tensor: torch.Tensor, form: Form) -> tuple[str, Form] | None:
            if form.distributed:
                raise Unsupported(path, "is sharded over the ranks, which hold it together: do not wrap it in PerRank")
            return items.put(path, tensor, form) if _stands_alone(form) else None

        data = self._pack(name, state, place)
        return {key: data} | {f"{key}:{item}": each for item, each in items.flat.items()}

    def _pack(self, name: str, value: Any, place: Place, *, at: Path = (), within: str = "") -> bytes:
        packer = Packer(self._proving(place), pickles=self._pickles)
        try:
            data = packer.pack(value, at=at)
        except Unsupported as unsupported:
            raise ConfigurationError(
                _OPERATION,
                ".".join(filter(None, (name, unsupported.place.removeprefix(f"{within}.")))),
                f"it cannot be restored: it {unsupported.cause}",
                "Let state_dict return plain data (numbers, text, containers, tensors) in its place, or pass "
                'trust="full" here and at every restore.',
            ) from unsupported
        if packer.kinds - self._proven:
            # Detects now, not at the next start, that a value cannot be read back.
            try:
                unpack(data, lambda _, __: None, subject=name, trusted=self._pickles)
            except CheckpointError as error:
                raise ConfigurationError(_OPERATION, name, f"it cannot be restored: {error.cause}") from error
            self._proven |= packer.kinds
        return data

    def _proving(self, place: Place) -> Place:
        """Wrap ``place`` to check the first tensor of each class that consists of more than its elements."""

        def proving(path: Path, tensor: torch.Tensor, form: Form) -> tuple[str, Form] | None:
            if form.opaque:
                kind = type(elements(tensor))
                tag = f"{kind.__module__}.{kind.__qualname__} {elements(tensor).layout}"
                if tag not in self._proven:
                    refused = Opaque(elements(tensor)).refused(trusted=self._pickles)
                    if refused:
                        raise Unsupported(path, f"is a {tag}, and {refused}")
                    self._proven.add(tag)
            return place(path, tensor, form)

        return proving


class _Items:
    """Tensors of one object that are stored as separate items.

    Attributes:
        tree: The tensors as nested dicts, from which DCP makes the names of items.
        flat: The tensors by those names.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.tree: dict[str, Any] = {}
        self.flat: dict[str, Any] = {}

    def put(self, path: Path, tensor: torch.Tensor, form: Form) -> tuple[str, Form]:
        """Store a tensor under its path, or a similar one if that is taken. Returns the name and form to record."""
        parts = [str(part) for part in path] or ["value"]
        if parts[0] in (PACKED, FORM):
            parts[0] += "~"
        while ".".join(parts) in self.flat:
            parts[-1] += "~"
        if not self._has_room(parts):
            parts = [".".join(parts) + "~"]
            while parts[0] in self.flat:
                parts[0] += "~"
        name = ".".join(parts)
        value: Any = tensor
        if form.opaque:
            value = Opaque(elements(tensor))
            if form.distributed:
                # Only the rank itself can reassemble its part.
                parts[-1] += f".rank-{self._rank:05d}"
        self.flat[name] = value
        branch = self.tree
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
        branch[parts[-1]] = value
        return name, form

    def _has_room(self, parts: Sequence[str]) -> bool:
        branch: Any = self.tree
        for part in parts[:-1]:
            branch = branch.get(part, {})
            if not isinstance(branch, dict):
                return False
        return parts[-1] not in branch


def _stands_alone(form: Form) -> bool:
    return form.distributed or form.opaque or form.nbytes > INLINE_BYTES


def _is_simple(value: Any) -> bool:
    """Return whether DCP can store a value unchanged, for readers that do not know packed ones."""
    if is_tensor(value):
        return type(value) is torch.Tensor and value.layout is torch.strided and value.numel() == 1
    if isinstance(value, list | tuple):
        return (
            type(value) in (list, tuple) and not any(is_tensor(each) for each in value) and all(map(_is_simple, value))
        )
    return value is None or type(value) in (bool, int, float, str)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _without_numbers(data: bytes, captured: OptimizerState, tree: Mapping[str, Any]) -> bytes:
    """Return the packed state of an optimizer without the numbers that are items of their own too.

    A schedule changes such numbers between saves. Without them, an optimizer's form has the same name in each save, so
    that a save is not planned anew. A name without them is no less safe: items of ranks that differ in such a number
    are refused, and ranks that differ in anything else have forms of different names.

    Args:
        data: ``captured.described()``, packed.
        tree: The optimizer's items.
    """
    root = msgspec.msgpack.decode(data[len(MAGIC) :])
    state, groups = root[-1][:2]
    parts = zip(captured.state.items(), state[-1], strict=True)
    pairs = [(values, tree["state"].get(name), node) for (name, values), node in parts]
    pairs += zip(captured.groups, tree["param_groups"], groups[-1], strict=True)
    for values, items, node in pairs:
        if items and isinstance(values, dict) and isinstance(node[-1], list):  # others were pickled
            for number, (key, value) in enumerate(values.items()):
                if items.get(key) is value:
                    node[-1][number] = _without_number(value, node[-1][number])
    return msgspec.msgpack.encode(root)


def _without_number(value: Any, node: Any) -> Any:
    """Return a packed number, a tensor of one or a short sequence of them without the numbers; others as they are."""
    if type(value) in (int, float):
        return 0
    if isinstance(node, list) and node[0] == "tensor":
        return node[:2]
    if type(value) in (list, tuple) and len(value) <= _MOST_NUMBERS and {int, float}.issuperset(map(type, value)):
        return [node[0], len(value)]
    return node


def guarded(name: str, read: Callable[[], T]) -> T:
    """Return an object's own ``state_dict``, or raise an error that names the object."""
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigurationError(
            _OPERATION, name, f"its state_dict raised {type(error).__name__}: {error}", "Fix its state_dict."
        ) from error
