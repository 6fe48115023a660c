"""`SnapshotManager` with torchtitan's own parts, in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchtitan.components.checkpointer import CheckpointManager, ModelWrapper
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw

from checkpoint_sidecar import ConfigurationError
from checkpoint_sidecar.integrations.torchtitan import SnapshotManager
from frameworks.gangs import committed

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Counter:
    """torchtitan's trainer, and its data loader, as far as checkpoints see them."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class Parts:
    """The arguments that torchtitan's trainer gives its manager."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 4)
        self.optimizers = default_adamw(lr=0.1).build(model_parts=[self.model])
        self.schedulers = LRSchedulersContainer.Config(warmup_steps=2).build(
            optimizers=self.optimizers, training_steps=10
        )
        self.trainer, self.loader = Counter(), Counter()

    def manager(self, folder: Path, kind: Any = SnapshotManager, **options: Any) -> Any:
        return kind.Config(enable=True, folder="run", **options).build(
            dataloader=self.loader,
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=self.schedulers,
            states={"train_state": self.trainer},
            sd_adapter=None,
            base_folder=str(folder),
        )

    def train(self) -> None:
        self.trainer.step += 1
        self.loader.step += 7
        self.optimizers.zero_grad()
        self.model(torch.ones(4)).sum().backward()
        self.optimizers.step()
        self.schedulers.step()

    @property
    def weight(self) -> torch.Tensor:
        return self.model.weight.detach().clone()


def trained(folder: Path, steps: int, **options: Any) -> Parts:
    parts = Parts()
    manager = parts.manager(folder, **options)
    manager.load()
    while parts.trainer.step < steps:
        parts.train()
        manager.save(parts.trainer.step, last_step=parts.trainer.step == steps)
    manager.close()
    return parts


def started(folder: Path, **options: Any) -> tuple[Parts, bool]:
    parts = Parts()
    manager = parts.manager(folder, **options)
    found = manager.load()
    manager.close()
    return parts, found


def test_everything_continues(tmp_path: Path) -> None:
    before = trained(tmp_path, 3, interval=2)
    assert committed(f"file://{tmp_path}/run") == [2, 3]
    after, found = started(tmp_path)
    assert found
    assert torch.equal(after.weight, before.weight)
    assert (after.trainer.step, after.loader.step) == (3, 21)
    assert after.schedulers.state_dict() == {"last_epoch": 3}
    [optimizer] = after.optimizers.optimizers
    assert optimizer.state[after.model.weight]["step"] == 3


def test_what_is_excluded_stays_fresh(tmp_path: Path) -> None:
    before = trained(tmp_path, 3)
    after, _ = started(tmp_path, exclude_from_loading=["optimizer", "lr_scheduler", "dataloader"])
    assert torch.equal(after.weight, before.weight)
    assert (after.trainer.step, after.loader.step) == (3, 0)
    assert after.schedulers.state_dict() == {"last_epoch": 0}
    [optimizer] = after.optimizers.optimizers
    assert not any(state.get("step") for state in optimizer.state.values())
    assert optimizer.param_groups[0]["lr"] == Parts().optimizers.optimizers[0].param_groups[0]["lr"]


def test_an_excluded_optimizer_is_in_the_snapshots_that_follow(tmp_path: Path) -> None:
    trained(tmp_path, 2)
    trained(tmp_path, 5, exclude_from_loading=["optimizer"])
    after, _ = started(tmp_path)
    assert after.optimizers.optimizers[0].state[after.model.weight]["step"] == 3, "of the three steps since"


def test_a_first_and_a_seed_checkpoint_are_saved_as_torchtitan_asks(tmp_path: Path) -> None:
    trained(tmp_path, 3, enable_first_step_checkpoint=True)
    assert committed(f"file://{tmp_path}/run") == [1, 3]
    seed = Parts()
    manager = seed.manager(tmp_path / "seeded")
    assert manager.save(0, last_step=True)
    manager.close()
    after, found = started(tmp_path / "seeded")
    assert found
    assert torch.equal(after.weight, seed.weight)
    assert after.trainer.step == 0


def test_save_says_whether_it_saved(tmp_path: Path) -> None:
    parts = Parts()
    manager = parts.manager(tmp_path, interval=2)
    manager.load()
    assert [manager.save(1), manager.save(2), manager.save(3), manager.save(3, last_step=True)] == [
        False,
        True,
        False,
        True,
    ]
    manager.close()


def test_a_run_begins_at_a_checkpoint_that_torchtitan_wrote(tmp_path: Path) -> None:
    parts = Parts()
    stock = parts.manager(tmp_path / "old", CheckpointManager, keep_latest_k=0, interval=1)
    parts.train()
    stock.save(1)
    stock.close()
    folder = str(tmp_path / "old" / "run" / "step-1")
    weights, found = started(tmp_path / "weights", initial_load_path=folder)
    assert found
    assert torch.equal(weights.weight, parts.weight)
    assert weights.trainer.step == 0
    whole, _ = started(tmp_path / "whole", initial_load_path=folder, initial_load_model_only=False)
    assert (whole.trainer.step, whole.loader.step) == (1, 7)
    assert torch.equal(whole.weight, parts.weight)


def test_a_run_begins_at_the_snapshot_of_another_run(tmp_path: Path) -> None:
    base = trained(tmp_path / "base", 2)
    address = f"file://{tmp_path}/base/run@2"
    weights, _ = started(tmp_path / "weights", initial_load_path=address)
    assert torch.equal(weights.weight, base.weight)
    assert weights.trainer.step == 0
    whole, _ = started(tmp_path / "whole", initial_load_path=address, initial_load_model_only=False)
    assert whole.trainer.step == 2


def test_its_own_snapshots_come_before_an_initial_path(tmp_path: Path) -> None:
    own = trained(tmp_path, 2)
    after, _ = started(tmp_path, initial_load_path=str(tmp_path / "absent" / "step-1"))
    assert torch.equal(after.weight, own.weight)


def test_stock_torch_reads_the_weights(tmp_path: Path) -> None:
    before = trained(tmp_path, 2)
    state = {"model": dict.fromkeys(ModelWrapper(before.model).state_dict(), torch.zeros(4, 4))}
    state["model"]["bias"] = torch.zeros(4)
    dcp.load(state, checkpoint_id=str(tmp_path / "run" / "step-2"))
    assert torch.equal(state["model"]["weight"], before.weight)


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ({"keep_latest_k": 10}, "retention.keepLast"),
        ({"last_save_model_only": True}, "checkpoint export"),
        ({"last_save_in_hf": True, "last_save_model_only": True}, "checkpoint export"),
        ({"load_only": True}, "checkpoint_sidecar.load"),
    ],
    ids=str,
)
def test_what_would_work_against_the_run_is_refused(tmp_path: Path, option: dict[str, Any], instead: str) -> None:
    with pytest.raises(ConfigurationError, match=instead):
        Parts().manager(tmp_path, **option)
    assert not (tmp_path / "run").exists()


def test_a_step_to_load_is_refused(tmp_path: Path) -> None:
    manager = Parts().manager(tmp_path)
    with pytest.raises(ConfigurationError, match="rollback"):
        manager.load(step=5)
    manager.close()


def test_an_injected_pod_keeps_to_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CHECKPOINT_URL", f"file://{tmp_path}/injected")
    monkeypatch.setitem(os.environ, "CHECKPOINT_RUN", "cluster/namespace/run")
    trained(tmp_path, 2)
    assert committed(f"file://{tmp_path}/injected") == [2]
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigurationError, match="belongs to the run at"):
        SnapshotManager.Config(enable=True, folder="s3://elsewhere/run").build(
            dataloader=None,
            model_parts=[nn.Linear(1, 1)],
            optimizers=default_adamw(lr=0.1).build(model_parts=[nn.Linear(1, 1)]),
            lr_schedulers=Counter(),
            states={},
            sd_adapter=None,
        )


def test_a_disabled_manager_does_nothing(tmp_path: Path) -> None:
    manager = SnapshotManager.Config(folder="run", keep_latest_k=10).build(
        dataloader=None,
        model_parts=[],
        optimizers=None,
        lr_schedulers=None,
        states={},
        sd_adapter=None,
        base_folder=str(tmp_path),
    )
    assert not manager.load()
    assert not manager.save(1, last_step=True)
    manager.close()
    assert not (tmp_path / "run").exists()
