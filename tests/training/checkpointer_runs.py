"""Small training runs in this process, on a real store, for the tests of ``Checkpointer``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import nn

from checkpoint_sidecar import Checkpointer, RandomState
from checkpoint_sidecar.core.log import Body, RunConfigured
from checkpoint_sidecar.core.policy import Policy, SavePolicy
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store, Upload
from checkpoint_sidecar.store.opening import open_store


class Training:
    """A small model and everything that makes up its training."""

    def __init__(self, width: int = 4) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2)
        self.seen = {"samples": 0}
        self.state: dict[str, Any] = {
            "model": self.model,
            "optim": self.optimizer,
            "scheduler": self.scheduler,
            "random": RandomState(),
            "seen": self.seen,
        }

    def train(self, step: int) -> float:
        """One optimizer step; depends on everything that must come back."""
        loss: torch.Tensor = self.model(torch.randn(3, 4)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.seen["samples"] += step
        return loss.item()

    def fingerprint(self) -> list[Any]:
        """Every bit of the state."""
        moments = [t for each in self.optimizer.state.values() for _, t in sorted(each.items())]
        tensors = [*self.model.parameters(), *moments, torch.get_rng_state()]
        return [*(t.detach().numpy().tobytes() for t in tensors), self.scheduler.state_dict(), dict(self.seen)]


@dataclass
class RunStorage:
    """A run's place in a real store, as its operator sees it."""

    url: str
    trained: list[int] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return open_store(StoreSettings(self.url))

    @property
    def log(self) -> RunLog:
        log = RunLog(self.store, writer="test")
        log.refresh()
        return log

    @property
    def run(self) -> Run:
        return self.log.run

    def append(self, body: Body) -> None:
        self.log.append(lambda _: body)

    def configure(self, generation: int = 1, **policy: Any) -> None:
        self.append(RunConfigured("a-uid", generation, Policy(**policy)))

    def restored_step(self) -> int:
        """Restore as an attempt that starts now, and return its step."""
        with Checkpointer(Training().state, self.url) as checkpointer:
            restored = checkpointer.restore()
        return restored.step if restored else 0

    def snapshot(self, step: int) -> Snapshot:
        return next(s for s in reversed([*self.run.snapshots.values()]) if s.step == step)

    def bodies(self, kind: type[Any]) -> list[Any]:
        store, found = self.store, []
        for info in store.list("_log/"):
            entry = msgspec.json.decode(store.get(info.key, max_bytes=1 << 20).data)
            if entry["kind"] == kind.__name__:
                found.append(msgspec.convert(entry["body"], kind))
        return found

    def damage(self, step: int, name: str = "__0_0.distcp") -> None:
        """Change one byte of the middle of a stored file."""
        key = f"{self.snapshot(step).commit.path}/{name}"
        data = bytearray(self.store.get(key, max_bytes=1 << 30).data)
        data[len(data) // 2] ^= 0xFF
        self.store.put(key, data)

    def train(self, total: int, training: Training | None = None, **options: Any) -> Training:
        """One attempt, from its start to ``total``."""
        training = training or Training()
        options = {"save": SavePolicy(every_steps=2, every_seconds=None)} | options
        with Checkpointer(training.state, self.url, **options) as checkpointer:
            for step in checkpointer.steps(total):
                self.trained.append(step)
                checkpointer.step(step, metrics={"loss": training.train(step)})
        return training


NO_SCHEDULE = SavePolicy(every_steps=None, every_seconds=None)
EVERY_STEP = SavePolicy(every_steps=1, every_seconds=None)


@contextmanager
def started(storage: RunStorage, training: Training | None = None, **options: Any) -> Iterator[Checkpointer]:
    """A checkpointer that has restored, and saves only when told."""
    options = {"save": NO_SCHEDULE} | options
    with Checkpointer((training or Training()).state, storage.url, **options) as checkpointer:
        checkpointer.restore()
        yield checkpointer


def await_saves() -> None:
    """Wait until no save runs in this process, whichever checkpointer began it."""
    for thread in threading.enumerate():
        if thread.name.startswith("save step"):
            thread.join(30)


class Watched:
    """A store that reports its uploads before they begin."""

    def __init__(self, store: Store, on_upload: Callable[[str], None]) -> None:
        self._store = store
        self._on_upload = on_upload

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Upload]:
        self._on_upload(key)
        with self._store.upload(key, size) as upload:
            yield upload


def train_until(happened: Callable[[], bool], checkpointer: Checkpointer, training: Training) -> None:
    """Train step after step, from step 1, until something happened, and then some more."""
    last = 500
    for step in range(1, last):
        training.train(step)
        checkpointer.step(step)
        if happened() and last == 500:
            last = step + 5
        if step == last:
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
