"""``SnapshotManager``: a checkpoint manager of torchtitan over a ``Checkpointer``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.nn import Module
from torchtitan.components.checkpointer.base import (
    DATALOADER,
    LR_SCHEDULER,
    MODEL,
    OPTIMIZER,
    BaseCheckpointManager,
    ModelWrapper,
)
from torchtitan.tools import filesystem

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.integrations.common import numbered
from checkpoint_sidecar.integrations.torchtitan import options
from checkpoint_sidecar.integrations.torchtitan.state import RankLoaders, SavedOnly
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader


class SnapshotManager(BaseCheckpointManager):
    """Saves and restores torchtitan's state as snapshots of a run.

    >>> Trainer.Config(checkpoint=SnapshotManager.Config(enable=True, folder="s3://training/llama", interval=500), ...)

    In an injected pod the run is the pod's, and ``interval`` counts until the operator has written a policy. The
    arguments are those of torchtitan's own managers.

    Raises:
        ConfigurationError: The configuration asks for something that is decided elsewhere; the message says where.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseCheckpointManager.Config):
        """torchtitan's options, with other defaults where a snapshot is more than torchtitan's checkpoint."""

        keep_latest_k: int = 0
        last_save_model_only: bool = False

    def __init__(
        self,
        config: Config,
        *,
        dataloader: Any,
        model_parts: list[Module],
        optimizers: Any,
        lr_schedulers: Any,
        states: dict[str, Any],
        sd_adapter: Any = None,
        base_folder: str = "",
    ) -> None:
        self.enable = config.enable
        if not self.enable:
            return
        options.check(config)
        self.save_future = None
        self._config, self._adapter = config, sd_adapter
        self._stock = states | {OPTIMIZER: optimizers, DATALOADER: dataloader, LR_SCHEDULER: lr_schedulers}
        self._model = ModelWrapper(model_parts)
        self._fresh = list(optimizers.optimizers) if OPTIMIZER in config.exclude_from_loading else []
        state: dict[str, Any] = {} if dataloader is None else {DATALOADER: RankLoaders(dataloader)}
        state |= numbered(MODEL, model_parts) | numbered(OPTIMIZER, optimizers.optimizers)
        state |= {LR_SCHEDULER: lr_schedulers} | states
        for name in set(config.exclude_from_loading) - {OPTIMIZER}:
            state[name] = SavedOnly(state[name])
        self._checkpointer = options.opened(state, config, filesystem.join(base_folder, config.folder))
        self._restored = False

    def _load(self, step: int = -1) -> bool:
        if step != -1:
            cause = "the run's log decides which snapshot is restored"
            raise ConfigurationError(
                options.CONFIGURE, f"load_step={step}", cause, "Request a rollback to the step instead."
            )
        with self._leaving_on_error():
            groups = [[dict(group, params=None) for group in each.param_groups] for each in self._fresh]
            found = self._checkpointer.restore() is not None
            self._restored = True
            for optimizer, kept in zip(self._fresh, groups, strict=True):
                optimizer.state.clear()
                for group, before in zip(optimizer.param_groups, kept, strict=True):
                    group.update(before, params=group["params"])
            return found or self._load_initial()

    def _load_initial(self) -> bool:
        """Load what torchtitan's ``initial_load_...`` options name, which is not a snapshot."""
        path, hugging_face = self._config.initial_load_path, self._config.initial_load_in_hf
        if hugging_face:
            state = self._adapter.to_hf(self._model.state_dict())
            quantized = self._config.initial_load_in_hf_quantized
            reader = self._adapter.get_hf_storage_reader(path or self._adapter.hf_assets_path, quantized)
            dcp.load(state, storage_reader=reader)
            self._model.load_state_dict(self._adapter.from_hf(state))
        elif path and not options.names_a_run(path):
            others = {} if self._config.initial_load_model_only else self._stock
            state = {k: v for k, v in others.items() if k not in self._config.exclude_from_loading}
            state |= self._model.state_dict()
            dcp.load(state, storage_reader=CheckpointReader(path))
            self._model.load_state_dict(state)
        return bool(path) or hugging_face

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        with self._leaving_on_error():
            if not self._restored:  # for a seed checkpoint, which torchtitan saves without loading
                self._load()
            before = self._checkpointer.last_staging_seconds
            if last_step:
                self._checkpointer.finish(curr_step)
            elif curr_step == 1 and self._config.enable_first_step_checkpoint:
                self._checkpointer.save(curr_step)
            else:
                self._checkpointer.step(curr_step)
            return self._checkpointer.last_staging_seconds != before

    def _maybe_wait_for_staging(self) -> None:
        """Do nothing: ``_save`` returns when the state is copied to host memory."""

    def _wait_for_saving(self) -> None:
        self._checkpointer.wait()

    def _close(self) -> None:
        self._checkpointer.__exit__(*sys.exc_info())

    @contextmanager
    def _leaving_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._close()
            raise
