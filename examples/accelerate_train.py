"""Train a small language model with accelerate so that losing the pod loses nothing.

Two lines more than without: ``accelerator_snapshots`` and ``snapshots.step``. Start it in a pod that carries the label
``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else like this::

    export CHECKPOINT_URL=file:///tmp/my-run CHECKPOINT_RUN=local/local/my-run
    accelerate launch --cpu --num_processes 2 examples/accelerate_train.py --steps 100
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time

import torch
from accelerate import Accelerator, DataLoaderConfiguration, FullyShardedDataParallelPlugin
from accelerate.utils import set_seed
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from checkpoint_sidecar import SavePolicy
from checkpoint_sidecar.integrations.accelerate import accelerator_snapshots

VOCABULARY, WIDTH, LENGTH, BATCH = 64, 32, 16, 4


class Text(Dataset[torch.Tensor]):
    """Sequences of token ids, (length + 1), that count up by a stride."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> torch.Tensor:
        return (index + (1 + index % 7) * torch.arange(LENGTH + 1)) % VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=10, help="steps, until the operator says otherwise")
    parser.add_argument(
        "--fsdp", action="store_true", help="shard with FSDP2, which accelerate does on accelerators only"
    )
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each step, to watch it run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    sharding = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        fsdp_plugin=sharding if arguments.fsdp else None,
        dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True, use_seedable_sampler=True),
    )
    set_seed(0)  # all ranks start from the same weights; a restore replaces them
    middle = [nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.GELU()]
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *middle, nn.Linear(WIDTH, VOCABULARY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=1000)
    # With a generator of its own, the loader's first batch draws no number that dropout would have drawn.
    loader = torch.utils.data.DataLoader(Text(), batch_size=BATCH, shuffle=True, generator=torch.Generator())
    model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)

    save = SavePolicy(every_steps=arguments.save_every)
    with accelerator_snapshots(accelerator, save=save) as snapshots:
        snapshots.restore()
        batches = iter(loader)  # at the loader's restored position
        for step in snapshots.steps(arguments.steps):
            tokens = next(batches)
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            accelerator.print(f"step {step}: loss {loss.item():.4f}")
            snapshots.step(step, metrics={"loss": loss.item()})
            time.sleep(arguments.pause)

    digest = hashlib.sha256()
    for weight in accelerator.unwrap_model(model).state_dict().values():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        digest.update(whole.cpu().contiguous().numpy().tobytes())
    accelerator.print(f"weights {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
