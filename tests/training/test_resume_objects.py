"""Schedulers, scalers and modules of every kind come back as they were, or are refused by name at the save."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from checkpoint_sidecar import Checkpointer, RandomState
from checkpoint_sidecar.core.errors import ConfigurationError, IncompatibleSnapshotError, RestoreInterrupted
from checkpoint_sidecar.core.log import SnapshotCommitted
from training.checkpointer_runs import RunStorage
from training.resuming import NO_SCHEDULE, Job, attempt, differences, restored, resumed, saved, undisturbed

pytestmark = pytest.mark.filterwarnings("ignore")


def scheduled(make: Callable[[torch.optim.Optimizer], Any]) -> Callable[[], Job]:
    def job() -> Job:
        model = nn.Linear(2, 1)
        optim = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optim)

        def step(_: int) -> None:
            loss = model(torch.randn(3, 2)).square().mean()
            loss.backward()
            optim.step()
            optim.zero_grad()
            scheduler.step(*([loss.item()] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))

        return Job({"model": model, "optim": optim, "scheduler": scheduler}, step)

    return job


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "MultiStepLR": lambda optim: schedulers.MultiStepLR(optim, [2, 2, 5]),
    "OneCycleLR": lambda optim: schedulers.OneCycleLR(optim, 0.5, total_steps=20),
    "CyclicLR": lambda optim: schedulers.CyclicLR(optim, 0.1, 0.5, step_size_up=2),
    "SequentialLR": lambda optim: schedulers.SequentialLR(
        optim, [schedulers.ConstantLR(optim, 0.5), schedulers.ExponentialLR(optim, 0.9)], [3]
    ),
    "LambdaLR": lambda optim: schedulers.LambdaLR(optim, lambda step: 0.9**step),
    "ReduceLROnPlateau": lambda optim: schedulers.ReduceLROnPlateau(optim, patience=1),
    "CosineAnnealingWarmRestarts": lambda optim: schedulers.CosineAnnealingWarmRestarts(optim, 3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_resume(name: str, tmp_path: Path) -> None:
    make = scheduled(SCHEDULERS[name])
    assert not list(differences(undisturbed(make, 6), resumed(make, tmp_path, (1, 4), 6)))


class Scaled:
    """A gradient scaler whose first steps are skipped, so that its state and the optimizer's are made late."""

    def __call__(self) -> Job:
        model = nn.Linear(2, 1)
        optim = torch.optim.AdamW(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=2)

        def step(number: int) -> None:
            loss = model(torch.randn(3, 2) * (1e30 if number < 3 else 1.0)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optim)
            scaler.update()
            optim.zero_grad()

        return Job({"model": model, "optim": optim, "scaler": scaler}, step)


def test_a_scaler_that_skips_the_first_steps_resumes(tmp_path: Path) -> None:
    assert not list(differences(undisturbed(Scaled(), 5), resumed(Scaled(), tmp_path, (0, 1, 2, 4), 5)))


class Versioned(nn.Module):
    """Loads what its own version saved only, resizes its buffer in place, and may be scripted in part."""

    _version = 3
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(2, 2)
        self.scripted = torch.jit.script(nn.BatchNorm1d(2))
        self.register_buffer("seen", torch.zeros(1))

    def _load_from_state_dict(self, state: Any, prefix: str, local: dict[str, Any], *more: Any) -> None:
        if local.get("version") != 3 or type(self)._version != 3:
            raise KeyError(f"{prefix}seen of version {local.get('version')}")
        super()._load_from_state_dict(state, prefix, local, *more)


def versioned() -> Job:
    part = Versioned()
    model = nn.Sequential(part)
    optim = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> None:
        part.scripted(part.core(torch.randn(3, 2))).square().mean().backward()
        optim.step()
        optim.zero_grad()
        part.seen.resize_(number).fill_(number)

    return Job({"model": model, "optim": optim}, step)


def test_modules_get_back_what_their_own_version_saved(tmp_path: Path) -> None:
    torch._C._set_graph_executor_optimize(False)
    try:
        assert not list(differences(undisturbed(versioned, 5), resumed(versioned, tmp_path, (0, 1, 3), 5)))
    finally:
        torch._C._set_graph_executor_optimize(True)


