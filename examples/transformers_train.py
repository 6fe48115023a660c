"""Train a small language model with Hugging Face Trainer so that losing the pod loses nothing.

Two lines do it: ``TrainerSnapshots``, and what ``train`` resumes from. Start it with torchrun in a pod that carries the
label ``checkpoint-operator.dev/checkpoint: <name>``, or anywhere else like this::

    export CHECKPOINT_URL=file:///tmp/my-run CHECKPOINT_RUN=local/local/my-run
    torchrun --standalone --nproc-per-node 2 examples/transformers_train.py --steps 100
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from checkpoint_sidecar.integrations.transformers import TrainerSnapshots

VOCABULARY, LENGTH = 64, 16


class Text(Dataset[dict[str, torch.Tensor]]):
    """Sequences of token ids, (length), that count up by a stride; also the labels."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (index + (1 + index % 7) * torch.arange(LENGTH)) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


class Reporter(TrainerCallback):
    """Prints each step, and sleeps after it, to watch it run."""

    def __init__(self, pause: float) -> None:
        self._pause = pause

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        del args, control
        if state.is_world_process_zero and "loss" in logs:
            print(f"step {state.global_step}: loss {logs['loss']}", flush=True)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        time.sleep(self._pause)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="output", help="local folder")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--evaluate", action="store_true", help="evaluate before each checkpoint")
    parser.add_argument("--best", action="store_true", help="evaluate likewise, and end with the best model")
    parser.add_argument(
        "--fsdp", action="store_true", help="shard with FSDP2, which accelerate does on accelerators only"
    )
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep before each step")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    set_seed(0)  # all ranks start from the same weights; a restored checkpoint replaces them
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    evaluation = {
        "eval_strategy": "steps",
        "eval_steps": arguments.save_every,
        "per_device_eval_batch_size": 1,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    sharding = {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "state_dict_type": "SHARDED_STATE_DICT",
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        },
    }
    settings = TrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        save_steps=arguments.save_every,
        per_device_train_batch_size=4,
        logging_steps=1,
        learning_rate=1e-2,
        use_cpu=not torch.accelerator.is_available(),
        report_to=[],
        disable_tqdm=True,
        **(evaluation if arguments.evaluate or arguments.best else {}),
        **(best if arguments.best else {}),
        **(sharding if arguments.fsdp else {}),
    )
    trainer = Trainer(
        LlamaForCausalLM(config),
        settings,
        train_dataset=Text(48),
        eval_dataset=Text(8),
        callbacks=[Reporter(arguments.pause)],
    )
    with TrainerSnapshots(trainer) as snapshots:
        trainer.train(resume_from_checkpoint=snapshots.checkpoint)

    digest = hashlib.sha256()
    for _, weight in sorted(trainer.accelerator.unwrap_model(trainer.model_wrapped).state_dict().items()):
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        digest.update(whole.cpu().contiguous().numpy().tobytes())
    if trainer.is_world_process_zero():
        print(f"weights {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
