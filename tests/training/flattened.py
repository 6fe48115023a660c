"""Runs that versions before packed values have saved: everything flattened, optimizers stepped, values pickled.

``flattened_run`` beside this file was written by commit 355deaf, in its worktree:

    PYTHONPATH=sidecar python <this file> write <folder>

``digested_run`` was written by commit 9a39b07 in the same way: it names the optimizer's packed state by all of its
contents.

The tests restore it with what ``job`` makes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Extra(nn.Linear):
    """With an extra state that is no tensor."""

    calls = 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class Kept:
    """Keeps what it is given."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def job() -> dict[str, Any]:
    """The state of a fresh process."""
    from checkpoint_sidecar import PerRank, RandomState

    torch.manual_seed(0)
    # Before BatchNorm a bias has no gradient but rounding errors, and Adam makes steps of them.
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), extra := Extra(3, 1))
    extra.weight = nn.Parameter(extra.weight.detach().clone())
    groups: list[dict[str, Any]] = [
        {"params": list(model[0].parameters()), "lr": 0.1},
        {"params": list(model[1:].parameters())},
    ]
    optim = torch.optim.AdamW(groups, lr=0.01, amsgrad=True)
    return {
        "model": model,
        "optim": optim,
        "steps": torch.optim.lr_scheduler.MultiStepLR(optim, [1, 4]),
        "kept": Kept({"tensor": torch.zeros(3), "nested": {"list": [0, [0]], "empty": {}, "text": ""}}),
        "loader": PerRank(Kept({})),
        "random": RandomState(),
        "seen": {"samples": 0},
    }


def train(state: dict[str, Any], step: int) -> None:
    """One step, which leaves its mark everywhere."""
    model, optim = state["model"], state["optim"]
    model(torch.randn(5, 4)).square().mean().backward()
    optim.step()
    optim.zero_grad()
    state["steps"].step()
    model[2].calls += 1
    state["kept"].state = {
        "tensor": torch.arange(3.0) + step,
        "nested": {"list": [step, [step]], "empty": {}, "text": str(step)},
    }
    state["loader"].wrapped.state = {"position": step, "order": (3, 1, 2), "generator": torch.arange(step)}
    state["seen"]["samples"] += step


def main() -> None:
    """Save after two steps."""
    from checkpoint_sidecar import Checkpointer
    from checkpoint_sidecar.core.log import PodIdentity

    state = job()
    pod = PodIdentity("trainer-0", "trainer-0")
    with Checkpointer(state, f"file://{Path(sys.argv[2]).resolve()}", pod=pod) as checkpointer:
        for step in checkpointer.steps(2):
            train(state, step)
            checkpointer.step(step)


if __name__ == "__main__":
    main()
