"""Training runs that are stopped and continued by fresh processes, compared bit for bit with undisturbed runs."""

from __future__ import annotations

import copy
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.training.state.application import Optional, PerRank
from training.checkpointer_runs import RunStorage

NO_SCHEDULE = SavePolicy(every_steps=None, every_seconds=None)


@dataclass
class Job:
    """What one process trains.

    Attributes:
        state: What is given to the checkpointer.
        step: Trains one step, given its number.
        watched: More to compare at the end.
    """

    state: dict[str, Any]
    step: Callable[[int], Any]
    watched: Callable[[], Any] = lambda: None
    options: dict[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the next step depends on, in a form that does not change any more."""
        found = {name: _state_of(value) for name, value in self.state.items()}
        fixed: dict[str, Any] = frozen({**found, "watched": self.watched()})
        return fixed


def saved(storage: RunStorage, state: dict[str, Any], step: int = 1, **options: Any) -> None:
    """Save one step in a process that first restores."""
    with Checkpointer(state, storage.url, save=NO_SCHEDULE, **options) as checkpointer:
        checkpointer.restore()
        checkpointer.save(step)


def restored(storage: RunStorage, state: dict[str, Any], **options: Any) -> Any:
    """Restore into the state; returns the outcome."""
    with Checkpointer(state, storage.url, save=NO_SCHEDULE, **options) as checkpointer:
        return checkpointer.restore()


def seeded(make: Callable[[], Job]) -> Job:
    torch.manual_seed(0)
    return make()


def undisturbed(make: Callable[[], Job], steps: int) -> dict[str, Any]:
    """The end of a run that never saves."""
    job = seeded(make)
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        job.step(step)
    return job.fingerprint()


def attempt(make: Callable[[], Job], url: str, upto: int, *, saves: Callable[[int], bool] = lambda _: False) -> Job:
    """One start of the process: restores, trains up to a step, and saves the last one and those that are asked for."""
    job = seeded(make)
    with Checkpointer(job.state, url, save=NO_SCHEDULE, **job.options) as checkpointer:
        for step in checkpointer.steps(upto):
            torch.manual_seed(step)
            job.step(step)
            if saves(step):
                checkpointer.save(step)
            checkpointer.step(step)
    return job


def resumed(
    make: Callable[[], Job],
    folder: Path,
    stops: tuple[int, ...],
    steps: int,
    *,
    saves: Callable[[int], bool] = lambda _: False,
) -> dict[str, Any]:
    """The end of a run that was stopped after some steps; each time all that is left of it is the snapshot."""
    url = f"file://{folder}/run"
    for stop in stops:
        if stop:
            attempt(make, url, stop, saves=saves)
        else:
            save_untrained(make, url)
    return attempt(make, url, steps, saves=saves).fingerprint()


def save_untrained(make: Callable[[], Job], url: str) -> None:
    """A snapshot of step 0, before anything was stepped."""
    job = seeded(make)
    with Checkpointer(job.state, url, save=NO_SCHEDULE, **job.options) as checkpointer:
        checkpointer.restore()
        checkpointer.save(0)


def differences(
    expected: Any,
    found: Any,
    path: str = "state",
    *,
    same: Callable[[torch.Tensor, torch.Tensor], bool] | None = None,
) -> Iterator[str]:
    """Where two values differ by a bit, a type or a key.

    Args:
        same: Decides whether tensors of one dtype and shape are equal; by default their bits are.
    """
    if isinstance(expected, torch.Tensor):
        if type(found) is not type(expected):
            yield f"{path}: a {type(found).__name__} instead of a {type(expected).__name__}"
        elif found.dtype != expected.dtype or found.shape != expected.shape:
            yield f"{path}: {found.dtype} {list(found.shape)} instead of {expected.dtype} {list(expected.shape)}"
        elif (layout := _layout(expected)) is not None and layout != _layout(found):
            yield f"{path}: strides {found.stride()} instead of {expected.stride()}"
        elif not (same or _same_bits)(expected, found):
            yield f"{path}: other values"
        return
    if type(found) is not type(expected):
        yield f"{path}: a {type(found).__name__} instead of a {type(expected).__name__}: {found!r}"
    elif isinstance(expected, Mapping):
        if list(map(repr, expected)) != list(map(repr, found)) and set(expected) != set(found):
            yield f"{path}: keys {list(found)} instead of {list(expected)}"
            return
        for key, value in expected.items():
            yield from differences(value, found[key], f"{path}.{key}", same=same)
    elif isinstance(expected, list | tuple | deque):
        if len(found) != len(expected):
            yield f"{path}: {len(found)} entries instead of {len(expected)}"
            return
        for index, value in enumerate(expected):
            yield from differences(value, found[index], f"{path}.{index}", same=same)
    elif isinstance(expected, float):
        equal = math.copysign(1, expected) == math.copysign(1, found) and (
            expected == found or (math.isnan(expected) and math.isnan(found))
        )
        if not equal:
            yield f"{path}: {found!r} instead of {expected!r}"
    elif hasattr(expected, "tobytes"):
        if (expected.dtype, expected.shape, expected.tobytes()) != (found.dtype, found.shape, found.tobytes()):
            yield f"{path}: {found!r} instead of {expected!r}"
    elif expected != found and repr(expected) != repr(found):
        yield f"{path}: {found!r} instead of {expected!r}"


def frozen(value: Any, *, whole: bool = False) -> Any:
    """A copy of a state.

    Args:
        whole: Copy distributed tensors whole, which is collective, instead of this rank's shard.
    """
    if isinstance(value, torch.Tensor):
        if isinstance(value, DTensor):
            value = value.full_tensor().detach() if whole else value._local_tensor.detach()
        if type(value) is nn.Parameter:
            return nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        return value.clone() if type(value) is torch.Tensor and value.layout is torch.strided else value
    if type(value) in (list, tuple):
        return type(value)(frozen(each, whole=whole) for each in value)
    if isinstance(value, deque):
        return deque((frozen(each, whole=whole) for each in value), value.maxlen)
    if isinstance(value, dict) and not isinstance(value, Counter):
        copied = copy.copy(value)
        copied.update({key: frozen(each, whole=whole) for key, each in value.items()})
        return copied
    return value


def _state_of(value: Any) -> Any:
    while isinstance(value, PerRank | Optional):
        value = value.wrapped
    if isinstance(value, nn.Module):
        gradients = {name: each.grad for name, each in value.named_parameters()}
        required = {name: each.requires_grad for name, each in value.named_parameters()}
        return {"state": dict(value.state_dict()), "gradients": gradients, "required": required}
    return value.state_dict() if hasattr(value, "state_dict") else value


def _layout(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The strides of a plain tensor that fills its memory; None for others, which are laid out anew."""
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    if tensor.numel() == 0 or torch.empty_like(tensor).stride() != tensor.stride():
        return None
    return tuple(stride if size > 1 else 0 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if hasattr(one, "__tensor_flatten__") and type(one) is not torch.Tensor:
        assert hasattr(other, "__tensor_flatten__")
        names, context = one.__tensor_flatten__()
        return context == other.__tensor_flatten__()[1] and all(
            _same_bits(getattr(one, name), getattr(other, name)) for name in names
        )
    if one.layout is not torch.strided:
        return torch.equal(one.to_dense(), other.to_dense())
    one, other = one.detach().contiguous(), other.detach().contiguous()
    if one.numel() == 0:
        return True
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
