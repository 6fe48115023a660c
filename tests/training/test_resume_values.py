"""Values of every kind come back as they were, or are refused by name at the save."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from checkpoint_sidecar import Checkpointer, PerRank
from checkpoint_sidecar.core.errors import ConfigurationError, RestoreInterrupted, UntrustedSnapshotError
from checkpoint_sidecar.core.log import SnapshotCommitted
from training.checkpointer_runs import RunStorage
from training.resuming import NO_SCHEDULE, differences, restored, saved
from training.states import Held

pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_a_class_of_ones_own_comes_back_where_it_is_trusted_on_both_sides(storage: RunStorage) -> None:
    saved(storage, {"kept": Held({"config": Config(3)})}, trust="full")
    fresh = Held()
    with pytest.raises(UntrustedSnapshotError, match='trust="full"') as refusal:
        restored(storage, {"kept": fresh})
    assert not isinstance(refusal.value, RestoreInterrupted)
    assert "start again" not in str(refusal.value).lower()
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
