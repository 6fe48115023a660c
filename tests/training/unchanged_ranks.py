"""Ranks that train adapters of a model that stays."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.policy import SavePolicy, UnchangedPolicy
from checkpoint_sidecar.store.base import ObjectInfo, Store
from checkpoint_sidecar.store.local.adapter import LocalStore
from training.adapted import Adapted
from training.checkpointer_ranks import Final, Job


@dataclass(frozen=True)
class AdaptedJob(Job):
    """Every step is saved; what did not change is copied, or shared."""

    unchanged: UnchangedPolicy = "Copy"

    def train(self, rank: int, done: list[int]) -> Final:
        """See ``Job``. All ranks compute the same."""
        del rank
        adapted = Adapted()
        if self.sharding == "fsdp2":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for part in adapted.model:
                fully_shard(part, mesh=mesh)
            fully_shard(adapted.model, mesh=mesh)
            trained = [p for p in adapted.model.parameters() if p.requires_grad]
            adapted.state["optim"] = adapted.optimizer = torch.optim.AdamW(trained, lr=0.05)
        save = SavePolicy(every_steps=1, every_seconds=None, unchanged=self.unchanged, on_failure=self.on_failure)
        with Checkpointer(adapted.state, self.url, save=save, grace_seconds=self.grace_seconds) as saver:
            for step in saver.steps(self.total):
                torch.manual_seed(step)
                adapted.train()
                done.append(step)
                saver.step(step)
                saver.wait()
        tensors = [getattr(tensor, "_local_tensor", tensor).detach() for tensor in adapted.model.parameters()]
        return Final([], [*map(torch.clone, tensors)])


def die_after_copying(rank: int, store: Store, who: int, step: int) -> Store:
    """Kill one rank as soon as its file is copied into a save."""
    assert isinstance(store, LocalStore)
    link = store.link

    def linked(key: str, source_key: str) -> ObjectInfo:
        found = link(key, source_key)
        if rank == who and key.startswith(f"step-{step}/"):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    store.link = linked  # type: ignore[method-assign]
    return store
