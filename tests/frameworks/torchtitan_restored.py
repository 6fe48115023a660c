"""Restores a run into torchtitan's trainer, without its data loader, and prints a digest of all tensors."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import torchtitan_train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    given = vars(parser.parse_args())
    options = {"steps": 2, "interval": 2, "layers": 2, "pause": 0.0, "exclude": ["dataloader"]}
    trainer = torchtitan_train.config_of(argparse.Namespace(**options, **given)).build()
    assert trainer.checkpointer.load()
    states = trainer.model_parts[0].state_dict() | trainer.optimizers.state_dict()
    digest = hashlib.sha256()
    for name, value in sorted(states.items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        digest.update(f"{name} {whole.numpy().tobytes() if isinstance(whole, torch.Tensor) else whole!r}".encode())
    assert trainer.step == 2
    assert any(name.endswith("exp_avg") for name in states)
    print("digest", digest.hexdigest(), flush=True)
    trainer.close()


if __name__ == "__main__":
    main()
