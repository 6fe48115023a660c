"""The training of the example, which reports its progress to Kubeflow Trainer: a script."""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.integrations.kubeflow import trainjob_status

SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"

if __name__ == "__main__":
    (steps,) = (int(argument.partition("=")[2]) for argument in sys.argv if argument.startswith("--steps="))
    # As `Checkpointer.from_env(state, on_commit=trainjob_status(steps))` in the script.
    hooked = functools.partial(Checkpointer.from_env, on_commit=trainjob_status(steps))
    Checkpointer.from_env = hooked  # type: ignore[method-assign]
    runpy.run_path(str(SCRIPT), run_name="__main__")
