"""Captures and restores the state of modules, under names that survive wrapping.

Names are those of ``module.state_dict()`` without the prefixes of DistributedDataParallel, FSDP1, ``torch.compile`` and
activation checkpointing, so that a run may change its wrappers from one start to the next.
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
    """Return whether FSDP1, which keeps parameters in flat ones, wraps part of a module."""
    return bool(FullyShardedDataParallel.fsdp_modules(module))


@contextmanager
def sharded_state(module: Module) -> Iterator[None]:
    """Make FSDP1 return and accept sharded state inside the block. Other modules are unchanged."""
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
    """Return the module's state dict by clean names; tensors share its memory. Collective under FSDP1."""
    return {clean: value for clean, (_, value) in _named_state(module).items()}


def put_module_state(
    module: Module, state: Mapping[str, Any], *, strict: bool, versions: Mapping[str, int] | None = None
) -> None:
    """Restore a state by clean names, through the module's own ``load_state_dict``. Collective under FSDP1.

    Buffers that are None in the module, or have another shape, are replaced first, as ``load_state_dict`` cannot.

    Args:
        versions: Versions of the modules that saved it; None if unknown.
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
    # torch reads versions here, so that modules can add or rename entries of a state from another version.
    named._metadata = {  # type: ignore[attr-defined]
        prefix: {"version": part._version if versions is None else versions.get(clean(prefix), 1)}
        for prefix, part in module.named_modules(remove_duplicate=False)
    }
    with torch.no_grad(), sharded_state(module):
        module.load_state_dict(named, strict=strict)


def replaceable(module: Module) -> set[str]:
    """Return clean names whose shape a restore may change: buffers, and uninitialized parameters."""
    clean = cleaner(module)
    lazy = (clean(key) for key, tensor in module.named_parameters() if is_uninitialized(tensor))
    return {*_buffers(module), *lazy}


def parameter_names(module: Module) -> dict[int, tuple[str, ...]]:
    """Return the clean names of each parameter, by ``id``; tied weights have several."""
    clean = cleaner(module)
    names: dict[int, tuple[str, ...]] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        name = clean(key)
        known = names.get(id(parameter), ())
        names[id(parameter)] = known if name in known else (*known, name)
    return names


def tied_names(module: Module) -> list[tuple[str, ...]]:
    """Return groups of names that denote one parameter."""
    return sorted(names for names in parameter_names(module).values() if len(names) > 1)


def frozen_names(module: Module) -> list[str]:
    """Return the names of parameters that require no gradient."""
    clean = cleaner(module)
    return sorted(
        {
            clean(key)
            for key, parameter in module.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        }
    )


def thaw(module: Module, frozen: Iterable[str], saved: Iterable[str]) -> list[str]:
    """Restore which parameters require gradients. Returns the names of those whose setting was changed.

    Args:
        frozen: Names of the saved parameters that required none.
        saved: Names of all saved parameters.
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
    """Return the versions of the classes of submodules, by clean name, except for version 1."""
    clean = cleaner(module)
    return {
        clean(prefix): part._version
        for prefix, part in module.named_modules(remove_duplicate=False)
        if part._version != 1
    }


def unsaved_buffers(module: Module) -> list[str]:
    """Return the non-persistent buffers. No state dict has them; the module's constructor creates them again."""
    return [
        f"{prefix}.{leaf}" if prefix else leaf
        for prefix, part in module.named_modules()
        for leaf in sorted(part._non_persistent_buffers_set)
        if part._buffers.get(leaf) is not None
    ]


def check_module(name: str, module: Module) -> None:
    """Refuse a module without memory for its elements.

    Raises:
        ConfigurationError: It is on the meta device.
    """
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not is_uninitialized(tensor) and tensor.is_meta:
            raise ConfigurationError(
                "read the state of",
                f"{name}.{key}",
                "it is on the meta device and has no elements to load into",
                "Move the module to its device first: module.to_empty(device=...), then reset its parameters.",
            )


def cleaner(module: Module) -> Callable[[str], str]:
    """Return a function that removes the parts added by wrappers from a key of ``module.state_dict()``."""
    # Walking the whole path of each key, as torch does, takes as long as the rest of a capture.
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
        # A hook of the module has renamed it, so the path does not exist.
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
    """Return the location of each persistent buffer by clean name, including those that are None."""
    clean = cleaner(module)
    return {
        clean(f"{prefix}.{leaf}" if prefix else leaf): (part, leaf)
        for prefix, part in module.named_modules()
        for leaf, _ in part._buffers.items()  # the only way to iterate over a scripted module's buffers
        if leaf not in part._non_persistent_buffers_set
    }


def _takes(present: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether ``copy_`` can overwrite the present value."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(present.stride(), present.shape, strict=True))
    return present.shape == value.shape and not overlaps
