"""Train a small language model that torch_checkpointing saves, so that losing the pod loses nothing.

Start it with torchrun in a pod that carries the label ``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else
like this::

    torchrun --standalone --nproc-per-node 2 examples/torch_checkpointing_train.py --url s3://training/small --steps 100

torch_checkpointing 0.1.1 gathers the metadata of several ranks on GPUs only. Without one, the CPU stands in for it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch_checkpointing import metadata_manager
from torch_checkpointing.checkpoint_manager import CheckpointManager
from torch_checkpointing.default_resharder import DefaultResharder
from torch_checkpointing.schema import ItemSpec
from train import batch_of, build_model

from checkpoint_sidecar.integrations.torch_checkpointing import SnapshotRun


class OnCpu:
    """torch, for a module that creates tensors on GPUs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, data: Any, *, dtype: torch.dtype, device: str) -> torch.Tensor:
        del device
        return torch.tensor(data, dtype=dtype)


if not torch.cuda.is_available():
    metadata_manager.torch = OnCpu()
    torch.Tensor.cuda = lambda tensor: tensor


def digest_of(state: dict[str, Any]) -> str:
    """A digest of all tensors of a state, whole: the same on any number of ranks."""
    digest = hashlib.sha256()
    for item in state.values():
        for name, value in sorted(item.items(), key=str):
            digest.update(str(name).encode())
            digest.update(value.full_tensor().numpy().tobytes() if hasattr(value, "full_tensor") else b"")
            digest.update(digest_of({name: value}).encode() if isinstance(value, dict) else b"")
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="location of the run; by default that of the pod")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each step, to watch it run")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = build_model(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def state() -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments}

    def train(step: int) -> None:
        tokens = batch_of(step, dist.get_rank())
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        with manager.lock():  # while a save copies the state
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)

    def load(path: str) -> None:
        loaded = manager.load(path, into=state(), strict=True)
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])

    with SnapshotRun(arguments.url) as run:
        config = CheckpointManager.Config.with_async_save()
        config.save.process_config.subprocess_init_timeout_secs = 180  # a new process imports torch
        config.items = dict.fromkeys(("model", "optimizer"), ItemSpec(resharder=DefaultResharder()))
        config.storage_config = run.storage
        manager = config.build()
        begin = run.restore(load)
        stopping = False
        for step in range(begin + 1, arguments.steps + 1):
            train(step)
            time.sleep(arguments.pause)
            stopping = run.should_stop(step)
            if stopping or step % arguments.every == 0 or step == arguments.steps:
                manager.save(run.checkpoint(step), state())
            if stopping:
                break
        manager.close()
    digest = digest_of(state())
    if dist.get_rank() == 0:
        print(f"stopped with {digest}", flush=True)
    dist.destroy_process_group()
    sys.exit(143 if stopping else 0)


if __name__ == "__main__":
    main()
