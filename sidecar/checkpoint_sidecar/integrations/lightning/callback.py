"""The callback that restores and saves a run; Lightning calls it at each point of its loops."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from checkpoint_sidecar.core.errors import CheckpointExistsError, ConfigurationError
from checkpoint_sidecar.integrations.common import checkpointer_at, storable
from checkpoint_sidecar.integrations.lightning.loops import LightningLoaders, LightningState, State, place_loaders
from checkpoint_sidecar.integrations.lightning.strategy import SnapshotStrategy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.checkpointer import Checkpointer
from checkpoint_sidecar.training.state.randomness import RandomState


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
        settings: Where the run is, once ``fit`` has begun.
        paths: Steps of snapshots, by the path at which ``ModelCheckpoint`` or the user asked for them.
        kept: What Lightning keeps besides weights and optimizers, from ``setup`` on.
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
        self.settings: StoreSettings | None = None
        self.paths: dict[str, int] = {}
        self.kept: LightningState
        self._url, self._options = url, options
        self._metrics = metrics
        self._state = dict(state or {})
        self._step = 0

    # Called by Lightning, on every rank

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        strategy = trainer.strategy
        if not isinstance(strategy, SnapshotStrategy):
            subject, hint = type(strategy).__name__, "Pass Trainer(strategy=with_snapshots(...))."
            raise ConfigurationError("save through", subject, "it writes files of its own", hint)
        strategy.snapshots, strategy.holds_weights = self, False
        self._trainer, self._strategy, self.kept = trainer, strategy, LightningState(trainer)

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a helper of Lightning
            return
        objects = {
            "model": trainer.strategy.model,
            **{f"optimizer_{index}": each for index, each in enumerate(trainer.optimizers)},
            "lightning": self.kept,
            "loaders": LightningLoaders(self.kept),
            "random": RandomState(),
            **self._state,
        }
        self.checkpointer = checkpointer_at(self._url, objects, **self._options)
        self.settings = self.checkpointer.settings
        if self.checkpointer.restore() and self.kept.restored:
            self._strategy.holds_weights = True
            # Lightning applies it in its next steps, as if it had loaded it from a file.
            trainer._checkpoint_connector._loaded_checkpoint = self.kept.restored
        # Lightning's handler starts a collective on the rank that was signalled alone.
        trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self._step = trainer.global_step
        if self.checkpointer and self.kept.restored:
            place_loaders(trainer, self.kept, self.checkpointer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.checkpointer is None or trainer.global_step == self._step:
            return
        loop: Any = trainer.fit_loop
        more = trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not more or trainer.strategy.reduce_boolean_decision(self.checkpointer.terminating, all=False):
            self._report()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._report()

    def on_train_epoch_end(self, *_: Any) -> None:
        self._report()

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if self.checkpointer and trainer.global_step:
            self.checkpointer.finish(trainer.global_step, self._logged())

    def on_fit_end(self, *_: Any) -> None:
        self._leave(None, None, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, pl_module
        self._leave(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> State:
        return {"paths": dict(self.paths)}

    def load_state_dict(self, state_dict: State) -> None:
        self.paths = dict(state_dict["paths"])

    # Called by the strategy

    def save(self, path: str) -> None:
        """Commit a snapshot of the present step, unless it has one, and note the path for which it was asked."""
        assert self.checkpointer is not None
        step = self._step = self._trainer.global_step
        self.paths[path] = step
        try:
            self.checkpointer.save(step, self._logged())
        except CheckpointExistsError:
            self.checkpointer.wait()

    # Inside

    def _leave(self, *error: Any) -> None:
        checkpointer, self.checkpointer = self.checkpointer, None
        if checkpointer:
            checkpointer.__exit__(*error)

    def _report(self) -> None:
        step = self._trainer.global_step
        if self.checkpointer and step > self._step:
            self._step = step
            self.checkpointer.step(step, self._logged())

    def _logged(self) -> dict[str, Any]:
        logged = self._trainer.callback_metrics
        if self._metrics is None:
            return storable(logged)
        return {name: logged[name] for name in self._metrics if name in logged}
