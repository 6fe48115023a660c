"""Whatever the optimizer: a run that was stopped and started fresh ends like one that nothing disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from checkpoint_sidecar import RandomState
from training.resuming import Job, differences, resumed, undisturbed

STEPS = 6


class Net(nn.Module):
    """A layer that is used, one that never is, and batch norm.

    Args:
        dtype: Of the parameters.
    """

    def __init__(self, width: int = 8, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(4, width, dtype=dtype)
        self.norm = nn.BatchNorm1d(width, dtype=dtype)
        self.last = nn.Linear(width, 1, dtype=dtype)
        self.idle = nn.Linear(3, 3, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return out


def job(optimizer: Callable[[Any], torch.optim.Optimizer], **options: Any) -> Job:
    """One model, one optimizer."""
    model = Net(**options)
    optim = optimizer(model.parameters())

    def step(_: int) -> None:
        batch = torch.randn(5, 4, dtype=model.first.weight.dtype)

        def closure() -> Any:  # torch's stubs want a float where its documentation returns the loss
            optim.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            return loss

        optim.step(closure)
        if hasattr(optim, "train") and hasattr(optim, "eval"):
            optim.eval()
            optim.train()

    if hasattr(optim, "train"):
        optim.train()
    return Job({"model": model, "optim": optim, "random": RandomState()}, step)


def adamw8bit() -> Job:
    """State in 8 bits where a tensor is large enough, in 32 where it is not."""
    from torchao.optim import AdamW8bit

    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1))
    optim = AdamW8bit(model.parameters(), lr=0.01)

    def step(_: int) -> None:
        model(torch.randn(5, 64)).square().mean().backward()
        optim.step()
        optim.zero_grad()

    return Job({"model": model, "optim": optim}, step)


def muon_and_adamw() -> Job:
    """Two optimizers over one model."""
    model = Net()
    matrices = [model.first.weight, model.last.weight, model.idle.weight]
    others = [each for each in model.parameters() if all(each is not matrix for matrix in matrices)]
    muon, adamw = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)

    def step(_: int) -> None:
        model(torch.randn(5, 4)).square().mean().backward()
        for optim in (muon, adamw):
            optim.step()  # type: ignore[no-untyped-call]
            optim.zero_grad()

    return Job({"model": model, "muon": muon, "adamw": adamw}, step)


def over_two_modules() -> Job:
    """One optimizer over two modules that use the same names, and one of them twice wrapped."""
    one, two = Net(), Net()
    two.add_module("first", checkpoint_wrapper(two.first))
    optim = torch.optim.AdamW([*one.parameters(), *two.parameters()], lr=0.01)

    def step(_: int) -> None:
        (one(torch.randn(5, 4)) + two(torch.randn(5, 4))).square().mean().backward()
        optim.step()
        optim.zero_grad()

    return Job({"one": one, "two": two, "optim": optim}, step)


def frozen_then_thawed() -> Job:
    """A layer that is frozen for three steps; groups with options of their own, one of them empty."""
    model = Net()
    model.last.requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": 0.5},
        {"params": list(model.first.parameters()), "lr": torch.tensor(0.01), "weight_decay": 0.1},
        {"params": [*model.last.parameters(), *model.norm.parameters()], "lr": np.float64(0.02), "name": "head"},
        {"params": [], "lr": 0.25, "tags": ("a", None, {1: "b"})},
        {"params": list(model.idle.parameters())},
    ]
    optim = torch.optim.AdamW(groups, lr=0.03, foreach=False)

    def step(number: int) -> None:
        if number == 3:
            model.last.requires_grad_(True)
        model(torch.randn(5, 4)).square().mean().backward()
        optim.step()
        optim.zero_grad()

    return Job({"model": model, "optim": optim}, step)


class Odd(torch.optim.Optimizer):
    """Keeps state of every kind, some of it for no parameter; ``Optimizer.load_state_dict`` spoils most of it."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        super().__init__(params, {"lr": 0.01, "history": []})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure:
            with torch.enable_grad():
                closure()
        self.state["calls"] = self.state.get("calls", 0) + 1  # type: ignore[index, call-overload]
        for group in self.param_groups:
            group["history"] = [*group["history"], len(group["history"])]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["text"] = state.get("text", "") + "x"
                state["none"] = None
                state["count"] = torch.tensor(len(state["text"]))
                state["array"] = np.arange(len(state["text"]), dtype=np.int16)
                state["nested"] = {1: [parameter.grad.double().clone()], "deep": ({"set": {1, 2}},)}
                state["many"] = [*state.get("many", []), parameter.grad.to(torch.float64)]
                state["mean"] = torch.full((), parameter.grad.mean().item(), dtype=torch.float32)
                parameter.sub_(state["many"][-1].to(parameter.dtype), alpha=group["lr"] * len(state["many"]))


