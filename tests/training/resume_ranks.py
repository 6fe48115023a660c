"""Two real ranks over gloo that stop, start fresh and continue: the checks of ``test_resume_ranks``.

Run as ``python resume_ranks.py <rank> <world size> <folder>``.
"""

from __future__ import annotations

import os
import random
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint_sidecar import PerRank, RandomState
from checkpoint_sidecar.core.errors import ConfigurationError, IncompatibleSnapshotError
from checkpoint_sidecar.training.dcp import global_plan, receipts
from checkpoint_sidecar.training.dcp.remembered import Recent
from training.ranks import Checks
from training.resuming import Job, attempt, differences, frozen, resumed, save_untrained, undisturbed
from training.states import Held, states

check = Checks()


class Net(nn.Module):
    """Layers that are used and one that never is, with buffers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 1)
        self.idle = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return out


class Average:
    """A sharded average of a model's parameters, made at the first step, with odd keys beside it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state: dict[Any, Any] = {}

    def update(self) -> None:
        for name, parameter in self.model.named_parameters():
            value = parameter.detach().clone()
            old = self.state.get(("average", name))
            self.state["average", name] = value if old is None else old.lerp(value, 0.5)
        self.state[1] = self.state.get(1, 0) + 1

    def state_dict(self) -> dict[Any, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.state = state


class Reader:
    """Another position on each rank, and a cache that is large enough for an item of its own."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def read(self, step: int) -> None:
        place = step * 10 + dist.get_rank()
        self.state = {"place": place, "cache": torch.full((20_000 + step,), float(place)), 3: (step,)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def mesh(*shape: int) -> Any:
    return init_device_mesh("cpu", shape, mesh_dim_names=("replica", "shard")[: len(shape)])


def fsdp2(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=mesh(2))
    return model


def hybrid(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=mesh(2, 1))
    return model


def fsdp1(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def sharded(
    shard: Callable[[nn.Module], nn.Module], optimizer: Callable[[Any], torch.optim.Optimizer], *, wide: int = 6
) -> Callable[[], Job]:
    def make() -> Job:
        model = shard(Net(wide))
        optim = optimizer(model.parameters())
        average, reader = Average(model), Reader()

        def step(number: int) -> None:
            torch.manual_seed(number * 2 + dist.get_rank())
            model(torch.randn(4, 5)).square().mean().backward()
            optim.step()
            optim.zero_grad()
            if shard is not fsdp1:
                average.update()
            reader.read(number)

        state = {"model": model, "optim": optim, "reader": PerRank(reader), "random": RandomState()}
        if shard is not fsdp1:
            state["average"] = average
        return Job(state, step)

    return make


def goes_on(make: Callable[[], Job], folder: Path, steps: int = 3) -> None:
    expected = undisturbed(make, steps)
    found = resumed(make, folder, (0, 2), steps, saves=lambda step: step != 2)
    # A buffer that differs from rank to rank comes back as one rank's.
    lines = [line for line in differences(expected, found) if ".norm." not in line]
    assert not lines, lines


@check
def fsdp2_with_adamw(folder: Path) -> None:
    goes_on(sharded(fsdp2, lambda params: torch.optim.AdamW(params, lr=0.01)), folder)


@check
def later_saves_with_a_schedule_are_not_planned_again(folder: Path) -> None:
    decided: list[int] = []
    described: list[int] = []

    def make() -> Job:
        random.seed(0)  # the size of a generator's pickle depends on its state
        np.random.seed(0)
        model = fsdp2(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)))
        optim = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 0.1, total_steps=100)
        reader = Held({})

        def step(number: int) -> None:
            torch.manual_seed(number * 2 + dist.get_rank())
            model(torch.randn(4, 5)).square().mean().backward()
            optim.step()
            optim.zero_grad()
            schedule.step()
            reader.state = {"place": number * 1000 + dist.get_rank(), "order": torch.randperm(50).tolist()}

        state = {"model": model, "optim": optim, "schedule": schedule, "reader": PerRank(reader)}
        return Job(state | {"random": RandomState()}, step)

    def decide(*given: Any) -> Any:
        decided.append(1)
        return decision(*given)

    def place(*given: Any) -> Any:
        described.append(1)
        return placed(*given)

    decision, placed = global_plan._Decision.of, receipts.placed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(global_plan, "_decisions", Recent(2))
        patch.setattr(global_plan._Decision, "of", decide)
        patch.setattr(receipts, "placed", place)
        found = resumed(make, folder, (1, 12), 14, saves=lambda step: step < 14)
    expected = undisturbed(make, 14)
    assert len(decided) == (1 if dist.get_rank() == 0 else 0), decided
    assert len(described) <= 3, "once for each start of a process, of 13 saves"
    assert not list(differences(expected, found))


@check
def hybrid_with_momentum(folder: Path) -> None:
    goes_on(sharded(hybrid, lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9)), folder)


@check
def fsdp2_with_adagrad(folder: Path) -> None:
    goes_on(sharded(fsdp2, lambda params: torch.optim.Adagrad(params, lr=0.1)), folder)


@check
def fsdp1_with_adamw(folder: Path) -> None:
    goes_on(sharded(fsdp1, lambda params: torch.optim.AdamW(params, lr=0.01)), folder)


@check
def ddp_with_adamw(folder: Path) -> None:
    goes_on(sharded(ddp, lambda params: torch.optim.AdamW(params, lr=0.01)), folder)


@check
def fsdp2_with_torchao(folder: Path) -> None:
    from torchao.optim import AdamW8bit

    torch.compiler.set_stance("force_eager")
    goes_on(sharded(fsdp2, lambda params: AdamW8bit(params, lr=0.01), wide=2048), folder)
    torch.compiler.set_stance("default")


@check
def a_snapshot_of_two_ranks_restores_on_one_and_back(folder: Path) -> None:
    two = sharded(fsdp2, lambda params: torch.optim.AdamW(params, lr=0.01))
    url = f"file://{folder}/run"
    before = attempt(two, url, 2)
    del before.state["reader"], before.state["random"]
    whole = {name: tensor.full_tensor() for name, tensor in before.state["average"].state.items() if name != 1}
    moments = {
        name: before.state["optim"].state[parameter]["exp_avg"].full_tensor()
        for name, parameter in before.state["model"].named_parameters()
        if parameter in before.state["optim"].state
    }
    ready = folder / "ready"
    if dist.get_rank() == 0:
        alone(folder, whole, moments)
        ready.touch()
    dist.barrier()
    assert ready.exists()
    again = attempt(two, url, 2)
    for name in ("average", "optim", "model"):
        lines = differences(before.fingerprint()[name], again.fingerprint()[name])
        assert not [line for line in lines if ".norm." not in line]


def alone(folder: Path, whole: dict[Any, torch.Tensor], moments: dict[str, torch.Tensor]) -> None:
    """The same run in one process, without a process group."""
    import subprocess

    torch.save((whole, moments), folder / "expected")
    run = subprocess.run([sys.executable, __file__, "alone", str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def main_alone(folder: Path) -> None:
    whole, moments = torch.load(folder / "expected")
    dist.get_rank = lambda *_: 0
    make = sharded(lambda model: model, lambda params: torch.optim.AdamW(params, lr=0.01))
    job = attempt(make, f"file://{folder}/run", 2)
    for name, tensor in whole.items():
        assert torch.equal(job.state["average"].state[name], tensor), name
    for name, parameter in job.state["model"].named_parameters():
        if name in moments:
            assert torch.equal(job.state["optim"].state[parameter]["exp_avg"], moments[name]), name
        else:
            assert parameter not in job.state["optim"].state


@check
def partial_sums_are_refused_by_name(folder: Path) -> None:
    value = DTensor.from_local(torch.ones(4), mesh(2), [Partial()])
    average = Average(nn.Linear(1, 1))
    average.state = {"sums": [value]}
    with pytest.raises(ConfigurationError, match=r"average\.sums\.0: .* partial sums"):
        save_untrained(lambda: Job({"average": average}, lambda _: None), f"file://{folder}/run")


@check
def a_sharded_tensor_does_not_belong_to_one_rank(folder: Path) -> None:
    average = Average(nn.Linear(1, 1))
    average.state = {"w": distribute_tensor(torch.arange(8.0), mesh(2), [Shard(0)])}
    with pytest.raises(ConfigurationError, match=r"average\.w: .* do not wrap it in PerRank"):
        save_untrained(lambda: Job({"average": PerRank(average)}, lambda _: None), f"file://{folder}/run")


@check
def objects_that_only_one_rank_has(folder: Path) -> None:
    """Stages of a pipeline under names of their own."""
    rank = dist.get_rank()

    def make() -> Job:
        model = nn.Linear(2, 2)
        optim = torch.optim.AdamW(model.parameters(), lr=0.1)

        def step(_: int) -> None:
            model(torch.randn(3, 2)).square().mean().backward()
            optim.step()
            optim.zero_grad()

        return Job({f"stage{rank}": model, f"optim{rank}": optim}, step)

    assert not list(differences(undisturbed(make, 3), resumed(make, folder, (1,), 3)))


@check
def a_name_that_no_rank_takes_is_told_to_all(folder: Path) -> None:
    def make(names: tuple[str, ...]) -> Callable[[], Job]:
        return lambda: Job(
            {"model": fsdp2(nn.Sequential(OrderedDict((n, nn.Linear(4, 4)) for n in names)))}, lambda _: None
        )

    save_untrained(make(("a", "b")), f"file://{folder}/run")
    with pytest.raises(IncompatibleSnapshotError, match=r"model\.b\.bias, model\.b\.weight"):
        attempt(make(("a",)), f"file://{folder}/run", 1)


@check
def random_states(folder: Path) -> None:
    """Trees of everything, sharded tensors among them, drawn alike on both ranks."""
    meshes = (mesh(2), mesh(2, 1), mesh(1, 2))

    def job(held: Held) -> Callable[[], Job]:
        return lambda: Job({"held": held, "net": fsdp2(nn.Linear(2, 2))}, lambda _: None)

    for seed in range(100 if os.environ.get("CHECKPOINT_FAULTS") == "long" else 8):
        value, fresh = states(seed, meshes=meshes), Held(states(seed + 1000, meshes=meshes))
        expected = frozen(value, whole=True)
        save_untrained(job(Held(value)), f"file://{folder}/{seed}")
        attempt(job(fresh), f"file://{folder}/{seed}", 0)
        found = list(differences(expected, frozen(fresh.state, whole=True)))
        assert not found, (seed, found)


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        main_alone(Path(sys.argv[2]))
    else:
        check.main()
