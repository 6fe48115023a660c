"""What a training run's objects look like to DCP, and how they come back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.state.application import PerRank, TrainingState
from checkpoint_sidecar.training.state.randomness import RandomState


class Loader:
    """A data loader that knows its place; its state changes shape as it goes."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def stepped(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_an_optimizer_is_stored_under_the_names_of_its_module() -> None:
    model = nn.Linear(2, 2)
    state = TrainingState({"model": model, "optim": stepped(model)}, rank=0)
    assert set(state.capture()["optim"]["state"]) == {"weight", "bias"}


def test_two_modules_keep_their_optimizers_apart() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    objects = {"one": one, "two": two, "first": stepped(one, lr=0.1), "second": stepped(two, lr=0.2)}
    captured = TrainingState(objects, rank=0).capture()
    assert set(captured["first"]["state"]) == {"weight", "bias"}
    assert set(captured["second"]["state"]) == {"weight"}


def test_plain_values_come_back_in_place_where_they_can() -> None:
    objects: dict[str, Any] = {"seen": {"samples": 3}, "losses": [1.5], "epoch": 2, "best": float("inf")}
    seen, losses = objects["seen"], objects["losses"]
    state = TrainingState(objects, rank=0)
    captured = state.capture()
    seen.update(samples=99, later=1)
    objects["epoch"], objects["best"] = 99, 0.0
    losses.append(99)
    state.apply(captured)
    assert objects == {"seen": {"samples": 3}, "losses": [1.5], "epoch": 2, "best": float("inf")}
    assert objects["seen"] is seen
    assert objects["losses"] is losses


def test_each_rank_gets_its_own_value_back() -> None:
    loader = Loader()
    state = TrainingState({"loader": PerRank(loader)}, rank=3)
    loader.state = {"position": 7, "generator": torch.arange(3)}
    captured = state.capture()
    assert list(captured["loader"]) == ["rank-00003"]
    loader.state = {}
    state.apply(captured)
    assert loader.state["position"] == 7
    assert torch.equal(loader.state["generator"], torch.arange(3))


def test_a_rank_the_snapshot_does_not_know_keeps_its_state(caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader()
    loader.state = {"position": 7}
    state = TrainingState({"loader": PerRank(loader)}, rank=3)
    state.apply({"loader": {}})
    assert loader.state == {"position": 7}
    assert "rank-00003" in caplog.text


def test_every_generator_continues_where_it_was() -> None:
    state = TrainingState({"random": RandomState()}, rank=0)
    captured = state.capture()

    def draw() -> tuple[float, ...]:
        return (torch.rand(()).item(), random.random(), float(np.random.rand()), random.gauss(0, 1))

    expected = draw()
    draw()
    state.apply(captured)
    assert draw() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("clock", object(), id="an-object-without-a-state"),
        pytest.param("pair", (1, 2), id="a-tuple-would-come-back-as-a-list"),
        pytest.param("table", {1: "a"}, id="keys-would-come-back-as-text"),
        pytest.param("nested", [{"deep": {1, 2}}], id="a-set-deep-inside"),
        pytest.param("a.b", 1, id="a-dot-in-the-name"),
        pytest.param("", 1, id="no-name"),
    ],
)
def test_what_would_not_come_back_is_refused_at_the_start(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name or "non-empty"):
        TrainingState({name: value}, rank=0)


def test_an_optimizer_without_its_module_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no module of the state holds parameter"):
        TrainingState({"optim": torch.optim.SGD(nn.Linear(2, 2).parameters())}, rank=0)
