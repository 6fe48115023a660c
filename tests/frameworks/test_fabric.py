"""A loop of Lightning Fabric with a ``Checkpointer`` in it, as docs/trainers/lightning.md has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from checkpoint_sidecar import Checkpointer, RandomState, SavePolicy
from training.resuming import differences

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def train(url: str, total: int) -> tuple[dict[str, Any], list[float]]:
    """Weights and losses of the steps that were left to do."""
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    model, optimizer = fabric.setup(own, torch.optim.AdamW(own.parameters(), lr=0.05))
    state = {"model": model.module, "optimizer": optimizer.optimizer, "random": RandomState()}
    losses = []
    with Checkpointer(state, url, save=SavePolicy(every_steps=2, every_seconds=None)) as checkpointer:
        for step in checkpointer.steps(total):
            loss = model(torch.randn(4, 4)).square().mean()
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            checkpointer.step(step, metrics={"loss": loss})
    return dict(own.state_dict()), losses


def test_a_resumed_loop_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    weights, losses = train((tmp_path / "undisturbed").as_uri(), 6)
    _, before = train((tmp_path / "resumed").as_uri(), 4)
    resumed, after = train((tmp_path / "resumed").as_uri(), 6)
    assert before + after == losses
    assert not list(differences(weights, resumed))
