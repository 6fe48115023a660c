"""Runs accelerate's own script about checkpoints with our snapshots in front, on data and weights that are made here.

The script would download a data set, BERT, and the package ``evaluate``. Its arguments are passed on.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

from frameworks import accelerate_in_front


class Accuracy:
    """The part of ``evaluate`` that the script uses."""

    def __init__(self) -> None:
        self._right: list[bool] = []

    def add_batch(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        self._right += (predictions == references).tolist()

    def compute(self) -> dict[str, float]:
        right, self._right = self._right, []
        return {"accuracy": sum(right) / len(right)}


def loaders(accelerator: Any, batch_size: int, model_name: str) -> tuple[DataLoader[Any], DataLoader[Any]]:
    del accelerator, model_name
    tokens = torch.randint(0, 64, (96, 12), generator=torch.Generator().manual_seed(1))
    rows: Any = [{"input_ids": each, "labels": each[0] % 2} for each in tokens]

    def batch(rows: list[dict[str, torch.Tensor]]) -> BatchEncoding:
        return BatchEncoding({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    train: DataLoader[Any] = DataLoader(rows[:64], shuffle=True, collate_fn=batch, batch_size=batch_size)
    return train, DataLoader(rows[64:], collate_fn=batch, batch_size=batch_size)


sys.modules["evaluate"] = types.ModuleType("evaluate")
sys.modules["evaluate"].load = lambda *_: Accuracy()  # type: ignore[attr-defined]

from accelerate.test_utils.scripts.external_deps import test_checkpointing as theirs  # noqa: E402

model = Path(sys.argv[1], "bert")
if not model.exists():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)).save_pretrained(model)
theirs.get_dataloaders = loaders
sys.argv[1:2] = [f"--model_name_or_path={model}", f"--output_dir={sys.argv[1]}"]
try:
    theirs.main()
finally:
    accelerate_in_front.close()
