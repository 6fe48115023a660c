"""Train torchtitan's debug Llama with torchtitan's own trainer, so that losing the pod loses nothing.

The checkpoint configuration is what makes the job survive an eviction; all else is torchtitan's. Start it with torchrun
in a pod that carries the label ``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else like this::

    torchrun --standalone --nproc-per-node 2 examples/torchtitan_train.py --folder s3://training/titan --steps 100

torchtitan has no CPU mode. Without an accelerator, the CPU stands in for one here, which is enough to try it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

if not torch.accelerator.is_available():
    from torchtitan.tools import utils

    for name in ("reset_peak_memory_stats", "empty_cache"):
        setattr(torch.cpu, name, lambda: None)
    torch.cpu.get_device_name = lambda _: "CPU"
    torch.cpu.get_device_properties = lambda _: SimpleNamespace(total_memory=1 << 30)
    torch.cpu.memory_stats = lambda _: {}
    torch.cpu.current_device = lambda: 0
    utils.device_type, utils.device_module = "cpu", torch.cpu

from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import CommConfig, DebugConfig, TrainingConfig
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3 import model_registry, parallelize_llama
from torchtitan.trainer import Trainer

from checkpoint_sidecar.integrations.torchtitan import SnapshotManager

VOCABULARY, LENGTH, BATCH = 2048, 32, 2


class Numbers(torch.utils.data.IterableDataset):
    """Sequences of token ids without end, each a function of its number, so that the example needs no data set."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._number, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            generator = torch.Generator().manual_seed(self._number)
            start, stride = torch.randint(1, VOCABULARY, (2,), generator=generator).tolist()
            self._number += self._ranks
            tokens = (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY
            yield {"input": tokens[:-1], "positions": torch.arange(LENGTH)}, tokens[1:]

    def state_dict(self) -> dict[str, int]:
        return {"number": self._number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._number = state["number"]


class NumbersLoader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(self, config: Config, *, dp_rank: int, dp_world_size: int, local_batch_size: int, **_: Any) -> None:
        del config
        super().__init__(Numbers(dp_rank, dp_world_size), dp_rank, dp_world_size, batch_size=local_batch_size)


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        del config
        super().__init__()

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return []

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def get_vocab_size(self) -> int:
        return VOCABULARY


class PausingTrainer(Trainer):
    """torchtitan's trainer, which prints the loss and sleeps after each step, to watch it run."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        pause: float = 0.0

    def forward_backward_step(self, **inputs: Any) -> torch.Tensor:
        loss = super().forward_backward_step(**inputs)
        if dist.get_rank() == 0:
            print(f"step {self.step} loss {loss.item():.4f}", flush=True)
        time.sleep(self.config.pause)
        return loss


def parallelized(model: Any, **options: Any) -> Any:
    model = parallelize_llama(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return model


def config_of(arguments: argparse.Namespace) -> PausingTrainer.Config:
    """Everything of torchtitan's, as `torchtitan/models/llama3/config_registry.py` has it, but smaller."""
    spec = model_registry("debugmodel")
    spec.parallelize_fn = parallelized
    spec.model.layers = spec.model.layers[: arguments.layers]
    for layer in spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return PausingTrainer.Config(
        model_spec=spec,
        dump_folder=tempfile.mkdtemp(),
        pause=arguments.pause,
        tokenizer=NoTokenizer.Config(),
        dataloader=NumbersLoader.Config(),
        loss=CrossEntropyLoss.Config(global_vocab_size=VOCABULARY),
        optimizer=default_adamw(lr=8e-4),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=BATCH, seq_len=LENGTH, steps=arguments.steps, mixed_precision_param="float32"
        ),
        metrics=MetricsProcessor.Config(log_freq=1),
        comm=CommConfig(trace_buf_size=0),
        debug=DebugConfig(seed=0),
        activation_checkpoint=None,
        checkpoint=SnapshotManager.Config(
            enable=True,
            folder=arguments.folder,
            interval=arguments.interval,
            exclude_from_loading=arguments.exclude,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="checkpoint", help="a URL, or a folder below a temporary one")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--exclude", nargs="*", default=[], help="state that a restore leaves alone, like dataloader")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each step, to watch it run")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    trainer = config_of(arguments).build()
    try:
        trainer.train()
    finally:
        trainer.close()
    if dist.get_rank() == 0:
        print(f"finished {arguments.steps} steps", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
