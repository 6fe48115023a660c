"""Saves and loads of a DCP directory by two ranks, in processes of their own."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp import dropin
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter
from crashes.points import Crash
from training.ranks import SERVER

_RANKS = 2


def save(path: Path, *values: int, crash: Crash | None = None) -> list[int | None]:
    """Save each value over the one before. Returns the exit statuses."""
    return _run(_save, path, values, crash)


def load_and_save(path: Path, value: int) -> list[tuple[int, int]]:
    """In a fresh group: load, save a value, load again. Returns what our reader and torch's own found each time."""
    found = path.with_name("found.json")
    assert _run(_load_and_save, path, value, found) == [0] * _RANKS
    return [(ours, torchs) for ours, torchs in json.loads(found.read_text())]


def _run(body: Callable[..., None], path: Path, *arguments: Any) -> list[int | None]:
    rendezvous = path.with_name(f"rendezvous-{os.urandom(4).hex()}")
    processes = [
        SERVER.Process(target=_join, args=(rank, rendezvous, body, path, *arguments)) for rank in range(_RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _join(rank: int, rendezvous: Path, body: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=_RANKS)
    body(*arguments)


def _save(path: Path, values: tuple[int, ...], crash: Crash | None) -> None:
    if crash is not None:
        rank = dist.get_rank()
        mock.patch.object(dropin, "open_store", lambda settings: crash.wrap(rank, open_store(settings))).start()
    for value in values:
        state_dict_saver.save(_state(value), storage_writer=CheckpointWriter(path))


def _load_and_save(path: Path, value: int, found: Path) -> None:
    before = [_load(CheckpointReader(path)), _load(FileSystemReader(path))]
    _save(path, (value,), None)
    after = [_load(CheckpointReader(path)), _load(FileSystemReader(path))]
    if dist.get_rank() == 0:
        found.write_text(json.dumps([before, after]))


def _state(value: int) -> dict[str, Any]:
    whole = torch.full((64,), float(value))
    return {"x": distribute_tensor(whole, init_device_mesh("cpu", (_RANKS,)), [Shard(0)])}


def _load(reader: StorageReader) -> int:
    state = _state(0)
    state_dict_loader.load(state, storage_reader=reader)
    (value,) = set(state["x"].full_tensor().tolist())
    return int(value)
