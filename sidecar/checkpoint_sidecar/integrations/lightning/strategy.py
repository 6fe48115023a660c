"""A strategy of Lightning that leaves checkpoints to the ``SnapshotCallback``, whatever it does otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from lightning.pytorch.strategies import Strategy, StrategyRegistry
from torch.optim import Optimizer

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.integrations.lightning.loops import CAPTURE, State
from checkpoint_sidecar.training.loading import load

if TYPE_CHECKING:
    from checkpoint_sidecar.integrations.lightning.callback import SnapshotCallback

Kind = TypeVar("Kind", bound=Strategy)


class SnapshotStrategy(Strategy):
    """Mixed into a strategy, keeps checkpoints as snapshots while a ``SnapshotCallback`` trains; see there.

    Attributes:
        holds_weights: Whether weights and optimizers are in place already, so that Lightning must not load them.
    """

    snapshots: SnapshotCallback | None = None
    holds_weights = False

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether to restore into the model as it is sharded, not as it was built."""
        return self.snapshots is not None or super().restore_checkpoint_after_setup

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning restores the optimizers."""
        return not self.holds_weights and super().lightning_restore_optimizer

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
        elif filepath == CAPTURE:
            self.snapshots.kept.captured = checkpoint
        else:
            self.snapshots.save(str(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> State:
        """Return what the callback restored, which goes before a path that training was given to start from."""
        found = self._snapshot_at(str(checkpoint_path))
        if found is not None:
            return found
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Do nothing if the weights are in place."""
        if not self.holds_weights:
            super().load_model_state_dict(checkpoint, strict=strict)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Leave snapshots to the run's retention, which sees the metrics that ``ModelCheckpoint`` goes by."""
        if self.snapshots is None or str(filepath) not in self.snapshots.paths:
            super().remove_checkpoint(filepath)

    def _snapshot_at(self, path: str) -> State | None:
        """Return what was restored, or load the weights of another snapshot; None if the path is not one of ours."""
        run = self.snapshots
        if run is None:
            return None
        if self.holds_weights:
            return run.kept.restored
        model: Any = self.model
        if path in run.paths and run.settings is not None:
            load(run.settings, model, selector=run.paths[path])
        elif "@" in path.rpartition("/")[2] and "://" in path:
            load(path, model)
        else:
            return None
        self.holds_weights = True
        return {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}

    @property
    def _saves(self) -> bool:
        return self.snapshots is not None and self.snapshots.checkpointer is not None


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
