"""Runs a script of transformers whose second rank gets SIGTERM in the evaluation after step 2.

Usage: python transformers_evicted.py <script> [<arguments>]
"""

from __future__ import annotations

import os
import runpy
import signal
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, trainer


class Evicted(TrainerCallback):
    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        print(f"evaluates step {state.global_step}", flush=True)
        if state.global_step == 2 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)


callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
callbacks.append(Evicted)
runpy.run_path(str(Path(__file__).parent / "fsdp_on_cpu.py"), run_name="__main__")
