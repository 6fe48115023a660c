"""Ranks that write files like other people's trainers, for the tests of ``FileSnapshots``."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from checkpoint_sidecar import FileSnapshots
from checkpoint_sidecar.core.policy import SavePolicy
from training.checkpointer_ranks import Final, Job

SIZE = 1_000_000
"""Elements of the model: 4 MB in its file."""


@dataclass(frozen=True)
class FolderJob(Job):
    """What all ranks do. The state does not depend on their number.

    Attributes:
        folder: Of all ranks, or of rank 0 and others beside it.
        own_folders: Whether each rank has a folder of its own, like nodes without a shared filesystem.
    """

    folder: str = ""
    own_folders: bool = False

    def place(self, rank: int) -> Path:
        return Path(f"{self.folder}-{rank}") if self.own_folders else Path(self.folder)

    def train(self, rank: int, done: list[int]) -> Final:
        place = self.place(rank)
        model = torch.zeros(SIZE)
        save = SavePolicy(every_steps=self.every_steps, every_seconds=None, on_failure=self.on_failure)
        options = {"save": save, "grace_seconds": self.grace_seconds} | self.options
        with FileSnapshots(place, self.url, **options) as snapshots:
            restored = snapshots.restore()
            if restored:
                (newest,) = place.glob("checkpoint-*")
                model = torch.load(newest / "model.pt")
                assert newest.name == f"checkpoint-{restored.step}"
            for step in range(restored.step + 1 if restored else 1, self.total + 1):
                model = torch.sin(model * 1.1 + step)
                done.append(step)
                if self.on_step is not None:
                    self.on_step(rank, step)
                if snapshots.step(step, metrics={"loss": 1 / step}):
                    self._write(place, rank, step, model)
                    snapshots.save(step)
        return Final([], [model])

    def _write(self, place: Path, rank: int, step: int, model: torch.Tensor) -> None:
        folder = place / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        # The first rank of each folder writes what all of them need.
        if rank == 0 or self.own_folders:
            torch.save(model, folder / "model.pt")
            (folder / "log.txt").write_text(f"{rank if self.own_folders else 0}")
        (folder / f"rank-{rank}.bin").write_bytes(os.urandom(1) * 500_000)
        dist.barrier()
        if rank == 0 or self.own_folders:
            for old in place.glob("checkpoint-*"):
                if old != folder:
                    shutil.rmtree(old)
        dist.barrier()


def dawdle_in_files(rank: int, key: str, *, who: int, seconds: float) -> None:
    """A store that is slow for one rank."""
    if rank == who and key.endswith(".files"):
        time.sleep(seconds)


def spoil(rank: int, step: int, *, who: int, folder: str) -> None:
    """Something that cannot be saved, in the folder of one rank."""
    if rank == who and step == 2:
        os.mkfifo(f"{folder}/pipe")
