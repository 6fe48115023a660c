"""Objects of torchtitan that are not saved and restored as they are."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torchtitan.components.checkpointer.base import DATALOADER

from checkpoint_sidecar.core.errors import ConfigurationError


class RankLoaders:
    """The data loaders of all ranks. Each finds its own state again: torchtitan names it by data-parallel rank.

    Reading the state is collective, as all ranks save at the same point.
    """

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def state_dict(self) -> dict[str, Any]:
        own = self._wrapped.state_dict()
        states: list[dict[str, Any]] = [own]
        if dist.is_initialized():
            states = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(states, own)
        merged: dict[str, Any] = {}
        for name, value in sorted(item for state in states for item in state.items()):
            if merged.setdefault(name, value) != value:
                cause = f"the loaders of two ranks have different values of {name!r}"
                raise ConfigurationError("save", DATALOADER, cause, "Name each by its data-parallel rank.")
        return merged

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._wrapped.load_state_dict(state)


class SavedOnly:
    """An object whose state is saved, and not restored."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._wrapped.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
