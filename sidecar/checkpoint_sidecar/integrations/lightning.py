"""Lightning: a strategy that saves and restores through a ``Checkpointer``, and the callback that drives it.

>>> trainer = Trainer(strategy=with_snapshots("ddp"), callbacks=[SnapshotCallback("s3://training/llama-7b")])

Weights and optimizer state go from memory to the store in shards. What Lightning itself keeps (loops, schedulers,
callbacks, precision, data module, hyperparameters) goes into the same commit. Lightning collects and applies that part:
``trainer.save_checkpoint`` hands it to the strategy, and a restore hands it to the checkpoint connector.

A snapshot is taken where Lightning can continue exactly: after a batch, after the validation that follows a batch, or
after an epoch with its hooks. SIGTERM is served after the batch in any case, since a validation may take longer than
the grace period.
"""

from __future__ import annotations

import enum
import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypeVar, cast, overload

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from torch.optim import Optimizer

from checkpoint_sidecar.attempt.save_target import MOST_METRICS
from checkpoint_sidecar.core.errors import CheckpointExistsError, ConfigurationError
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.checkpointer import Checkpointer
from checkpoint_sidecar.training.loading import load
from checkpoint_sidecar.training.state.randomness import RandomState

logger = logging.getLogger(__name__)

State = dict[str, Any]
Kind = TypeVar("Kind", bound=Strategy)

_CAPTURE = "checkpoint_sidecar: what Lightning keeps"
"""The path that ``trainer.save_checkpoint`` gets when its state is wanted, not a file."""


class LoopPlace(enum.Enum):
    """Where in Lightning's loops a snapshot was taken."""

    WITHIN_EPOCH = enum.auto()
    AFTER_LAST_BATCH = enum.auto()
    AFTER_EPOCH = enum.auto()


