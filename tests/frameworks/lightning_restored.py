"""Prints a digest of the weights and the optimizer state that a start of `examples/lightning_train.py` restores."""

from __future__ import annotations

import hashlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from checkpoint_sidecar.integrations.lightning import SnapshotCallback, with_snapshots


class Digest(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        options = StateDictOptions(full_state_dict=True)
        found: Any = get_state_dict(pl_module, trainer.optimizers, options=options)
        weights, optimizer = found
        digest = hashlib.sha256()
        for name, value in sorted([*weights.items(), *tensors(optimizer["state"])]):
            digest.update(name.encode() + value.numpy().tobytes())
        if trainer.is_global_zero:
            print(f"digest {digest.hexdigest()} of step {trainer.global_step}", flush=True)
        trainer.should_stop = True


def tensors(state: dict[str, dict[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    return [(f"{name}.{key}", value) for name, each in state.items() for key, value in each.items()]


def main(url: str, strategy: str) -> None:
    example: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "examples/lightning_train.py"))
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        max_epochs=100,
        strategy=with_snapshots(example["strategy_of"](strategy)),
        callbacks=[Digest(), SnapshotCallback(url)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = example["LanguageModel"](sharded=strategy == "fsdp2")
    trainer.fit(model, datamodule=example["Data"]())


if __name__ == "__main__":
    main(*sys.argv[1:])