class Rotating(torch.optim.Optimizer):
    """Multiplies by matrices that lie column by column, as SOAP does, and takes its own state apart to load it."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        super().__init__(params, {"lr": 0.01})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        loaded = {**state_dict, "state": {key: dict(**each) for key, each in state_dict["state"].items()}}
        for each in loaded["state"].values():
            each["about"] = {"kind": each["about"]["kind"], **each["about"]}
        super().load_state_dict(loaded)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            flat = parameter.grad.reshape(parameter.shape[0], -1)
            if not state:
                state["about"] = {"kind": "QR", "shape": (1, len(flat)), "mean": torch.zeros(())}
                state["basis"] = torch.linalg.qr(flat @ flat.T + torch.eye(len(flat))).Q.T.contiguous().T
            state["about"]["mean"] = state["about"]["mean"] + flat.mean()
            state["basis"] = torch.linalg.qr(state["basis"] + flat @ flat.T).Q.T.contiguous().T
            parameter.sub_((state["basis"].T @ flat).reshape(parameter.shape) + state["about"]["mean"], alpha=0.01)


AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
JOBS: dict[str, Callable[[], Job]] = {
    "adamw-foreach": partial(job, partial(AdamW, lr=0.01, foreach=True)),
    "adamw-fused": partial(job, partial(AdamW, lr=0.01, fused=True)),
    "adamw-amsgrad-bfloat16": partial(job, partial(AdamW, lr=0.01, amsgrad=True), dtype=torch.bfloat16),
    "adamw-tensor-lr": partial(job, lambda params: AdamW(params, lr=torch.tensor(0.01), foreach=False)),
    "sgd": partial(job, partial(SGD, lr=0.01)),
    "sgd-momentum": partial(job, partial(SGD, lr=0.01, momentum=0.9, nesterov=True)),
    "adagrad": partial(job, partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.5)),
    "adafactor": partial(job, partial(torch.optim.Adafactor, lr=0.1)),
    "lbfgs": partial(job, partial(torch.optim.LBFGS, lr=0.1, history_size=3, max_iter=3)),
    "asgd": partial(job, partial(torch.optim.ASGD, lr=0.1)),
    "rprop": partial(job, partial(torch.optim.Rprop, lr=0.1)),
    "schedule-free": partial(job, partial(schedulefree.AdamWScheduleFree, lr=0.1, warmup_steps=3)),
    "schedule-free-sgd": partial(job, partial(schedulefree.SGDScheduleFree, lr=0.1)),
    "torchao-8bit": adamw8bit,
    "muon-and-adamw": muon_and_adamw,
    "over-two-modules": over_two_modules,
    "frozen-then-thawed": frozen_then_thawed,
    "rotating": partial(job, Rotating),
    "odd": partial(job, Odd),
    "odd-bfloat16": partial(job, Odd, dtype=torch.bfloat16),
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step, which takes a minute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_saves_and_is_stopped_ends_like_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    expected = undisturbed(JOBS[name], STEPS)
    found = resumed(JOBS[name], tmp_path, (0, 1, 4), STEPS, saves=lambda step: step != 3)
    assert not list(differences(expected, found))
