"""Two real ranks over gloo that hold equal, and unequal, values under equal names: the checks of ``test_replicas``.

Run as ``python replica_ranks.py <rank> <world size> <folder>``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint_sidecar import BalancedSavePlanner, Checkpointer, CheckpointWriter
from checkpoint_sidecar.core.errors import ConfigurationError
from training.ranks import Checks
from training.states import Held

check = Checks()
LARGE = 600_000
"""Elements of a tensor that is sampled instead of read, and shared out by rows."""


def mine(*shape: int) -> torch.Tensor:
    """A tensor that is another on each rank."""
    return torch.full(shape, float(dist.get_rank() + 1))


def saved(folder: Path, state: dict[str, Any], saves: int = 1) -> dict[str, Any]:
    """What a run has stored, by name."""
    with Checkpointer(state, f"file://{folder}/run") as checkpointer:
        checkpointer.restore()
        for step in range(1, saves + 1):
            checkpointer.save(step)
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    return _load_state_dict_from_keys(checkpoint_id=f"{folder}/run/step-{saves}", process_group=None)


def refused(folder: Path, state: dict[str, Any], *words: str) -> None:
    """The save is refused on this rank in these words, and nothing of it is in the store."""
    checkpointer = Checkpointer(state, f"file://{folder}/run")
    checkpointer.restore()
    with pytest.raises(ConfigurationError) as refusal:
        checkpointer.save(1)
    checkpointer.close()
    for word in (*words, "PerRank"):
        assert word in str(refusal.value)
    assert not list((folder / "run").glob("step-*"))
    assert not any("SnapshotCommitted" in entry.read_text() for entry in (folder / "run" / "_log").glob("*.json"))


class Normalized(nn.Module):
    large: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("large", torch.zeros(LARGE))


@check
def buffers_that_differ_are_those_of_one_rank(folder: Path) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("checkpoint_sidecar").addHandler(handler)
    model = Normalized()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    for buffer in (model.norm.running_mean, model.norm.running_var, model.large):
        assert buffer is not None
        buffer.copy_(mine(*buffer.shape))
    stored = saved(folder, {"model": model}, saves=2)["model"]
    for name in ("norm.running_mean", "norm.running_var", "large"):
        assert stored[name].eq(1).all(), name
    warnings = [message for message in messages if "model: buffers differ" in message]
    assert len(warnings) == (1 if dist.get_rank() == 0 else 0), messages


@check
def buffers_that_differ_in_a_single_row_are_not_stitched(folder: Path) -> None:
    model = Normalized()
    model.linear.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    model.large[LARGE - 5] = mine(1)[0]
    assert saved(folder, {"model": model})["model"]["large"][LARGE - 5] == 1


@check
def stages_of_a_pipeline_with_equal_names(folder: Path) -> None:
    stage = nn.Linear(4, 4)
    with torch.no_grad():
        stage.weight.copy_(mine(4, 4))
        stage.bias.zero_()
    refused(folder, {"model": stage}, "model.weight", "ranks 0 and 1 hold different values under this name")


@check
def stages_of_a_pipeline_with_other_shapes(folder: Path) -> None:
    width = 4 + dist.get_rank()
    stage = nn.Linear(width, width)
    refused(folder, {"model": stage}, "model.weight", "[4, 4]", "[5, 5]")


@check
def sharded_stages_of_a_pipeline_with_equal_names(folder: Path) -> None:
    own = DeviceMesh("cpu", [dist.get_rank()])
    state = {"weight": DTensor.from_local(mine(4, 4), own, [Replicate()])}
    refused(folder, {"stage": Held(state)}, "stage.weight", "ranks 0 and 1 hold different values")


@check
def a_tensor_that_two_stages_share(folder: Path) -> None:
    own = DeviceMesh("cpu", [dist.get_rank()])
    state = {"weight": DTensor.from_local(torch.arange(LARGE), own, [Replicate()])}
    assert torch.equal(saved(folder, {"stage": Held(state)})["stage"]["weight"], torch.arange(LARGE))


@check
def replicas_that_drifted_apart(folder: Path) -> None:
    state = {"weight": DTensor.from_local(mine(4, 4), init_device_mesh("cpu", (2,)), [Replicate()], run_check=False)}
    refused(folder, {"model": Held(state)}, "model.weight", "replicas")


@check
def plain_values_that_differ(folder: Path) -> None:
    refused(folder, {"seen": {"samples": dist.get_rank()}}, "seen", "ranks 0 and 1 hold different values")


@check
def objects_that_differ(folder: Path) -> None:
    refused(folder, {"loader": Held({"position": dist.get_rank()})}, "loader")


@check
def a_tensor_here_and_an_object_there(folder: Path) -> None:
    refused(
        folder,
        {"best": Held({"value": mine(2) if dist.get_rank() else None})},
        "best",
        "ranks 0 and 1 hold different values",
    )


def trained() -> tuple[nn.Linear, torch.optim.AdamW]:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


@check
def learning_rates_that_differ(folder: Path) -> None:
    model, optimizer = trained()
    optimizer.param_groups[0]["lr"] = 0.1 + dist.get_rank()
    refused(folder, {"model": model, "optim": optimizer}, "optim.param_groups.0.lr", "hold different values")


@check
def steps_that_differ(folder: Path) -> None:
    model, optimizer = trained()
    optimizer.state[model.weight]["updates"] = dist.get_rank()
    refused(folder, {"model": model, "optim": optimizer}, "optim.state.weight.updates", "hold different values")


@check
def optimizers_that_differ_in_what_is_not_compared_are_stored_for_each_rank(folder: Path) -> None:
    def state(note: int) -> dict[str, Any]:
        model, optimizer = trained()
        optimizer.param_groups[0]["notes"] = {"note": note}
        return {"model": model, "optim": optimizer}

    stored = saved(folder, state(dist.get_rank()), saves=2)
    assert len(stored["optim"]["__form__"]) == 2
    assert len(stored["model"]["__form__"]) == 1
    fresh = state(7)
    with Checkpointer(fresh, f"file://{folder}/run") as checkpointer:
        checkpointer.restore()
    notes = [None, None]
    dist.all_gather_object(notes, fresh["optim"].param_groups[0]["notes"])
    assert notes in ([{"note": 0}] * 2, [{"note": 1}] * 2), "one of them, on all ranks"


@check
def large_tensors_that_differ(folder: Path) -> None:
    refused(folder, {"average": Held({"weight": mine(LARGE)})}, "average.weight")


@check
def equal_objects_whose_pickles_differ(folder: Path) -> None:
    # Sets of strings are ordered by a seed of the process; which equal strings are one object is undefined.
    names = [f"name {number}" for number in range(50)]
    strings = ["shared", "sha" + "red"] if dist.get_rank() else ["shared", "".join(["sha", "red"])]
    state = {"set": set(names), "nested": {"list": [frozenset(names), *strings]}}
    saved(folder, {"object": Held(state)})


class Uncuttable(torch.Tensor):
    """A subclass made of another tensor, as torchao's optimizer states are: it knows few operations."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Uncuttable:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner: torch.Tensor) -> None:
        self.held = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], *_: Any) -> Uncuttable:
        return cls(inner["held"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types it as a plain function
        cls, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        known = ("aten.detach.default", "aten._to_copy.default", "aten.clone.default", "aten.view.default")
        if str(function) in known:
            return cls(arguments[0].held.clone())
        if str(function) == "aten.is_pinned.default":
            return False
        raise NotImplementedError(f"{function} of an Uncuttable")


@check
def what_is_no_plain_tensor_is_never_cut(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    special = Uncuttable(torch.arange(LARGE, dtype=torch.uint8))
    state = {"whole": special, "sharded": DTensor.from_local(special, mesh, [Replicate()], run_check=False)}
    writer = CheckpointWriter(f"file://{folder}/checkpoint", trust="full")
    dcp.save(state, storage_writer=writer, planner=BalancedSavePlanner())
    other = {"whole": Uncuttable(mine(LARGE)) if dist.get_rank() else special}
    with pytest.raises(dcp.api.CheckpointException) as failure:
        dcp.save(other, storage_writer=writer, planner=BalancedSavePlanner())
    assert "hold different values" in str(failure.value)


@check
def equal_replicas_are_written_once_by_all(folder: Path) -> None:
    whole = torch.arange(2 * LARGE, dtype=torch.float64)
    sharded = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Replicate()])
    stored = saved(folder, {"model": Held({"plain": whole, "replicated": sharded})})["model"]
    assert torch.equal(stored["plain"], whole)
    assert torch.equal(stored["replicated"], whole)
    sizes = [file.stat().st_size for file in (folder / "run").glob("step-1/*/*.distcp")]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * whole.nbytes


if __name__ == "__main__":
    check.main()