def test_a_module_that_cannot_take_its_state_is_named(storage: RunStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(storage, {"model": Versioned()})
    monkeypatch.setattr(Versioned, "_version", 4)
    with pytest.raises(IncompatibleSnapshotError, match=r"model: its load_state_dict raised KeyError") as refusal:
        restored(storage, {"model": Versioned()})
    assert not isinstance(refusal.value, RestoreInterrupted)


class Upgraded(nn.Linear):
    """Its second version adds to the bias what the first one left out."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") == 1 and self._version == 2:
            state[f"{prefix}bias"] = state[f"{prefix}bias"] + 1
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_module_learns_that_its_first_version_saved_the_state(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = Upgraded(2, 2), Upgraded(2, 2)
    saved(storage, {"model": before})
    monkeypatch.setattr(Upgraded, "_version", 2)
    restored(storage, {"model": after})
    assert torch.equal(after.bias, before.bias + 1)


class Changing(nn.Module):
    """Buffers that come into being and grow, extra states of any kind, and weights that are tied."""

    growing: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("late", None)
        self.register_buffer("growing", torch.zeros(1))
        self.register_buffer("flat", torch.zeros(1).expand(3))
        self.register_buffer("derived", torch.arange(3.0), persistent=False)
        self.log: list[Any] = []

    def get_extra_state(self) -> Any:
        return {"log": self.log, 1: ("a", {2})}

    def set_extra_state(self, state: Any) -> None:
        assert state[1] == ("a", {2})
        self.log = state["log"]


class Recording(nn.Linear):
    """Its extra state is a tensor that grows."""

    seen = torch.zeros(0)

    def get_extra_state(self) -> torch.Tensor:
        return self.seen

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen = state


def changing() -> Job:
    core, tail = Changing(), Recording(5, 1)
    model = nn.ModuleDict({"core": core, "tail": tail, "lazy": nn.LazyLinear(2)})
    optim = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(number: int) -> None:
        logits = core.head(core.embed(torch.randint(5, (3,))))
        (tail(logits).sum() + model["lazy"](logits).sum()).backward()
        optim.step()
        optim.zero_grad()
        core.late = torch.full((number,), float(number))
        core.growing = torch.cat([core.growing, torch.ones(1)])
        core.flat = torch.full((1,), float(number)).expand(3)
        core.log.append(number)
        tail.seen = torch.cat([tail.seen, torch.ones(2)])

    return Job({"model": model, "optim": optim}, step)


def test_modules_whose_state_changes_its_shape_resume(tmp_path: Path) -> None:
    assert not list(differences(undisturbed(changing, 5), resumed(changing, tmp_path, (1, 3), 5)))


def test_a_lazy_module_is_refused_by_name_until_it_has_run(storage: RunStorage) -> None:
    with pytest.raises(
        ConfigurationError, match=r"model\.lazy\.weight: .* is not initialized yet: run the module once"
    ):
        saved(storage, {"model": nn.ModuleDict({"lazy": nn.LazyLinear(2)})})
    assert not storage.bodies(SnapshotCommitted)


def test_a_model_on_meta_is_refused_in_plain_words(storage: RunStorage) -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"model\.weight: .* on the meta device .*to_empty"):
        Checkpointer({"model": model}, storage.url)


class Renamed(nn.Module):
    """A hook renames what its state dict holds, and another one undoes it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(2, 2)
        self._register_state_dict_hook(self._rename)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._restore)  # type: ignore[no-untyped-call]

    @staticmethod
    def _rename(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for leaf in ("weight", "bias"):
            state[f"{prefix}blocks.first.{leaf}"] = state.pop(f"{prefix}layers.{leaf}")

    @staticmethod
    def _restore(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for leaf in ("weight", "bias"):
            state[f"{prefix}layers.{leaf}"] = state.pop(f"{prefix}blocks.first.{leaf}")


def renamed() -> Job:
    model = Renamed()
    optim = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(_: int) -> None:
        model.layers(torch.randn(3, 2)).square().mean().backward()
        optim.step()
        optim.zero_grad()

    return Job({"model": model, "optim": optim}, step)


def test_names_that_a_hook_has_changed_resume(tmp_path: Path) -> None:
    assert not list(differences(undisturbed(renamed, 4), resumed(renamed, tmp_path, (1, 3), 4)))


def test_a_callable_in_a_parameter_group_is_refused_by_name(storage: RunStorage) -> None:
    model = nn.Linear(2, 2)
    optim = torch.optim.SGD([{"params": list(model.parameters()), "warmup": lambda step: step}], lr=0.1)
    with pytest.raises(ConfigurationError, match=r"optim\.param_groups\.0\.warmup: .*function"):
        saved(storage, {"model": model, "optim": optim})


def test_the_first_save_says_what_no_snapshot_holds(storage: RunStorage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    used = nn.Linear(1, 1)
    used.weight.grad = torch.ones(1, 1)
    with Checkpointer({"model": Changing(), "used": used}, storage.url, save=NO_SCHEDULE) as checkpointer:
        checkpointer.restore()
        checkpointer.save(1)
        checkpointer.save(2)
    (line,) = [record.getMessage() for record in caplog.records if "not in a snapshot" in record.getMessage()]
    assert re.search(r"model\.derived \(not persistent\); the gradients of used; the random number", line)


def test_generators_continue_as_if_the_iterator_had_not_been_made_again(tmp_path: Path) -> None:
    def make() -> Job:
        model, data = nn.Linear(2, 2), torch.utils.data.TensorDataset(torch.arange(16.0).reshape(8, 2))
        optim = torch.optim.SGD(model.parameters(), lr=0.01)
        drawn: list[float] = []

        def step(_: int) -> None:
            drawn[:] = [torch.rand(()).item(), random.random(), float(np.random.rand())]
            nn.functional.dropout(model(torch.ones(1, 2))).sum().backward()
            optim.step()
            optim.zero_grad()

        job = Job({"model": model, "optim": optim, "random": RandomState()}, step, watched=lambda: list(drawn))
        job.options["data"] = data
        return job

    def run(url: str, total: int) -> Job:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        job = make()
        data = job.options.pop("data")
        with Checkpointer(job.state, url, save=NO_SCHEDULE) as checkpointer:
            checkpointer.restore()
            iter(torch.utils.data.DataLoader(data, shuffle=True))
            for step in checkpointer.steps(total):
                job.step(step)
                checkpointer.step(step)
        return job

    undisturbed_run = run(f"file://{tmp_path}/whole", 4)
    run(f"file://{tmp_path}/parts", 2)
    parts = run(f"file://{tmp_path}/parts", 4)
    assert not list(differences(undisturbed_run.fingerprint(), parts.fingerprint()))


def test_two_attempts_share_nothing_but_the_snapshot(tmp_path: Path) -> None:
    job = attempt(changing, f"file://{tmp_path}/run", 2)
    again = attempt(changing, f"file://{tmp_path}/run", 2)
    mine = {id(each) for each in job.state["optim"].state.values()}
    assert mine.isdisjoint({id(each) for each in again.state["optim"].state.values()})
    assert not list(differences(job.fingerprint(), again.fingerprint()))
