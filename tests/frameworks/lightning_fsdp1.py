"""`examples/lightning_train.py` under FSDP 1, which Lightning runs on GPUs only: here the CPU is its device."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import strategies
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module


class OnCpu(strategies.FSDPStrategy):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def _setup_model(self, model: Module) -> Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


with mock.patch.object(strategies, "DDPStrategy", OnCpu):
    runpy.run_path(str(Path(__file__).parents[2] / "examples/lightning_train.py"), run_name="__main__")
