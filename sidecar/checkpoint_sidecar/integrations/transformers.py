"""Hugging Face Trainer: each checkpoint that it writes becomes a snapshot, and the newest is restored before training.

>>> with TrainerSnapshots(trainer, "s3://training/llama-7b") as snapshots:
...     trainer.train(resume_from_checkpoint=snapshots.checkpoint)

Works with every trainer derived from it, such as those of TRL, and with whatever it runs on: DDP, FSDP, DeepSpeed.
``Trainer`` writes the files, and reads them back; this module decides when, and takes care that they are in the store.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, Self

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.engine.folders.tree import TrainerFolder
from checkpoint_sidecar.integrations.common import file_snapshots_at, storable
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec import misdirected

_REFUSED = {
    "save_only_model": "leaves out the optimizer, without which training cannot continue",
    "enable_jit_checkpoint": "answers SIGTERM on each rank alone, and waits before it does",
}
"""Arguments that contradict exact resumption, and why."""


class TrainerSnapshots(TrainerCallback):
    """Restores a run into ``output_dir``, and commits every checkpoint that ``Trainer`` writes there.

    A checkpoint is written when ``save_strategy`` says so, when the run's policy or a request does, after SIGTERM, and
    after the last step. Create it on every rank, in the main thread, after the ``Trainer``.

    A snapshot has the folder ``checkpoint-<step>``, with ``load_best_model_at_end`` also that of the best model, and
    the numbers that ``Trainer`` logged at that step. Retention is the run's: locally, the newest and the best
    checkpoint stay, unless ``save_total_limit`` says otherwise.

    Args:
        trainer: Gets this as a callback.
        url: Location of the run, as for ``Checkpointer``; by default that of the injected pod.
        options: See ``FileSnapshots``.

    Attributes:
        checkpoint: The folder that was restored, for ``trainer.train(resume_from_checkpoint=...)``; None at a fresh
            start.

    Raises:
        ConfigurationError: An argument of the ``Trainer`` contradicts exact resumption.
        CheckpointError: As from ``FileSnapshots.restore``.
    """

    def __init__(self, trainer: Trainer, url: str | StoreSettings = "", **options: Any) -> None:
        arguments = trainer.args
        _check(arguments)
        output = os.path.abspath(str(arguments.output_dir))
        folder = TrainerFolder.with_prefix(output, f"{PREFIX_CHECKPOINT_DIR}-")
        self._snapshots = file_snapshots_at(url, folder, **options)
        if arguments.save_total_limit is None:
            arguments.save_total_limit = 1  # what Trainer deletes is committed, or on its way under another name
        self._trainer = trainer
        trainer.get_batch_samples = partial(self._batches, trainer.get_batch_samples)  # type: ignore[method-assign]
        restored = self._snapshots.restore()
        self.checkpoint = os.path.join(output, f"{PREFIX_CHECKPOINT_DIR}-{restored.step}") if restored else None
        trainer.add_callback(self)

    def wait(self) -> None:
        """Wait for the running save; see ``FileSnapshots.wait``."""
        self._snapshots.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._snapshots.__exit__(*error)

    # Called by Trainer, on every rank

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        del args
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
        return control

    def _batches(self, of_trainer: Callable[..., tuple[list[Any], Any]], *given: Any) -> tuple[list[Any], Any]:
        # Trainer looks whether it should stop only after a step, so each start of a finished run would add one.
        state = self._trainer.state
        return of_trainer(*given) if state.global_step < state.max_steps else ([], None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        due = self._snapshots.step(state.global_step)
        if self._snapshots.should_stop:
            # An evaluation may take longer than the grace period.
            control.should_evaluate, control.should_training_stop, control.should_save = False, True, True
        elif due and not (args.save_strategy == SaveStrategy.EPOCH and float(state.epoch or 0).is_integer()):
            control.should_save = True  # at the end of an epoch Trainer saves in a moment, and would write to this save
        if state.global_step >= state.max_steps and args.save_strategy == SaveStrategy.NO:
            control.should_save = True
        return control

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Before the first step there is nothing to save, and after training nothing to stop.
        if not self._trainer.is_in_train or not state.global_step:
            return
        self._snapshots.step(state.global_step)
        if self._snapshots.should_stop:
            # Nothing asks for a checkpoint before the end of the evaluation, which may be beyond the grace period.
            assert self._trainer.model is not None  # it is evaluated
            self._trainer._save_checkpoint(self._trainer.model, trial=None)
            self.on_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del control
        paths = [f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"]
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best and os.path.isdir(best):
            paths.append(os.path.relpath(best, args.output_dir))
        self._snapshots.save(state.global_step, storable(_logged(state)), paths=paths)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._snapshots.wait()


def _check(arguments: TrainingArguments) -> None:
    operation, folder = "take snapshots of", str(arguments.output_dir)
    misdirected.check(folder, operation)
    for name, problem in _REFUSED.items():
        if getattr(arguments, name):
            raise ConfigurationError(operation, folder, f"{name} {problem}", "Leave the argument out.")


def _logged(state: TrainerState) -> dict[str, float]:
    """Return the finite numbers that Trainer has logged at this step."""
    logged = dict(each for log in state.log_history if log.get("step") == state.global_step for each in log.items())
    logged.pop("step", None)
    return {name: float(value) for name, value in logged.items() if isinstance(value, Real) and math.isfinite(value)}
