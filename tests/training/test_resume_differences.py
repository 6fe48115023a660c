"""What a start does with names and shapes that only the snapshot or only the program has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from checkpoint_sidecar import Optional
from checkpoint_sidecar.core.errors import IncompatibleSnapshotError
from checkpoint_sidecar.core.log import RestoreFinished
from training.checkpointer_runs import RunStorage
from training.resuming import differences, frozen, restored, saved
from training.states import Held

pytestmark = pytest.mark.filterwarnings("ignore")


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
