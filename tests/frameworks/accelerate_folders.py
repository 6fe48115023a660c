"""Saves and loads FSDP2's shards by ``save_state`` and ``load_state``, in a folder that is mapped to a store.

Usage: python accelerate_folders.py <folder> <url>
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin

import checkpoint_sidecar

folder, url = Path(sys.argv[1]), sys.argv[2]
checkpoint_sidecar.install(folders={folder: url})
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
accelerator.backward(model(torch.ones(2, 8)).sum())
optimizer.step()
before = [weight.to_local().clone() for weight in model.parameters()]
accelerator.save_state(folder / "step-1")
with torch.no_grad():
    for weight in model.parameters():
        weight.zero_()
accelerator.load_state(folder / "step-1")
assert all(map(torch.equal, before, (weight.to_local() for weight in model.parameters())))
accelerator.print("the same weights came back", flush=True)
