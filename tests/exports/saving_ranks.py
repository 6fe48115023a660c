"""Two ranks that save what ``test_sharded`` exports: small tensors of every kind, and large ones.

Run as ``python saving_ranks.py <rank> <ranks> <folder>``, with ``settings.json`` in the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.store.access import Credentials, StoreSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.ranks import Checks

check = Checks()
LARGE = {"a": (2048, 8192), "b": (4096, 4096)}
"""Rows enough for 32 MiB on each of two ranks."""


def settings(folder: Path, name: str) -> StoreSettings:
    kept = json.loads((folder.parent / "settings.json").read_text())
    return StoreSettings(
        f"{kept['url']}/{name}", kept["endpoint"], kept["region"], credentials=Credentials.of(kept["credentials"])
    )


class Mixed(nn.Module):
    """Tensors of every kind: bf16, tied, without dimensions, without elements, and an extra state that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(33, 8)
        self.layers = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 8).to(torch.bfloat16))
        self.head = nn.Linear(8, 33, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        del state


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed()


@check
def save_a_mixture(folder: Path) -> None:
    """FSDP's rows, columns of a second mesh, and boxes of both."""
    model = mixed()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.layers, mesh=mesh)  # type: ignore[arg-type]
    columns = torch.arange(6 * 8, dtype=torch.float32).reshape(6, 8)
    both = init_device_mesh("cpu", (1, 2), mesh_dim_names=("rows", "columns"))
    for name, placements in (("columns", [Shard(1)]), ("boxes", [Shard(0), Shard(1)])):
        value = distribute_tensor(columns, mesh if len(placements) == 1 else both, placements)
        model.register_buffer(name, value)
    with Checkpointer(
        {"model": model, "optimizer": torch.optim.Adam(model.parameters())}, settings(folder, "mixed")
    ) as checkpointer:
        checkpointer.restore()
        checkpointer.save(10)


@check
def save_large_tensors(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Module()
    for number, (name, shape) in enumerate(LARGE.items()):
        local = torch.full((shape[0] // 2, shape[1]), float(number + mesh.get_local_rank()))
        local[0] = torch.arange(shape[1])
        model.register_parameter(name, nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)])))
    norm = distribute_tensor(torch.arange(8192.0), mesh, [Replicate()])
    model.register_parameter("norm", nn.Parameter(norm))
    with Checkpointer({"model": model}, settings(folder, "large")) as checkpointer:
        checkpointer.restore()
        checkpointer.save(10)


if __name__ == "__main__":
    check.main()
