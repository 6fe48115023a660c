"""Schedulers, scalers, modules and values of every kind come back as they were, or are refused by name at the save."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from checkpoint_sidecar import Checkpointer, Optional, PerRank, RandomState
from checkpoint_sidecar.core.errors import (
    ConfigurationError,
    IncompatibleSnapshotError,
    RestoreInterrupted,
    UntrustedSnapshotError,
)
from checkpoint_sidecar.core.log import RestoreFinished, SnapshotCommitted
from training.checkpointer_runs import RunStorage
from training.resuming import NO_SCHEDULE, Job, attempt, differences, frozen, resumed, undisturbed
from training.states import Held

pytestmark = pytest.mark.filterwarnings("ignore")


def saved(storage: RunStorage, state: dict[str, Any], step: int = 1, **options: Any) -> None:
    with Checkpointer(state, storage.url, save=NO_SCHEDULE, **options) as checkpointer:
        checkpointer.restore()
        checkpointer.save(step)


def restored(storage: RunStorage, state: dict[str, Any], **options: Any) -> Any:
    with Checkpointer(state, storage.url, save=NO_SCHEDULE, **options) as checkpointer:
        return checkpointer.restore()


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


class Sample(NamedTuple):
    number: int


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Config:
    width: int = 1


VALUES: dict[str, Any] = {
    "numpy": {"lr": np.float64(0.1), "array": np.arange(20_000).reshape(2, -1), "flag": np.bool_(True)},
    "containers": {
        (1, "a"): collections.deque([1, {2: 3}], maxlen=4),
        2: collections.OrderedDict(b=1, a=frozenset({1})),
        None: collections.defaultdict(list, {1: [2]}),
        1.5: collections.Counter({3: 1}),
    },
    "dates": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.timedelta(1), dt.date(2026, 1, 1), Path("/a/b")],
    "tensors": {
        "large": torch.arange(40_000.0),
        "view": torch.arange(40_000.0)[::2],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "large-transposed": torch.arange(40_000.0).reshape(2, -1).T,
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "parameter": nn.Parameter(torch.ones(2)),
        "dots.in.it": torch.ones(30_000),
        "dots": {"in": {"it": torch.zeros(30_000)}},
        1: torch.full((30_000,), 1),
        "1": torch.full((30_000,), 2),
    },
    "nothing": None,
    "bare": torch.arange(3),
    "empty": {"a": {}, "b": [], "c": ()},
}


@pytest.mark.parametrize("wrap", [pytest.param(lambda kept: kept, id="shared"), pytest.param(PerRank, id="per-rank")])
@pytest.mark.parametrize("name", VALUES)
def test_values_of_any_kind_come_back(name: str, wrap: Callable[[Any], Any], storage: RunStorage) -> None:
    saved(storage, {"kept": wrap(Held(VALUES[name]))})
    fresh = Held({"other": 1})
    restored(storage, {"kept": wrap(fresh)})
    assert not list(differences(VALUES[name], fresh.state))


def test_generators_come_back_where_they_were(storage: RunStorage) -> None:
    def draws(state: dict[str, Any]) -> list[Any]:
        return [
            state["numpy"].random(),
            state["legacy"].rand(),
            state["python"].random(),
            torch.rand((), generator=state["torch"]).item(),
        ]

    state = {
        "numpy": np.random.default_rng(3),
        "legacy": np.random.RandomState(3),
        "python": random.Random(3),
        "torch": torch.Generator().manual_seed(3),
    }
    draws(state)
    saved(storage, {"kept": Held(state)})
    fresh = Held()
    restored(storage, {"kept": fresh})
    assert draws(fresh.state) == draws(state)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        pytest.param({"config": [Config()]}, r"kept\.config\.0: .*Config", id="a-dataclass"),
        pytest.param({"color": Color.RED}, r"kept\.color: .*Color", id="an-enum-member"),
        pytest.param({"sample": Sample(1)}, r"kept\.sample: .*Sample", id="a-named-tuple"),
        pytest.param({"function": {1: len}}, r"kept\.function\.1: .*builtin_function", id="a-function"),
        pytest.param({"dtype": np.array([object()])}, r"kept\.dtype: .* objects", id="an-array-of-objects"),
    ],
)
def test_what_would_not_come_back_is_refused_at_the_save(value: Any, named: str, storage: RunStorage) -> None:
    with pytest.raises(ConfigurationError, match=named) as refusal:
        saved(storage, {"kept": Held(value)})
    assert 'trust="full"' in str(refusal.value)
    assert not storage.bodies(SnapshotCommitted)
    assert not list(storage.store.list("step-"))


def test_what_itself_contains_is_refused(storage: RunStorage) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigurationError, match=r"kept\.0: .* contains itself"):
        saved(storage, {"kept": Held(endless)}, trust="full")


def test_a_callable_in_a_parameter_group_is_refused_by_name(storage: RunStorage) -> None:
    model = nn.Linear(2, 2)
    optim = torch.optim.SGD([{"params": list(model.parameters()), "warmup": lambda step: step}], lr=0.1)
    with pytest.raises(ConfigurationError, match=r"optim\.param_groups\.0\.warmup: .*function"):
        saved(storage, {"model": model, "optim": optim})


def test_a_class_of_ones_own_comes_back_where_it_is_trusted_on_both_sides(storage: RunStorage) -> None:
    saved(storage, {"kept": Held({"config": Config(3)})}, trust="full")
    fresh = Held()
    with pytest.raises(UntrustedSnapshotError, match='trust="full"') as refusal:
        restored(storage, {"kept": fresh})
    assert not isinstance(refusal.value, RestoreInterrupted)
    assert "start again" not in str(refusal.value)
    restored(storage, {"kept": fresh}, trust="full")
    assert fresh.state == {"config": Config(3)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda seen: seen.update({1: 2}), r"seen\.1: .* the key is of type int", id="a-key"),
        pytest.param(lambda seen: seen["runs"].append((1, 2)), r"seen\.runs\.0: .* a tuple", id="a-tuple"),
        pytest.param(lambda seen: seen.update(big=10**5000), r"seen\.big: .* too many digits", id="a-number"),
        pytest.param(lambda seen: seen.update(array=np.arange(2)), r"seen\.array: .* ndarray", id="an-array"),
    ],
)
def test_plain_values_are_checked_at_each_save(change: Callable[[Any], Any], named: str, storage: RunStorage) -> None:
    seen: dict[str, Any] = {"runs": [], "zero": -0.0, "nan": float("nan"), "big": 1 << 200}
    with Checkpointer({"seen": seen}, storage.url, save=NO_SCHEDULE) as checkpointer:
        checkpointer.restore()
        checkpointer.save(1)
        fresh: dict[str, Any] = {}
        restored_by = RunStorage(storage.url)
        change(seen)
        with pytest.raises(ConfigurationError, match=named):
            checkpointer.save(2)
    restored(restored_by, {"seen": fresh})
    expected = {"runs": [], "zero": -0.0, "nan": float("nan"), "big": 1 << 200}
    assert not list(differences(expected, fresh))


def layers(*names: str) -> dict[str, Any]:
    return {"model": nn.ModuleDict({name: nn.Linear(2, 2) for name in names})}


def test_names_that_only_one_side_has_are_all_in_the_error(storage: RunStorage) -> None:
    saved(storage, layers("a", "b", "c"))
    state = layers("a", "d")
    before = frozen(dict(state["model"].state_dict()))
    with pytest.raises(IncompatibleSnapshotError) as refusal:
        restored(storage, state)
    for name in ("model.b.weight", "model.b.bias", "model.c.weight", "model.c.bias", "model.d.weight", "model.d.bias"):
        assert name in str(refusal.value)
    assert "model.a" not in str(refusal.value)
    assert not list(differences(before, dict(state["model"].state_dict())))


def test_what_only_one_side_has_is_reported_if_that_is_allowed(
    storage: RunStorage, caplog: pytest.LogCaptureFixture
) -> None:
    old = layers("a", "b") | {"gone": Held(1)}
    saved(storage, old)
    new = layers("a", "c") | {"fresh": Optional(Held(2)), "number": Optional(3)}
    untouched = frozen(new["model"]["c"].weight)
    outcome = restored(storage, new, strict=False)
    assert outcome.missing == ("fresh", "model.c.bias", "model.c.weight", "number")
    assert outcome.unused == ("gone", "model.b.bias", "model.b.weight")
    (finished,) = storage.bodies(RestoreFinished)
    assert (finished.missing, finished.unused) == (outcome.missing, outcome.unused)
    assert torch.equal(new["model"]["a"].weight, old["model"]["a"].weight)
    assert torch.equal(new["model"]["c"].weight, untouched)
    assert new["fresh"].wrapped.state == 2
    assert "model.c.bias" in caplog.text
    assert "model.b.bias" in caplog.text


def test_a_new_object_needs_to_be_optional_and_one_that_is_gone_does_not(storage: RunStorage) -> None:
    saved(storage, {"one": Held(1), "two": Held(2)})
    with pytest.raises(IncompatibleSnapshotError, match=r"the snapshot lacks three\. .* Optional"):
        restored(storage, {"one": Held(), "three": Held()})
    one, three = Held(), Held(3)
    outcome = restored(storage, {"one": one, "three": Optional(three)})
    assert (one.state, three.state) == (1, 3)
    assert (outcome.missing, outcome.unused) == (("three",), ("two",))


def test_an_optional_object_comes_back_once_it_was_saved(storage: RunStorage) -> None:
    saved(storage, {"ema": Optional(Held(5)), "number": Optional(7)})
    state: dict[str, Any] = {"ema": Optional(Held()), "number": Optional(0)}
    restored(storage, state)
    assert (state["ema"].wrapped.state, state["number"].wrapped) == (5, 7)


def test_weights_that_were_not_tied_are_refused_where_they_are(storage: RunStorage) -> None:
    def model(*, tied: bool) -> nn.Module:
        made = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
        if tied:
            made["head"].weight = made["embed"].weight
        return made

    saved(storage, {"model": model(tied=False)})
    with pytest.raises(IncompatibleSnapshotError, match=r"embed\.weight, head\.weight are one parameter here"):
        restored(storage, {"model": model(tied=True)})


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


def test_a_run_with_another_width_says_what_does_not_fit_and_touches_nothing(storage: RunStorage) -> None:
    saved(storage, {"model": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = frozen(dict(model.state_dict()))
    with pytest.raises(IncompatibleSnapshotError, match=r"model\.1\.bias was saved as float32 \[2\] and is .* \[3\]"):
        restored(storage, {"model": model})
    assert not list(differences(before, dict(model.state_dict())))


def test_an_error_names_the_parameters_that_an_optimizer_lacks_a_group_for(storage: RunStorage) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    optim = torch.optim.SGD(model["a"].parameters(), lr=0.1)
    optim.add_param_group({"params": list(model["b"].parameters()), "lr": 0.2})
    saved(storage, {"model": model, "optim": optim})
    fresh = torch.optim.SGD(model["a"].parameters(), lr=0.1)
    with pytest.raises(IncompatibleSnapshotError, match=r"do not accept optim\.b\.bias, optim\.b\.weight"):
        restored(storage, {"model": model, "optim": fresh})


def test_two_attempts_share_nothing_but_the_snapshot(tmp_path: Path) -> None:
    job = attempt(changing, f"file://{tmp_path}/run", 2)
    again = attempt(changing, f"file://{tmp_path}/run", 2)
    mine = {id(each) for each in job.state["optim"].state.values()}
    assert mine.isdisjoint({id(each) for each in again.state["optim"].state.values()})
    assert not list(differences(job.fingerprint(), again.fingerprint()))
