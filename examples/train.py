"""Train a small language model with FSDP2 so that losing the pod loses nothing.

Everything that makes the job survive an eviction is the three lines that mention ``checkpointer``. Start it with
torchrun in a pod that carries the label ``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else like this::

    export CHECKPOINT_URL=file:///tmp/my-run CHECKPOINT_RUN=local/local/my-run
    torchrun --standalone --nproc-per-node 2 examples/train.py --steps 100
"""

from __future__ import annotations

import argparse
import logging
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from checkpoint_sidecar import Checkpointer, SavePolicy

VOCABULARY, WIDTH, LENGTH, BATCH = 256, 64, 32, 8


class Block(nn.Module):
    """Attention and a feed-forward network, both residual. Input and output: (batch, length, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.attention = nn.MultiheadAttention(WIDTH, num_heads=4, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(hidden.shape[1], device=hidden.device)
        normed = self.norms[0](hidden)
        hidden = hidden + self.attention(normed, normed, normed, attn_mask=causal, need_weights=False)[0]
        return hidden + self.feed_forward(self.norms[1](hidden))


def build_model(layers: int) -> nn.Module:
    """Token ids (batch, length) to logits (batch, length, vocabulary), every block and the whole sharded by FSDP2."""
    torch.manual_seed(0)  # all ranks start from the same weights; a restore replaces them
    blocks = [Block() for _ in range(layers)]
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *blocks, nn.Linear(WIDTH, VOCABULARY))
    for block in blocks:
        fully_shard(block)
    return fully_shard(model)


def batch_of(step: int, rank: int) -> torch.Tensor:
    """The data of one step, (batch, length + 1) token ids: a function of the step, so that a resumed run sees the same.

    With a real data set, put the loader (anything with ``state_dict``) into the state that is saved instead.
    """
    generator = torch.Generator().manual_seed(1_000_003 * step + rank)
    starts = torch.randint(0, VOCABULARY, (BATCH, 1), generator=generator)
    strides = torch.randint(1, 8, (BATCH, 1), generator=generator)
    return (starts + strides * torch.arange(LENGTH + 1)) % VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--every", type=int, help="steps between snapshots, until the operator has a policy")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each step, to watch it run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = build_model(arguments.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    save = SavePolicy(every_steps=arguments.every)
    with Checkpointer.from_env({"model": model, "optimizer": optimizer}, save=save) as checkpointer:
        for step in checkpointer.steps(arguments.steps):
            tokens = batch_of(step, rank)
            loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rank == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            checkpointer.step(step, metrics={"loss": loss.item()})
            time.sleep(arguments.pause)

    if rank == 0:
        print(f"finished {arguments.steps} steps on {os.uname().nodename}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
