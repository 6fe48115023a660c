"""Names of optimizers' packed states: the same in each save, and on two ranks only if nothing else differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.state.contents import FORM


class Odd(torch.optim.AdamW):
    """With state of every kind beside the parameters' own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        super().__init__(model.parameters(), lr=0.1)
        self.loose: dict[Any, Any] = {"seen": 1}
        self.rest: dict[str, Any] = {"clip": 1.0}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {**state, "state": state["state"] | self.loose, **self.rest}

    @property
    def group(self) -> dict[str, Any]:
        """Its only group."""
        found: dict[str, Any] = self.param_groups[0]
        return found

    @property
    def of_weight(self) -> dict[Any, Any]:
        """The state of a parameter."""
        found: dict[Any, Any] = self.state[self.model.get_parameter("0.weight")]
        return found


def trained() -> Odd:
    torch.manual_seed(0)
    optimizer = Odd(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    optimizer.group.update(rates=[0.1, 2], scale=torch.tensor(3.0), mode="cosine", nested={"rate": 0.1}, whole=1)
    optimizer.group["many"] = [0.5] * 100
    optimizer.model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.of_weight.update(updates=3, momentum=[0.5, 0.6], kind="sgd")
    optimizer.of_weight[7] = 1
    return optimizer


def name(optimizer: Odd) -> str:
    """The name of its form, which its items repeat wherever a number is not in the name."""
    state = TrainingState({"model": optimizer.model, "optim": optimizer}, rank=0)
    flat, _ = flatten_state_dict(state.capture())
    (found,) = [each for each in flat if each.startswith(f"optim.{FORM}.")]
    return found


def set_group(**values: Any) -> Callable[[Odd], None]:
    return lambda optimizer: optimizer.group.update(values)


def set_state(values: dict[Any, Any]) -> Callable[[Odd], None]:
    return lambda optimizer: optimizer.of_weight.update(values)


def step(optimizer: Odd) -> None:
    optimizer.step()


def forget_average(optimizer: Odd) -> None:
    del optimizer.of_weight["exp_avg"]


CHANGING: dict[str, Callable[[Odd], None]] = {
    "learning rate": set_group(lr=0.05),
    "whole number": set_group(whole=1 << 70),
    "tuple": set_group(betas=(0.7, 0.8)),
    "list": set_group(rates=[3, 0.5]),
    "tensor of one element": set_group(scale=torch.tensor(4.0)),
    "number of a parameter": set_state({"updates": 300}),
    "numbers of a parameter": set_state({"momentum": [0.1, 0.2]}),
    "step": step,
}
"""What a schedule or a step changes, each an item of its own too."""

LASTING: dict[str, Callable[[Odd], None]] = {
    "text": set_group(mode="linear"),
    "flag": set_group(maximize=True),
    "flag in place of a number": set_group(whole=True),
    "nothing in place of a number": set_group(lr=None),
    "new option": set_group(another=0.1),
    "longer list": set_group(rates=[0.1, 2, 3]),
    "tuple in place of a list": set_group(rates=(0.1, 2)),
    "number in place of a tensor": set_group(scale=3.0),
    "dtype of a tensor": set_group(scale=torch.tensor(3.0, dtype=torch.float64)),
    "number that is not an item": set_group(nested={"rate": 0.2}),
    "numbers of a long list": set_group(many=[0.5] * 99 + [0.6]),
    "text of a parameter": set_state({"kind": "adam"}),
    "number under a number": set_state({7: 2}),
    "dtype of a parameter's state": set_state({"exp_avg": torch.zeros(2, 3, dtype=torch.float64)}),
    "missing state": forget_average,
    "state beside the parameters": lambda optimizer: optimizer.loose.update(seen=2),
    "number beside groups and state": lambda optimizer: optimizer.rest.update(clip=2.0),
}
"""What ranks may hold differently without a comparison of it, or what another kind of optimizer has."""


@pytest.mark.parametrize("change", CHANGING)
def test_a_number_that_is_an_item_too_does_not_change_the_name(change: str) -> None:
    optimizer = trained()
    before = name(optimizer)
    CHANGING[change](optimizer)
    assert name(optimizer) == before


@pytest.mark.parametrize("change", LASTING)
def test_everything_else_does(change: str) -> None:
    optimizer = trained()
    before = name(optimizer)
    LASTING[change](optimizer)
    assert name(optimizer) != before


@pytest.mark.parametrize("change", CHANGING)
def test_the_items_have_what_is_not_in_the_name(change: str) -> None:
    def items(optimizer: Odd) -> dict[str, Any]:
        state = TrainingState({"model": optimizer.model, "optim": optimizer}, rank=0)
        flat, _ = flatten_state_dict(state.capture())
        return {key: repr(value) for key, value in flat.items() if key.startswith("optim.") and FORM not in key}

    optimizer = trained()
    before = items(optimizer)
    CHANGING[change](optimizer)
    after = items(optimizer)
    assert before.keys() == after.keys()
    assert before != after
