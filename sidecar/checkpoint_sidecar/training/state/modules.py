"""The state of modules under the names that survive wrapping, and how it is put back.

Names are those of ``module.state_dict()`` without what DistributedDataParallel, FSDP1, ``torch.compile`` and activation
checkpointing put in front, so that a run may change its wrappers from one start to the next.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import _get_fqns
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.state.forms import is_uninitialized

_WRAPPERS = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod")


def is_flat(module: Module) -> bool:
    """Whether part of a module is wrapped by FSDP1, which keeps its parameters in flat ones."""
    return bool(FullyShardedDataParallel.fsdp_modules(module))


@contextmanager
def sharded_state(module: Module) -> Iterator[None]:
    """Let FSDP1 hand out and take sharded state; no other module is changed."""
    if not is_flat(module):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        with FullyShardedDataParallel.state_dict_type(
            module, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(), ShardedOptimStateDictConfig()
        ):
            yield


def module_state(module: Module) -> dict[str, Any]:
    """The module's state dict by clean names; tensors share its memory. Collective under FSDP1."""
    return {clean: value for clean, (_, value) in _named_state(module).items()}


def put_module_state(
    module: Module, state: Mapping[str, Any], *, strict: bool, versions: Mapping[str, int] | None = None
) -> None:
    """Put back a state by clean names, through the module's own ``load_state_dict``. Collective under FSDP1.

    Buffers that the module has as None, or in another shape, are replaced first: ``load_state_dict`` cannot.

    Args:
        versions: Of the modules that saved it; None if they are not known.
    """
    buffers = _buffers(module)
    for name, value in state.items():
        if name in buffers and isinstance(value, torch.Tensor):
            owner, leaf = buffers[name]
            present = getattr(owner, leaf)
            if present is None or not (is_uninitialized(present) or _takes(present, value)):
                setattr(owner, leaf, value.clone() if present is None else value.to(present.device, copy=True))
    raw = {clean: key for clean, (key, _) in _named_state(module).items()}
    named = OrderedDict((raw.get(name, name), value) for name, value in state.items())
    clean = cleaner(module)
    # Where torch looks for what the state was saved by: modules fill in or rename what other versions lack.
    named._metadata = {  # type: ignore[attr-defined]
        prefix: {"version": part._version if versions is None else versions.get(clean(prefix), 1)}
        for prefix, part in module.named_modules(remove_duplicate=False)
    }
    with torch.no_grad(), sharded_state(module):
        module.load_state_dict(named, strict=strict)


def replaceable(module: Module) -> set[str]:
    """Clean names of what may come back with another shape than it has now: buffers, and what is not initialized."""
    clean = cleaner(module)
    lazy = (clean(key) for key, tensor in module.named_parameters() if is_uninitialized(tensor))
    return {*_buffers(module), *lazy}


def parameter_names(module: Module) -> dict[int, tuple[str, ...]]:
    """The clean names of each parameter, by ``id``: several where weights are tied."""
    clean = cleaner(module)
    names: dict[int, tuple[str, ...]] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        name = clean(key)
        known = names.get(id(parameter), ())
        names[id(parameter)] = known if name in known else (*known, name)
    return names


def tied_names(module: Module) -> list[tuple[str, ...]]:
    """Groups of names that stand for one parameter."""
    return sorted(names for names in parameter_names(module).values() if len(names) > 1)


def frozen_names(module: Module) -> list[str]:
    """Parameters that require no gradient."""
    clean = cleaner(module)
    return sorted(
        {
            clean(key)
            for key, parameter in module.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        }
    )


def thaw(module: Module, frozen: Iterable[str], saved: Iterable[str]) -> list[str]:
    """Let parameters require gradients as they did when they were saved. Returns the names of those that did not.

    Args:
        frozen: Names of those that required none.
        saved: Names of all that were saved.
    """
    clean = cleaner(module)
    without, known, changed = set(frozen), set(saved), []
    for key, parameter in module.named_parameters():
        name = clean(key)
        if name in known and parameter.requires_grad == (name in without):
            parameter.requires_grad_(name not in without)
            changed.append(name)
    return changed


def versions(module: Module) -> dict[str, int]:
    """The versions of the classes of a module's parts, by clean names, apart from those of version 1."""
    clean = cleaner(module)
    return {
        clean(prefix): part._version
        for prefix, part in module.named_modules(remove_duplicate=False)
        if part._version != 1
    }


def unsaved_buffers(module: Module) -> list[str]:
    """Non-persistent buffers: no state dict has them; the module's constructor makes them again."""
    return [
        f"{prefix}.{leaf}" if prefix else leaf
        for prefix, part in module.named_modules()
        for leaf in sorted(part._non_persistent_buffers_set)
        if part._buffers.get(leaf) is not None
    ]


def check_module(name: str, module: Module) -> None:
    """Refuse a module whose elements are nowhere.

    Raises:
        ConfigurationError: It is on the meta device.
    """
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not is_uninitialized(tensor) and tensor.is_meta:
            raise ConfigurationError(
                "describe the training state",
                f"{name}.{key}",
                "it is on the meta device and has no elements to load into",
                "Move the module to its device first: module.to_empty(device=...), then reset its parameters.",
            )


def cleaner(module: Module) -> Callable[[str], str]:
    """Returns what turns a key of ``module.state_dict()`` into one without the parts that wrappers added."""
    # Walking the whole path of each key, as torch does, takes as long as everything else that a capture does.
    return partial(_found_name, module) if any(map(_is_wrapper, module.modules())) else _without_wrappers


def _is_wrapper(module: Module) -> bool:
    return (
        isinstance(module, DistributedDataParallel)
        or hasattr(module, "_fqn_modifiers")
        or any(wrapper in module._modules for wrapper in _WRAPPERS)
    )


def _found_name(module: Module, key: str) -> str:
    if "." not in key:
        return key
    try:
        (clean,) = _get_fqns(module, key)
    except (AttributeError, AssertionError, RuntimeError, ValueError):
        # A hook of the module has renamed it, so that it leads nowhere.
        return _without_wrappers(key)
    return clean


def _without_wrappers(key: str) -> str:
    if not any(wrapper in key for wrapper in _WRAPPERS):
        return key
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _named_state(module: Module) -> dict[str, tuple[str, Any]]:
    with torch.no_grad(), sharded_state(module):
        state = module.state_dict()
    clean = cleaner(module)
    named: dict[str, tuple[str, Any]] = {}
    for key, value in state.items():
        name = clean(key)
        named[key if name in named else name] = (key, value)
    return named


def _buffers(module: Module) -> dict[str, tuple[Module, str]]:
    """Where each persistent buffer is, also one that is None, by clean name."""
    clean = cleaner(module)
    return {
        clean(f"{prefix}.{leaf}" if prefix else leaf): (part, leaf)
        for prefix, part in module.named_modules()
        for leaf, _ in part._buffers.items()  # a scripted module's buffers can be gone through in no other way
        if leaf not in part._non_persistent_buffers_set
    }


def _takes(present: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether ``copy_`` can put the value where the present one is."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(present.stride(), present.shape, strict=True))
    return present.shape == value.shape and not overlaps
