"""Fine-tune a language model that stays frozen, and store it once for all snapshots.

Only low-rank adapters beside its linear layers are trained (LoRA), so nearly all of each snapshot is the same as in the
one before. With ``unchanged="Share"`` a snapshot names the files of the earlier one that stored it. Start it with
torchrun in a pod that carries the label ``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else like this::

    export CHECKPOINT_URL=file:///tmp/my-run CHECKPOINT_RUN=local/local/my-run
    torchrun --standalone --nproc-per-node 2 examples/adapters_train.py --steps 100 --every 10
    checkpoint status file:///tmp/my-run

The operator's policy, where there is one, takes precedence: give it ``spec.save.unchanged: Share``.
"""

from __future__ import annotations

import argparse
import logging

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from checkpoint_sidecar import Checkpointer, SavePolicy

VOCABULARY, WIDTH, HEADS, LENGTH, BATCH, RANK = 256, 512, 8, 32, 4, 4


class Adapted(nn.Module):
    """A frozen linear layer, to which the product of two small matrices is added. Only these are trained."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        adapter = nn.functional.linear(nn.functional.linear(hidden, self.down), self.up)
        return self.layer(hidden) + adapter


class Block(nn.Module):
    """Attention and a feed-forward network, both residual. Input and output: (batch, length, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)]).requires_grad_(False)
        self.queries, self.keys, self.values, self.joined = (Adapted(nn.Linear(WIDTH, WIDTH)) for _ in range(4))
        self.wide, self.narrow = Adapted(nn.Linear(WIDTH, 4 * WIDTH)), Adapted(nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](hidden)
        heads = (
            part(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.queries, self.keys, self.values)
        )
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        hidden = hidden + self.joined(attended.transpose(1, 2).flatten(-2))
        return hidden + self.narrow(nn.functional.gelu(self.wide(self.norms[1](hidden))))


def build_model(layers: int) -> nn.Module:
    """Token ids (batch, length) to logits (batch, length, vocabulary), every block and the whole sharded by FSDP2.

    A real job loads the frozen model here. It need not do so where it restores, because snapshots contain all of it.
    """
    torch.manual_seed(0)
    embedding, head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
    blocks = [Block() for _ in range(layers)]
    model = nn.Sequential(embedding.requires_grad_(False), *blocks, head.requires_grad_(False))
    for block in blocks:
        fully_shard(block)
    return fully_shard(model)


def batch_of(step: int, rank: int) -> torch.Tensor:
    """The data of one step, (batch, length + 1) token ids: a function of the step, the same for a resumed run."""
    generator = torch.Generator().manual_seed(1_000_003 * step + rank)
    starts = torch.randint(0, VOCABULARY, (BATCH, 1), generator=generator)
    strides = torch.randint(1, 8, (BATCH, 1), generator=generator)
    return (starts + strides * torch.arange(LENGTH + 1)) % VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--every", type=int, help="steps between snapshots, until the operator has a policy")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = build_model(arguments.layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    # One save of twenty stores everything: a file that rots takes all snapshots that share it.
    save = SavePolicy(every_steps=arguments.every, unchanged="Share", keyframe_every=20)
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
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
