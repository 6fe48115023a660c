"""Two ranks that save what ``test_sharded`` exports, small tensors of every kind and large ones, and load the reverse.

Run as ``python saving_ranks.py <rank> <ranks> <folder>``, with ``settings.json`` in the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from checkpoint_sidecar import Checkpointer, IncompatibleSnapshotError, load_safetensors
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.http.adapter import HttpStore
from checkpoint_sidecar.store.opening import open_store

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


def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


@check
def save_a_mixture(folder: Path) -> None:
    """FSDP's rows, columns of a second mesh, and boxes of both."""
    model = mixed()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.layers, mesh=mesh)
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


@check
def load_what_others_published(folder: Path) -> None:
    """Rows, columns and whole tensors, in another dtype, under other names, with a tied weight in the files once."""
    wanted = mixed()
    published = {
        f"net.{name}": value.to(torch.bfloat16) if value.dtype is torch.float32 else value
        for name, value in wanted.state_dict().items()
        if isinstance(value, torch.Tensor) and name != "head.weight"
    }
    columns = torch.arange(8 * 4096, dtype=torch.float32).reshape(8, 4096)
    rows = torch.arange(2048 * 1024, dtype=torch.float32).reshape(2048, 1024)
    files = [published, {"net.columns": columns, "net.rows": rows}]
    store = open_store(settings(folder, "published"))
    if dist.get_rank() == 0:
        for number, tensors in enumerate(files):
            store.put(f"part-{number}.safetensors", safetensors.torch.save(tensors))
    dist.barrier()
    with torch.no_grad():
        for parameter in (model := mixed()).parameters():
            parameter.zero_()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.layers, mesh=mesh)
    model.register_buffer("columns", distribute_tensor(torch.zeros_like(columns), mesh, [Shard(1)]))
    model.register_buffer("rows", distribute_tensor(torch.zeros_like(rows), mesh, [Shard(0)]))
    received = []
    read_into = HttpStore.read_into

    def counting(self: HttpStore, key: str, start: int, buffers: Any) -> None:
        received.append(sum(buffer.nbytes for buffer in buffers))
        read_into(self, key, start, buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpStore, "read_into", counting)
        loaded = load_safetensors(
            settings(folder, "published"), into=model, renamed=lambda name: name.removeprefix("net.")
        )
    assert (loaded.missing, loaded.unused) == ((), ())
    expected = wanted.state_dict() | {"columns": columns, "rows": rows}
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            exact = expected[name]
            if f"net.{name.replace('head', 'embedding')}" in published and exact.dtype is torch.float32:
                exact = exact.bfloat16().float()
            assert torch.equal(whole, exact), name
    assert model.head.weight is model.embedding.weight
    assert sum(received) < 0.55 * rows.nbytes + 2 * columns.nbytes, "a rank reads its own rows only"


@check
def refuse_weights_that_do_not_fit(folder: Path) -> None:
    at = settings(folder.parent / "load_what_others_published", "published")
    model = nn.Linear(3, 3)
    before = model.weight.clone()
    with pytest.raises(IncompatibleSnapshotError, match=r"it lacks bias.*renamed="):
        load_safetensors(at, into=model)
    narrow = nn.ModuleDict({"embedding": nn.Embedding(2, 2)})
    with pytest.raises(IncompatibleSnapshotError, match=r"embedding\.weight has the shape \[33, 8\], and \[2, 2\]"):
        load_safetensors(at, into=narrow, strict=False, renamed=lambda name: name.removeprefix("net."))
    loaded = load_safetensors(at, into=model, strict=False)
    assert (loaded.tensors, loaded.missing) == (0, ("bias", "weight"))
    assert torch.equal(model.weight, before)


if __name__ == "__main__":
    check.main()
