"""Models of which most does not change, and what their saves sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine.upload import upload_files
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.dcp import writer
from training.checkpointer_runs import RunStorage

COPY = SavePolicy(every_steps=None, every_seconds=None, unchanged="Copy")
BASE_BYTES = 4 * 4 * 1024 * 1024


class LowRank(nn.Module):
    """A linear layer that stays, and a product of two small matrices that is added to it (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x) + x @ self.down.T @ self.up.T
        return found


class Adapted:
    """A model whose layers stay, 16 MiB of them, with adapters that are trained."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(LowRank(nn.Linear(1024, 1024, bias=False)) for _ in range(4)))
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.05)
        self.state: dict[str, Any] = {"model": self.model, "optim": self.optimizer}

    def train(self) -> None:
        self.model(torch.randn(2, 1024)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def layers(self) -> list[torch.Tensor]:
        return [part.layer.weight for part in self.model if isinstance(part, LowRank)]

    def bits(self) -> list[bytes]:
        moments = [each for state in self.optimizer.state.values() for _, each in sorted(state.items())]
        return [each.detach().numpy().tobytes() for each in (*self.model.parameters(), *moments)]


@dataclass
class Uploads:
    """Bytes that the saves of this process have sent as data, one number for each save."""

    sent: list[int] = field(default_factory=list)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    found = Uploads()
    send = upload_files

    def counted(store: Any, folder: str, plans: Any, **options: Any) -> Any:
        plans = list(plans)
        found.sent.append(sum(plan.size for plan in plans))
        return send(store, folder, plans, **options)

    monkeypatch.setattr(writer, "upload_files", counted)
    return found


@contextmanager
def saving(
    url: str | StoreSettings, adapted: Any | None = None, save: SavePolicy = COPY, **options: Any
) -> Iterator[tuple[Any, Callable[[int], None]]]:
    """An attempt; call the function to train one step and save it."""
    adapted = adapted or Adapted()
    with Checkpointer(adapted.state, url, save=save, **options) as checkpointer:
        checkpointer.restore()

        def step(number: int) -> None:
            adapted.train()
            checkpointer.save(number)

        yield adapted, step


def copied(storage: RunStorage) -> list[int]:
    """What the log says that the store copied, by commit."""
    return [commit.copied_bytes for commit in storage.bodies(SnapshotCommitted)]
