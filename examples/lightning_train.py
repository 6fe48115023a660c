"""Train a small language model with Lightning so that losing the pod loses nothing.

Everything that makes the job survive an eviction is the two lines with ``with_snapshots`` and ``SnapshotCallback``.
Start it with torchrun in a pod that carries the label ``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else
like this::

    torchrun --standalone --nproc-per-node 2 examples/lightning_train.py --url file:///tmp/my-run --epochs 3
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from checkpoint_sidecar import SavePolicy
from checkpoint_sidecar.integrations.lightning import SnapshotCallback, with_snapshots

VOCABULARY, WIDTH, LENGTH, SAMPLES = 64, 32, 16, 48


class Sequences(Dataset[torch.Tensor]):
    """Arithmetic sequences of LENGTH + 1 token ids."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return (index + (1 + index % 7) * torch.arange(LENGTH + 1)) % VOCABULARY


class LanguageModel(LightningModule):
    """Predicts the next token: ids (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, pause: float = 0.0, *, sharded: bool = False) -> None:
        super().__init__()
        self.pause, self.sharded = pause, sharded
        self.net = nn.Sequential(
            nn.Embedding(VOCABULARY, WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.Dropout(0.1),
            nn.GELU(),
            nn.Linear(4 * WIDTH, VOCABULARY),
        )

    def configure_model(self) -> None:
        if self.sharded:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, tokens: torch.Tensor) -> torch.Tensor:
        loss = self.loss(tokens)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
        if self.global_rank == 0:
            print(f"step {self.global_step} loss {outputs['loss'].item():.6f}", flush=True)
        time.sleep(self.pause)

    def validation_step(self, tokens: torch.Tensor) -> None:
        self.log("val_loss", self.loss(tokens), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Data(LightningDataModule):
    """Loaders that resume in the middle of an epoch.

    Lightning shuffles by a sampler of its own where there is none for several ranks, and that one's order is not saved.
    """

    def train_dataloader(self) -> StatefulDataLoader[torch.Tensor]:
        data = Sequences()
        sampler = DistributedSampler(data, shuffle=True) if dist.is_initialized() else None
        return StatefulDataLoader(data, batch_size=4, sampler=sampler, shuffle=sampler is None)

    def val_dataloader(self) -> StatefulDataLoader[torch.Tensor]:
        return StatefulDataLoader(Sequences(), batch_size=24)


def strategy_of(name: str) -> Strategy:
    if name == "fsdp2":
        ranks = int(os.environ["WORLD_SIZE"])
        return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo") if name == "ddp" else SingleDeviceStrategy("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="of the run; by default that of the injected pod")
    parser.add_argument("--strategy", choices=["single", "ddp", "fsdp2"], default="fsdp2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=2, help="steps between snapshots")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each step, to watch it run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)

    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        max_epochs=arguments.epochs,
        strategy=with_snapshots(strategy_of(arguments.strategy)),
        callbacks=[SnapshotCallback(arguments.url, save=SavePolicy(every_steps=arguments.every, every_seconds=None))],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = LanguageModel(arguments.pause, sharded=arguments.strategy == "fsdp2")
    trainer.fit(model, datamodule=Data(), ckpt_path="last")
    if trainer.is_global_zero:
        print(f"finished {trainer.global_step} steps on {os.uname().nodename}", flush=True)


if __name__ == "__main__":
    main()
