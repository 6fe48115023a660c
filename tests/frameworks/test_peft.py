"""LoRA adapters by ``peft``: the base model is sent once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.log import SnapshotCommitted
from training.adapted import COPY
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.filterwarnings("ignore")


class Tuned:
    """A Llama of 60 MB with adapters of rank 8 on its attention."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=1000,
        )
        lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        self.model: Any = peft.get_peft_model(LlamaForCausalLM(config), lora)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained)
        self.state = {"model": self.model, "optim": self.optimizer}

    def train(self) -> None:
        tokens = torch.randint(0, 1000, (1, 8))
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def bits(self) -> list[bytes]:
        return [value.numpy().tobytes() for value in self.model.state_dict().values()]


def test_an_adapted_model_is_saved_by_its_adapters(tmp_path: Path) -> None:
    storage = RunStorage(f"file://{tmp_path}/run")
    tuned = Tuned()
    with Checkpointer(tuned.state, storage.url, save=COPY) as checkpointer:
        checkpointer.restore()
        for step in (1, 2, 3):
            tuned.train()
            checkpointer.save(step)
    again = Tuned()
    with Checkpointer(again.state, storage.url, save=COPY) as checkpointer:
        checkpointer.restore()
        assert again.bits() == tuned.bits()
        again.train()
        checkpointer.save(4)
    sent = [1 - commit.copied_bytes / commit.bytes for commit in storage.bodies(SnapshotCommitted)]
    assert sent[0] == 1
    # The adapters with their moments are 1.7 %, and the metadata of all tensors 0.3 %.
    assert max(sent[1:]) < 0.025
