"""accelerate: snapshots of everything that ``accelerator.prepare`` returned, in place of ``save_state``.

>>> model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
>>> with accelerator_snapshots(accelerator, "s3://training/llama-7b") as snapshots:
...     snapshots.restore()
...     batches = iter(loader)
...     for step in snapshots.steps(total):
...         loss = train_on(next(batches))
...         snapshots.step(step, metrics={"loss": loss})

``save_state`` writes files and says nothing when they are complete: its hooks run before it writes. The objects that it
would write are therefore given to a ``Checkpointer``, which saves them from memory, FSDP's in shards, in one commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator, DistributedType

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.integrations.common import checkpointer_at, numbered
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.checkpointer import Checkpointer
from checkpoint_sidecar.training.state.application import PerRank
from checkpoint_sidecar.training.state.randomness import RandomState

_OPERATION = "take snapshots of"
_THEIR_OWN = {DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA}
"""Engines that keep the weights or the optimizer's state where torch cannot reach them."""


def accelerator_snapshots(
    accelerator: Accelerator,
    url: str | StoreSettings = "",
    *,
    state: Mapping[str, Any] | None = None,
    **options: Any,
) -> Checkpointer:
    """Return a ``Checkpointer`` of all that the accelerator has prepared and that was registered with it.

    These are models, optimizers, schedulers, the gradient scaler, objects of ``register_for_checkpointing``, the count
    of micro-batches, the random number generators of each rank, and those data loaders that can save their position
    (``DataLoaderConfiguration(use_stateful_dataloader=True)``).

    Args:
        accelerator: After ``prepare``. Later calls of it are not seen.
        url: Location of the run, as for ``Checkpointer``; by default that of the injected pod.
        state: Further objects to save, by name.
        options: See ``Checkpointer``.

    Raises:
        ConfigurationError: Nothing is prepared yet, or the engine keeps the state to itself (DeepSpeed, Megatron-LM,
            XLA).
    """
    if accelerator.distributed_type in _THEIR_OWN:
        raise ConfigurationError(
            _OPERATION,
            f"the accelerator's {accelerator.distributed_type.value} engine",
            "it writes its state itself",
            "Call accelerator.save_state(folder) and take snapshots of the folder with FileSnapshots.",
        )
    if not accelerator._models:
        raise ConfigurationError(
            _OPERATION, "the accelerator", "it has no model yet", "Call accelerator.prepare(model, ...) before."
        )
    objects = {
        **numbered("model", accelerator._models),
        **numbered("optimizer", accelerator._optimizers),
        **numbered("scheduler", accelerator._schedulers),
        **numbered("custom", accelerator._custom_objects),
        **numbered("loader", [PerRank(each) for each in accelerator._dataloaders if _has_position(each)]),
        **({"scaler": accelerator.scaler} if accelerator.scaler is not None else {}),
        "accelerator": _MicroBatches(accelerator),
        "random": RandomState(),
        **(state or {}),
    }
    return checkpointer_at(url, objects, **options)


class _MicroBatches:
    """The accelerator's count of micro-batches, which decides when gradients are accumulated."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def state_dict(self) -> dict[str, int]:
        return {"step": self._accelerator.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._accelerator.step = state["step"]


def _has_position(loader: Any) -> bool:
    return bool(getattr(loader, "use_stateful_dataloader", False))
