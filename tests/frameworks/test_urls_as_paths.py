"""Trainers of others that are given a URL: what they would write into a local folder is refused, before it is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINERS = {
    "transformers": """
from transformers import Trainer, TrainingArguments
data = [{"x": torch.ones(2), "labels": torch.ones(1)}] * 4
arguments = TrainingArguments(url, max_steps=2, save_steps=1, use_cpu=True, report_to=[])
Trainer(Model(), arguments, train_dataset=data).train()
""",
    "accelerate": """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
accelerator.prepare(Model())
accelerator.save_state(url)
""",
    "lightning": """
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
strategy = ModelParallelStrategy(lambda module, mesh: fully_shard(module, mesh=mesh["data_parallel"]))
fabric = Fabric(accelerator="cpu", devices=1, strategy=strategy)
fabric.launch()
fabric.save(url, {"model": fabric.setup(Model())})
""",
}

PROGRAM = """
import sys
import torch
import checkpoint_sidecar

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x=None, labels=None):
        return {"loss": (self.linear(x) - labels).square().mean()}

url = sys.argv[1]
checkpoint_sidecar.install()
"""


@pytest.mark.distributed
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_that_takes_a_url_for_a_local_path_is_stopped(trainer: str, tmp_path: Path) -> None:
    pytest.importorskip(trainer)
    script = tmp_path / "train.py"
    script.write_text(PROGRAM + TRAINERS[trainer])
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, str(script), "s3://bucket/run/checkpoint"],
        cwd=tmp_path,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode != 0
    assert "ConfigurationError" in ended.stderr, ended.stderr[-3000:]
    assert "taken for a local path" in ended.stderr
    assert not list(tmp_path.glob("s3*"))
