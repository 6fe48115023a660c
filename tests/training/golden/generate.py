"""Golden checkpoints: the same states saved and loaded by any version of torch, each by its own DCP or by ours.

The folders beside this file were written by torch alone, each by the version it is named after:

    uv run --isolated --no-project --python 3.11 --with torch==2.6.0 --with numpy \\
        python tests/training/golden/generate.py write tests/training/golden/2.6

``read`` loads such folders, sharded and whole, compares every value and fails on a difference. Both take ``--ours``, to
save or load through this library; then install it too, with ``--with .``. ``docs/compatibility.md`` has the results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp import fully_shard as fully_shard_module

State = dict[str, Any]
HERE = Path(__file__).parent


def pattern(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers, which every dtype holds exactly."""
    return (torch.arange(torch.Size(shape).numel()) % 11 - 3).reshape(shape).to(dtype)


def plain() -> State:
    """What a state dict may hold that is not sharded."""
    return {
        "tensors": {
            "float32": pattern(4, 3),
            "bfloat16": pattern(2, 2, dtype=torch.bfloat16),
            "float8": pattern(5, dtype=torch.float8_e4m3fn),
            "int64": pattern(3, dtype=torch.int64),
            "complex64": pattern(3, dtype=torch.complex64) * 1j,
            "bool": torch.tensor([True, False, True]),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 3),
            "special": torch.tensor([float("nan"), float("-inf"), -0.0]),
            "transposed": pattern(2, 3).t(),
            "strided": pattern(10)[::2],
        },
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "names": ["a", "b"]}],
        "list": [1, [2, pattern(2)]],
        "text": "run",
        "nothing": None,
    }


def new_model() -> nn.Module:
    """Five rows on two ranks: the shards are uneven."""
    model = nn.Linear(3, 5)
    for parameter in model.parameters():
        parameter.data = pattern(*parameter.shape)
    return model


def state_of(model: nn.Module) -> State:
    """The state of a model and of an optimizer that took some steps.

    Without parameter groups: their keys differ from one version of torch to the next.
    """
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        value = parameter.detach()
        optimizer.state[parameter] = {"step": torch.tensor(5.0), "exp_avg": value * 2}
    own, optim = get_state_dict(model, optimizer)
    return {"model": own, "optim": optim["state"]}


def whole() -> State:
    return state_of(new_model())


def fully_shard() -> State:
    model = new_model()
    fully_shard_module(model, mesh=init_device_mesh("cpu", (2,)))
    return state_of(model)


def hybrid() -> State:
    """Two replicas of a model that is not split further."""
    model = new_model()
    fully_shard_module(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replica", "shard")))
    return state_of(model)


def fsdp1() -> State:
    return state_of(FullyShardedDataParallel(new_model(), device_id=torch.device("cpu"), use_orig_params=True))


RANKS = 2
SHARDED: dict[str, Callable[[], State]] = {"fully_shard": fully_shard, "hybrid": hybrid, "fsdp1": fsdp1}
"""What each rank saves. All of them, put together, are ``whole``."""


def whole_states() -> dict[str, Callable[[], State]]:
    """The state in every checkpoint, as one process holds it."""
    return {"plain": plain, **dict.fromkeys(SHARDED, whole)}


def blank(state: Any) -> Any:
    """Empty the state: zeros for values, in place, and None for objects."""
    if isinstance(state, dict):
        return {key: blank(value) for key, value in state.items()}
    if isinstance(state, list):
        return [blank(value) for value in state]
    if not isinstance(state, torch.Tensor):
        return None
    for part in parts(state):
        part.zero_()
    return state


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What this rank holds of a tensor."""
    if hasattr(tensor, "local_shards"):
        return [shard.tensor for shard in tensor.local_shards()]
    held = tensor.detach()
    return [held.to_local() if hasattr(held, "to_local") else held]


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two states differ by as much as a bit."""
    if isinstance(expected, dict | list):
        keys = list(expected) if isinstance(expected, dict) else range(len(expected))
        if len(found) != len(expected):
            return [f"{path}: {len(found)} entries instead of {len(expected)}"]
        return [line for key in keys for line in differences(expected[key], found[key], f"{path}.{key}")]
    if isinstance(expected, torch.Tensor):
        one, other = parts(expected), parts(found)
        same = len(one) == len(other) and all(map(identical, one, other))
    else:
        same = expected == found
    return [] if same else [f"{path}: {found} instead of {expected}"]


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def write(folder: Path, *, ours: bool, state: State) -> None:
    if ours:
        from checkpoint_sidecar.training.dcp.dropin import CheckpointWriter

        dcp.save(state, storage_writer=CheckpointWriter(folder))
    else:
        dcp.save(state, storage_writer=FileSystemWriter(folder, thread_count=2))


def read(folder: Path, *, ours: bool, state: State) -> None:
    if ours:
        from checkpoint_sidecar.training.dcp.dropin import CheckpointReader

        dcp.load(state, storage_reader=CheckpointReader(folder))
    else:
        dcp.load(state, storage_reader=FileSystemReader(folder))


def check(folder: Path, build: Callable[[], State], *, ours: bool) -> None:
    """Load into an emptied state and compare.

    Raises:
        AssertionError: A value is not what was saved.
    """
    loaded = blank(build())
    read(folder, ours=ours, state=loaded)
    found = differences(build(), loaded)
    if found:
        raise AssertionError(f"{folder}: {found}")


def run_rank(rank: int, rendezvous: str, arguments: argparse.Namespace) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    for folder in arguments.folders:
        for name, build in SHARDED.items():
            if arguments.action == "write":
                write(folder / name, ours=arguments.ours, state=build())
            else:
                check(folder / name, build, ours=arguments.ours)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["write", "read"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--ours", action="store_true", help="save or load through checkpoint_sidecar")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.start_processes(
            run_rank, (f"{scratch}/rendezvous", arguments), nprocs=RANKS, start_method="fork"
        )
    for folder in arguments.folders:
        if arguments.action == "write":
            write(folder / "plain", ours=arguments.ours, state=plain())
        else:
            for name, build in whole_states().items():
                check(folder / name, build, ours=arguments.ours)
        sys.stdout.write(f"torch {torch.__version__}: {arguments.action} {folder}: good\n")


if __name__ == "__main__":
    main()
