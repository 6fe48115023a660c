"""Real ranks that save a model to an S3 server, and load it elsewhere: every check of ``test_loading``.

Run as ``python loading_ranks.py <rank> <ranks> <folder>``, with ``settings.json`` in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from checkpoint_sidecar import Checkpointer, IncompatibleSnapshotError, SnapshotNotFoundError, load, open_run
from checkpoint_sidecar.store.access import Credentials, StoreSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.ranks import Checks

check = Checks()


def settings(folder: Path) -> StoreSettings:
    kept = json.loads((folder.parent / "settings.json").read_text())
    return StoreSettings(kept["url"], kept["endpoint"], kept["region"], credentials=Credentials.of(kept["credentials"]))


def a_model(seed: int = 0, *, width: int = 33) -> nn.Module:
    """A width that two ranks cannot share evenly."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.Linear(width, 4))


def sharded(model: nn.Module) -> nn.Module:
    for layer in model:  # type: ignore[attr-defined]
        fully_shard(layer)
    fully_shard(model)
    return model


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()
    }


def assert_loaded(model: nn.Module) -> None:
    wanted, found = a_model().state_dict(), whole(model)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name


@check
def save(folder: Path) -> None:
    """One group of ranks trains; the others find what it left."""
    if os.environ["SAVES"] == "yes":
        model = sharded(a_model())
        state = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
        with Checkpointer(state, settings(folder), run="run") as checkpointer:
            checkpointer.restore()
            checkpointer.save(100, metrics={"loss": 0.5})
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            checkpointer.save(200)


@check
def load_into_a_sharded_module(folder: Path) -> None:
    model = sharded(a_model(1))
    loaded = load(settings(folder), model, selector=100)
    assert (loaded.step, loaded.metrics) == (100, {"loss": "0.5"})
    assert_loaded(model)


@check
def load_into_a_plain_module(folder: Path) -> None:
    model = a_model(1).requires_grad_(False)
    load(open_run(settings(folder)), model, selector=100)
    assert_loaded(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@check
def load_a_module_and_its_optimizer(folder: Path) -> None:
    model = sharded(a_model(1))
    load(settings(folder), {"model": model, "optimizer": torch.optim.Adam(model.parameters())}, selector=100)
    assert_loaded(model)


@check
def load_the_latest_by_default(folder: Path) -> None:
    model = a_model(1)
    assert load(settings(folder), model).step == 200
    assert not any(parameter.any() for parameter in model.parameters())


@check
def refuse_what_does_not_fit(folder: Path) -> None:
    for into, part, cause in (
        (a_model(1, width=34), "model", "33"),
        (a_model(1), "ema", r"it has no ema\. It has model, optimizer"),
        (nn.Sequential(a_model(1)), "model", "lacks"),
    ):
        before = {name: value.clone() for name, value in into.state_dict().items()}
        with pytest.raises(IncompatibleSnapshotError, match=cause):
            load(settings(folder), into, part=part, selector=100)
        assert all(torch.equal(value, before[name]) for name, value in into.state_dict().items())
    with pytest.raises(SnapshotNotFoundError, match="no snapshot has this step"):
        load(settings(folder), a_model(1), selector=150)


@check
def raise_the_error_of_one_rank_on_all(folder: Path) -> None:
    wrong = a_model(1, width=34) if dist.get_rank() == dist.get_world_size() - 1 else a_model(1)
    with pytest.raises(IncompatibleSnapshotError, match="33"):
        load(settings(folder), wrong, selector=100)


if __name__ == "__main__":
    check.main()
