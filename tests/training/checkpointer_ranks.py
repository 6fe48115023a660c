"""Real training processes for the tests of ``Checkpointer``: ranks of a gloo group that train a small sharded model."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from checkpoint_sidecar import Checkpointer, RandomState
from checkpoint_sidecar.core.errors import CheckpointError, StoreError
from checkpoint_sidecar.core.policy import OnFailure, SavePolicy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer
from training.checkpointer_runs import Watched
from training.ranks import SERVER

Sharding = Literal["none", "fsdp1", "fsdp2"]


@dataclass(frozen=True)
class Job:
    """What all ranks do.

    Attributes:
        on_step: Called with rank and step before the step is reported to the checkpointer.
        on_upload: Called with rank and key before an object of a save is uploaded.
        wrap_store: Called with rank and store; what it returns is used in the store's place.
        width: Of the model; its state has about 200 bytes for each.
        part_bytes: Of multipart uploads; the store's own size if None.
    """

    url: str | StoreSettings
    total: int
    every_steps: int | None = 2
    sharding: Sharding = "none"
    world_size: int = 2
    grace_seconds: float = 20.0
    on_step: Callable[[int, int], None] | None = None
    on_upload: Callable[[int, str], None] | None = None
    wrap_store: Callable[[int, Store], Store] | None = None
    width: int = 32
    part_bytes: int | None = None
    on_failure: OnFailure = "Continue"
    options: dict[str, Any] = field(default_factory=dict)

    def train(self, rank: int, done: list[int]) -> Final:
        """Train on one rank; ``done`` receives each step."""
        return _train(rank, self, done)


@dataclass(frozen=True)
class Final:
    """This rank's share of the state after the last step, bit for bit."""

    plain: list[Any]
    tensors: list[torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """How one rank ended.

    Attributes:
        steps: The steps it trained.
        final: Its state, if it reached the end.
        error: What it raised, by class name and message.
    """

    code: int | None
    steps: tuple[int, ...] = ()
    final: Final | None = None
    error: tuple[str, str] | None = None


class Ranks:
    """The processes of a job. Every rank's ``code`` is its exit code, negative for a signal."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._folder = folder / f"{time.monotonic_ns()}"
        self._folder.mkdir()
        arguments = [(rank, job, self._folder) for rank in range(job.world_size)]
        self.processes = [SERVER.Process(target=_run_rank, args=each) for each in arguments]
        for process in self.processes:
            process.start()

    def wait(self, timeout_seconds: float = 200.0) -> list[Outcome]:
        deadline = time.monotonic() + timeout_seconds
        try:
            for process in self.processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        return [self._outcome(rank, process.exitcode) for rank, process in enumerate(self.processes)]

    def _outcome(self, rank: int, code: int | None) -> Outcome:
        path = self._folder / f"rank-{rank}"
        found = torch.load(path, weights_only=False) if path.exists() else {}
        return Outcome(code, **found)


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two ranks ended with the same state."""
    assert one.final is not None
    assert other.final is not None
    return json.dumps(one.final.plain) == json.dumps(other.final.plain) and all(
        torch.equal(a, b) for a, b in zip(one.final.tensors, other.final.tensors, strict=True)
    )


def run(job: Job, folder: Path) -> list[Outcome]:
    """Run a job to its end."""
    return Ranks(job, folder).wait()


def _run_rank(rank: int, job: Job, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"steps": []}
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=job.world_size)
        if job.on_upload is not None:
            on_upload = partial(job.on_upload, rank)
            _open_stores_with(lambda store: Watched(store, on_upload))
        if job.wrap_store is not None:
            _open_stores_with(partial(job.wrap_store, rank))
        if job.part_bytes is not None:
            parts.PART_BYTES = job.part_bytes
        found["final"] = job.train(rank, found["steps"])
    except (CheckpointError, SystemExit) as error:
        found["error"] = (type(error).__name__, str(error))
        raise
    finally:
        found["steps"] = tuple(found["steps"])
        torch.save(found, folder / f"rank-{rank}.partial")
        os.replace(folder / f"rank-{rank}.partial", folder / f"rank-{rank}")


def _open_stores_with(wrap: Callable[[Store], Store]) -> None:
    mock.patch.object(checkpointer, "open_store", lambda settings: wrap(open_store(settings))).start()


def _train(rank: int, job: Job, done: list[int]) -> Final:
    torch.manual_seed(0)
    model = sharded(nn.Sequential(nn.Linear(8, job.width), nn.Tanh(), nn.Linear(job.width, 8)), job.sharding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
    seen = {"samples": 0}
    state = {"model": model, "optim": optimizer, "scheduler": scheduler, "random": RandomState(), "seen": seen}
    torch.manual_seed(1000 + rank)
    save = SavePolicy(every_steps=job.every_steps, every_seconds=None, on_failure=job.on_failure)
    with Checkpointer(state, job.url, save=save, grace_seconds=job.grace_seconds, **job.options) as saver:
        for step in saver.steps(job.total):
            loss = model(torch.randn(4, 8)).square().mean()
            loss.backward()
            if job.sharding == "none":
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    dist.all_reduce(parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            seen["samples"] += 4
            done.append(step)
            if job.on_step is not None:
                job.on_step(rank, step)
            saver.step(step, metrics={"loss": loss})
    moments = [tensor for each in optimizer.state.values() for _, tensor in sorted(each.items())]
    tensors = [getattr(tensor, "_local_tensor", tensor).detach() for tensor in (*model.parameters(), *moments)]
    return Final([seen, scheduler.state_dict()], [*map(torch.clone, tensors), torch.get_rng_state()])


def sharded(model: nn.Module, sharding: Sharding) -> nn.Module:
    """The model over all ranks of the default group, on the CPU."""
    if sharding == "fsdp1":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    if sharding == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


# What goes wrong; here, because the ranks must be able to import it


def terminate(rank: int, step: int, *, to: int, at: int) -> None:
    """Sends SIGTERM to one rank, as when only its node is drained."""
    if (rank, step) == (to, at):
        signal.raise_signal(signal.SIGTERM)


def die(rank: int, key: str, *, who: int, where: str) -> None:
    """SIGKILL in the middle of a save."""
    if rank == who and where in key:
        signal.raise_signal(signal.SIGKILL)


def refuse(rank: int, key: str, *, who: int) -> None:
    """A store that one rank cannot write to."""
    if rank == who and key.endswith(".distcp"):
        raise StoreError("upload", key, "the disk is full")


class Panic(BaseException):
    """As pyo3 raises it when Rust panics: no ``Exception``, and not to be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a panic")


class Panicking(Watched):
    """A store whose client panics when it reads data."""

    def read_into(self, *_: Any) -> None:
        raise Panic("called Option::unwrap() on a None value")


def panic_on_reading(rank: int, store: Store, *, who: int) -> Store:
    return Panicking(store, lambda _: None) if rank == who else store


def dawdle(rank: int, step: int) -> None:
    """Gives the test time to interfere."""
    time.sleep(0.2)


def dawdle_in_upload(rank: int, key: str, *, who: int) -> None:
    """A store that is slow for one rank."""
    if rank == who and key.endswith(".distcp"):
        time.sleep(1.0)