class SnapshotStrategy(Strategy):
    """Mixed into a strategy, keeps checkpoints as snapshots while a ``SnapshotCallback`` trains; see there."""

    snapshots: SnapshotCallback | None = None

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether to restore into the model as it is sharded, not as it was built."""
        return self.snapshots is not None or super().restore_checkpoint_after_setup

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning restores the optimizers."""
        return not self._holds_weights and super().lightning_restore_optimizer

    def lightning_module_state_dict(self) -> State:
        """Return no weights where they are saved from memory."""
        return {} if self._saves else super().lightning_module_state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> State:
        """Return no state where it is saved from memory."""
        return {} if self._saves else super().optimizer_state(optimizer)

    def save_checkpoint(self, checkpoint: State, filepath: Any, storage_options: Any = None) -> None:
        """Commit a snapshot instead of writing a file, while the callback trains."""
        if self.snapshots is None or not self._saves:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        elif filepath == _CAPTURE:
            self.snapshots.captured = checkpoint
        else:
            self.snapshots.save(str(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> State:
        """Return what the callback restored, which goes before a path that training was given to start from."""
        if self.snapshots is not None:
            found = self.snapshots.found(str(checkpoint_path))
            if found is not None:
                return found
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Do nothing if the weights are in place."""
        if not self._holds_weights:
            super().load_model_state_dict(checkpoint, strict=strict)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Leave snapshots to the run's retention, which sees the metrics that ``ModelCheckpoint`` goes by."""
        if self.snapshots is None or str(filepath) not in self.snapshots.paths:
            super().remove_checkpoint(filepath)

    @property
    def _saves(self) -> bool:
        return self.snapshots is not None and self.snapshots.checkpointer is not None

    @property
    def _holds_weights(self) -> bool:
        return self.snapshots is not None and self.snapshots.holds_weights


@overload
def with_snapshots(strategy: str) -> Strategy: ...
@overload
def with_snapshots(strategy: Kind) -> Kind: ...
def with_snapshots(strategy: Strategy | str) -> Strategy:
    """Return the strategy, mixed with ``SnapshotStrategy``.

    Args:
        strategy: A strategy, or the name of a registered one other than "auto", such as "ddp" or "fsdp".

    Raises:
        ConfigurationError: There is no such strategy.
    """
    if isinstance(strategy, str):
        if strategy not in StrategyRegistry:
            raise ConfigurationError(
                "add snapshots to",
                f"the strategy {strategy!r}",
                "Lightning has registered none of this name",
                'Pass a strategy such as SingleDeviceStrategy("cuda:0"), or a name such as "ddp" or "fsdp".',
            )
        strategy = cast("Strategy", StrategyRegistry.get(strategy))
    kind = type(strategy)
    strategy.__class__ = type(f"Snapshot{kind.__name__}", (SnapshotStrategy, kind), {})
    return strategy


class SnapshotCallback(Checkpoint):
    """Restores a training run at the start of ``fit``, and saves it on schedule, on request and at SIGTERM.

    A ``ModelCheckpoint`` beside it, and ``trainer.save_checkpoint`` during training, commit a snapshot as well.

    Args:
        url: Location of the run, as for ``Checkpointer``; by default that of the injected pod.
        metrics: Names of the logged metrics to store with each snapshot; by default all of them.
        state: Further objects to save, by name.
        options: See ``Checkpointer``.

    Attributes:
        checkpointer: The run's ``Checkpointer``, while ``fit`` trains.
        paths: Steps of snapshots, by the path at which ``ModelCheckpoint`` or the user asked for them.
        captured: What Lightning keeps, as of the running save.
        holds_weights: Whether weights and optimizers are in place already, so that Lightning must not load them.
    """

    def __init__(
        self,
        url: str | StoreSettings = "",
        *,
        metrics: Collection[str] | None = None,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.checkpointer: Checkpointer | None = None
        self.paths: dict[str, int] = {}
        self.captured: State = {}
        self.holds_weights = False
        self._url = url
        self._metrics = metrics
        self._state = dict(state or {})
        self._options = options
        self._settings: StoreSettings | None = None
        self._kept = _LightningState(self)
        self._handler: Any = None
        self._step = 0

    # Called by Lightning, on every rank

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        self._trainer, self.holds_weights = trainer, False
        if not isinstance(trainer.strategy, SnapshotStrategy):
            raise ConfigurationError(
                "save through",
                type(trainer.strategy).__name__,
                "it writes files of its own",
                "Pass Trainer(strategy=with_snapshots(...)).",
            )
        trainer.strategy.snapshots = self

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a helper of Lightning
            return
        objects = {
            "model": trainer.strategy.model,
            **{f"optimizer_{index}": each for index, each in enumerate(trainer.optimizers)},
            "lightning": self._kept,
            "loaders": _LightningLoaders(self._kept),
            "random": RandomState(),
            **self._state,
        }
        make: Callable[..., Checkpointer] = Checkpointer if self._url else Checkpointer.from_env
        self.checkpointer = make(objects, *([self._url] if self._url else []), **self._options)
        self._settings = self.checkpointer.settings
        if self.checkpointer.restore() and self._kept.restored:
            self.holds_weights = True
            # Lightning applies it in its next steps, as if it had loaded it from a file.
            trainer._checkpoint_connector._loaded_checkpoint = self._kept.restored
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._take_signal()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        self._take_signal()
        self._step = trainer.global_step
        if self.checkpointer and self._kept.restored:
            self._place_loaders(trainer.fit_loop, self.checkpointer)

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        del others
        if self.checkpointer is None or trainer.global_step == self._step:
            return
        loop: Any = trainer.fit_loop
        more = trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not more or trainer.strategy.reduce_boolean_decision(self.checkpointer.terminating, all=False):
            self._report()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._report()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._report()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if self.checkpointer and trainer.global_step:
            self.save("")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        checkpointer, self.checkpointer = self.checkpointer, None
        if checkpointer:
            checkpointer.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, pl_module
        checkpointer, self.checkpointer = self.checkpointer, None
        if checkpointer:
            checkpointer.__exit__(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> State:
        return {"paths": dict(self.paths)}

    def load_state_dict(self, state_dict: State) -> None:
        self.paths = dict(state_dict["paths"])

    # Called by the strategy

    def save(self, path: str) -> None:
        """Commit a snapshot of the present step, unless it has one, and note the path for which it was asked."""
        assert self.checkpointer is not None
        step = self._step = self._trainer.global_step
        if path:
            self.paths[os.fspath(path)] = step
        try:
            self.checkpointer.save(step, self._logged())
        except CheckpointExistsError:
            self.checkpointer.wait()

    def found(self, path: str) -> State | None:
        """Return what was restored, or load the weights of another snapshot; None if the path is not one of ours."""
        if self.holds_weights:
            return self._kept.restored
        if path in self.paths and self._settings is not None:
            load(self._settings, self._model, selector=self.paths[path])
        elif "@" in path.rpartition("/")[2] and "://" in path:
            load(path, self._model)
        else:
            return None
        self.holds_weights = True
        return {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}

    # Inside

    @property
    def _model(self) -> Any:
        return self._trainer.strategy.model

    def _report(self) -> None:
        step = self._trainer.global_step
        if self.checkpointer and step > self._step:
            self._step = step
            self.checkpointer.step(step, self._logged())

    def _logged(self) -> dict[str, Any]:
        logged = self._trainer.callback_metrics
        if self._metrics is None:
            return dict(itertools.islice(logged.items(), MOST_METRICS))
        return {name: logged[name] for name in self._metrics if name in logged}

    def _place_loaders(self, loop: Any, checkpointer: Checkpointer) -> None:
        """Make the iterators of the data loaders again, as they were.

        Lightning has made them before it tells the samplers which epoch it is, and takes loaders between epochs as new.
        """
        for loader in loop._combined_loader.flattened:
            for owner in (loader, getattr(loader, "batch_sampler", None)):
                set_epoch = getattr(getattr(owner, "sampler", None), "set_epoch", None)
                if set_epoch is not None:
                    set_epoch(loop.epoch_progress.current.processed)
        loop._combined_loader._load_state_dicts(self._kept.loaders)
        iter(loop._data_fetcher)
        # The iterators have drawn from the random number generators since the restore.
        next(checkpointer.steps(sys.maxsize))
        place = self._kept.place
        if place is LoopPlace.AFTER_LAST_BATCH or (place is LoopPlace.AFTER_EPOCH and not loop.restarting):
            # Otherwise, with max_steps, Lightning ends the saved epoch once more, and makes the next iterator itself.
            iter(loop._data_fetcher)

    def _take_signal(self) -> None:
        """Take SIGTERM back from Lightning, whose handler starts a collective on the rank that was signalled alone."""
        if self.checkpointer and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)


class _LightningState:
    """What Lightning keeps, as it is on rank 0: the states of callbacks may differ between ranks."""

    def __init__(self, callback: SnapshotCallback) -> None:
        self._callback = callback
        self.restored: State | None = None
        self.same_ranks = False

    def state_dict(self) -> State:
        callback = self._callback
        trainer = callback._trainer
        trainer.save_checkpoint(_CAPTURE, weights_only=False)
        return {"world_size": trainer.world_size, "state": trainer.strategy.broadcast(callback.captured)}

    def load_state_dict(self, state: State) -> None:
        self.restored, here = state["state"], self._callback._trainer.world_size
        self.same_ranks = state["world_size"] == here
        if self.loaders and not self.same_ranks:
            self.loaders = []
            logger.warning(
                "the data loaders were saved by %d ranks, and %d restore: the rest of a begun epoch repeats samples",
                state["world_size"],
                here,
            )
        if "current_model_state" in self.restored:
            # WeightAveraging loads it after the weights, which are in place.
            self.restored["current_model_state"] = self._callback._trainer.lightning_module.state_dict()

    @property
    def loaders(self) -> list[State]:
        """Restored states of this rank's data loaders, of those that have one."""
        found: list[State] = self._fit_loop["state_dict"].get("combined_loader", [])
        return found

    @loaders.setter
    def loaders(self, states: list[State]) -> None:
        self._fit_loop["state_dict"]["combined_loader"] = states

    @property
    def place(self) -> LoopPlace:
        epoch, batch = self._fit_loop["epoch_progress"]["current"], self._fit_loop["epoch_loop.batch_progress"]
        if epoch["started"] == epoch["processed"]:
            return LoopPlace.AFTER_EPOCH
        return LoopPlace.AFTER_LAST_BATCH if batch["is_last_batch"] else LoopPlace.WITHIN_EPOCH

    @property
    def _fit_loop(self) -> State:
        assert self.restored is not None
        found: State = self.restored["loops"]["fit_loop"]
        return found


class _LightningLoaders:
    """The states of this rank's data loaders. They are of no use where the number of ranks has changed."""

    per_rank: ClassVar[bool] = True

    def __init__(self, kept: _LightningState) -> None:
        self._kept = kept

    def state_dict(self) -> State:
        return {"states": self._kept._callback.captured["loops"]["fit_loop"]["state_dict"].get("combined_loader")}

    def load_state_dict(self, state: State) -> None:
        if state["states"] and self._kept.same_ranks:
            self._kept.loaders = state["states"]
