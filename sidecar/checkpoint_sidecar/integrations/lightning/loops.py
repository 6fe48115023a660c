"""What Lightning keeps besides weights and optimizers: its loops, and where in them a snapshot was taken."""

from __future__ import annotations

import enum
import logging
import sys
from typing import Any, ClassVar

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import RestartStage
from lightning.pytorch.loops.loop import _Loop

from checkpoint_sidecar.training.checkpointer import Checkpointer

logger = logging.getLogger(__name__)

State = dict[str, Any]

CAPTURE = "checkpoint_sidecar: what Lightning keeps"
"""The path that ``trainer.save_checkpoint`` gets when its state is wanted, not a file."""


class LoopPlace(enum.Enum):
    """Where in Lightning's loops a snapshot was taken."""

    WITHIN_EPOCH = enum.auto()
    AFTER_LAST_BATCH = enum.auto()
    AFTER_EPOCH = enum.auto()


class LightningState:
    """What Lightning keeps, as it is on rank 0: the states of callbacks may differ between ranks.

    Attributes:
        captured: As of the running save, on this rank.
        restored: As of the snapshot that was restored.
        same_ranks: Whether as many ranks saved that snapshot as restore it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.captured: State = {}
        self.restored: State | None = None
        self.same_ranks = False

    def state_dict(self) -> State:
        self._trainer.save_checkpoint(CAPTURE, weights_only=False)
        return {"world_size": self._trainer.world_size, "state": self._trainer.strategy.broadcast(self.captured)}

    def load_state_dict(self, state: State) -> None:
        self.restored, here = state["state"], self._trainer.world_size
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
            self.restored["current_model_state"] = self._trainer.lightning_module.state_dict()

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


class LightningLoaders:
    """The states of this rank's data loaders. They are of no use where the number of ranks has changed.

    Saved after ``LightningState``, which captures them, and restored after it.
    """

    per_rank: ClassVar[bool] = True

    def __init__(self, kept: LightningState) -> None:
        self._kept = kept

    def state_dict(self) -> State:
        return {"states": self._kept.captured["loops"]["fit_loop"]["state_dict"].get("combined_loader")}

    def load_state_dict(self, state: State) -> None:
        if state["states"] and self._kept.same_ranks:
            self._kept.loaders = state["states"]


def place_loaders(trainer: Trainer, kept: LightningState, checkpointer: Checkpointer) -> None:
    """Make the iterators of the data loaders again, as they were, and begin the next epoch if the saved one has ended.

    Lightning has made them before it tells the samplers which epoch it is, and takes loaders between epochs as new.
    """
    loop: Any = trainer.fit_loop
    for loader in loop._combined_loader.flattened:
        for owner in (loader, getattr(loader, "batch_sampler", None)):
            set_epoch = getattr(getattr(owner, "sampler", None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(loop.epoch_progress.current.processed)
    loop._combined_loader._load_state_dicts(kept.loaders)
    iter(loop._data_fetcher)
    # The iterators have drawn from the random number generators since the restore.
    next(checkpointer.steps(sys.maxsize))
    if kept.place is LoopPlace.AFTER_EPOCH and loop.restarting:
        # With max_steps, Lightning would end the saved epoch a second time, and count it twice. Without, it does this:
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # the setter of FitLoop sets True
        loop.epoch_progress.increment_completed()
        loop._restart_stage = RestartStage.RESUMED_ON_EPOCH_END
    if kept.place is not LoopPlace.WITHIN_EPOCH:
        iter(loop._data_fetcher)
