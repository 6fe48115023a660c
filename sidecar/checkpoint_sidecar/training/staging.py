"""Copying a state dict to host memory, so that training can go on while the copy is uploaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor  # type: ignore[attr-defined]
from torch.distributed.checkpoint import staging


class HostCopy:
    """torch's stager, which keeps its buffers from one copy to the next, plus FSDP1's tensors, which it refuses."""

    def __init__(self) -> None:
        self._stager = _torchs_stager() if _torchs_stager_can_be_used_again() else _NewMemory()

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        """The copy. It lives in the buffers of the previous one, which must not be in use any more."""
        staged = self._stager.stage(_mapped(state, _to_host))
        return cast("dict[str, Any]", _mapped(staged, lambda value: value.tensor if type(value) is _OnHost else value))

    def close(self) -> None:
        """Free the buffers."""
        self._stager.close()


def _torchs_stager_can_be_used_again() -> bool:
    """Not in versions before 2.9, which have none, nor in 2.12, where it closes itself after its first copy."""
    if not hasattr(staging, "DefaultStager"):
        return False
    stager = _torchs_stager()
    try:
        for _ in range(2):
            stager.stage({})
    except KeyError:
        return False
    finally:
        stager.close()
    return True


def _torchs_stager() -> Any:
    # On a GPU: page-locked buffers, and copies that overlap. On a CPU both would only cost.
    accelerated = torch.cuda.is_available()
    return staging.DefaultStager(
        staging.StagingOptions(
            use_pinned_memory=accelerated,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=accelerated,
        )
    )


class _NewMemory:
    """Every copy takes memory of its own. torch's ``BlockingAsyncStager`` does not copy what is on the host already."""

    def stage(self, state: dict[str, Any]) -> dict[str, Any]:
        return cast("dict[str, Any]", _mapped(state, _copied))

    def close(self) -> None:
        """Nothing is kept."""


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else copy.deepcopy(value)


class _OnHost:
    """A tensor that is copied already: the stager passes it on."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> _OnHost:
        return self


def _to_host(value: Any) -> Any:
    if not isinstance(value, ShardedTensor):
        return value
    on_host = all(shard.tensor.device.type == "cpu" for shard in value.local_shards())
    return _OnHost(copy.deepcopy(value) if on_host else value.cpu())


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if type(value) is list:
        return [_mapped(each, change) for each in value]
    return change(value)
