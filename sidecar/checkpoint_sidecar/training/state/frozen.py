"""Finds the parameters that take no gradient, which saves expect not to change."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def frozen_among(module: torch.nn.Module, state: Mapping[str, object], prefix: str) -> set[str]:
    """Return the names in a module's state dict of parameters that take no gradient.

    Args:
        state: The state dict, which shares the module's memory.
        prefix: The module's name in the whole state dict.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    # A wrapper may name them differently in its state dict.
    places = {place for name in frozen if (place := _place(parameters[name]))}
    return {
        f"{prefix}.{key}"
        for key, value in state.items()
        if key in frozen or (isinstance(value, torch.Tensor) and _place(value) in places)
    }


def _place(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor subclass without its own memory
        return 0
