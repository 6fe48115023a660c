"""Train with a loop that saves by ``torch.save``, so that losing the pod loses nothing.

The trainer writes its checkpoints into a folder, as DeepSpeed, Megatron, Keras and others do. ``FileSnapshots`` uploads
the folder, and fills it again before training starts. Start it with torchrun in a pod that carries the label
``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else like this::

    export CHECKPOINT_URL=file:///tmp/my-run CHECKPOINT_RUN=local/local/my-run
    torchrun --standalone --nproc-per-node 2 examples/files_train.py --folder /tmp/checkpoints
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from checkpoint_sidecar import FileSnapshots


class Trainer:
    """Data parallel training on CPUs. Rank 0 saves the model, and each rank its own generator of random numbers.

    Args:
        folder: Gets a folder ``checkpoint-<step>`` for each checkpoint, and a file ``latest`` that names the newest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank = dist.get_rank()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.generator = torch.Generator().manual_seed(self.rank)

    def train(self) -> float:
        """Do one step on a batch of this rank, and return the loss."""
        batch = torch.randn(16, 32, generator=self.generator)
        loss = (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
        self.optimizer.step()
        return loss.item()

    def save(self, step: int) -> None:
        """Write a checkpoint, and delete the one before."""
        place = self.folder / f"checkpoint-{step}"
        place.mkdir(exist_ok=True)
        torch.save(self.generator.get_state(), place / f"random-{self.rank}.pt")
        if self.rank == 0:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, place / "model.pt")
            (self.folder / "latest").write_text(place.name)
            for old in self.folder.glob("checkpoint-*"):
                if old != place:
                    shutil.rmtree(old)

    def load(self) -> None:
        """Read the newest checkpoint."""
        place = self.folder / (self.folder / "latest").read_text()
        saved = torch.load(place / "model.pt")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        own = place / f"random-{self.rank}.pt"
        if own.exists():
            self.generator.set_state(torch.load(own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the trainer keeps its checkpoints")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=10)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with FileSnapshots.from_env(arguments.folder) as snapshots:
        restored = snapshots.restore()
        trainer = Trainer(arguments.folder)
        if restored:
            trainer.load()
        for step in range(restored.step + 1 if restored else 1, arguments.steps + 1):
            loss = trainer.train()
            if snapshots.step(step) or step % arguments.save_every == 0 or step == arguments.steps:
                trainer.save(step)
                snapshots.save(step, metrics={"loss": loss})

    if trainer.rank == 0:
        print(f"finished {arguments.steps} steps", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
