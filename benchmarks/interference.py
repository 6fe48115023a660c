"""What a save in the background costs the training loop that it runs beside."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import llama
from measuring import PeakMemory
from processes import Result, serve
from runs import OURS
from systems import REGION, Dcp, Server, system

IN_A_PROCESS = "-in-a-process"
"""Ends the name of a system whose saves DCP runs in a process of their own instead of a thread."""

_CALLS_A_STEP = 4000
_STEPS_ALONE = 60
_ADDITIONS_A_STEP = 200_000
_TIMEOUT_SECONDS = 300.0
_SCHEDULING = Path("/proc/thread-self/schedstat")
"""Nanoseconds that this thread ran, and nanoseconds that it waited for a core."""


class Loop(StrEnum):
    """What a step of training does in Python.

    ``TORCH`` calls small operations, like those that launch a GPU's kernels; each releases Python's lock. ``PYTHON``
    never does: another thread gets it only by asking for it (``sys.getswitchinterval``).
    """

    TORCH = "torch"
    PYTHON = "python"


@dataclass(frozen=True)
class Save:
    """One save beside training. Attributes:
    blocked: Seconds that training waited for the copy into host memory.
    steps: Until the save was over.
    seconds: How long that took.
    core: Of them, seconds after the copy in which the loop was ready to run and had no core.
    lock: Seconds after the copy in which the loop slept: nothing in it waits, except for Python's lock.
    """

    blocked: float
    steps: int
    seconds: float
    core: float
    lock: float


class Saver(Protocol):
    """A way to save in the background."""

    def begin(self) -> None:
        """Returns when training may continue."""

    def step(self) -> None:
        """What the training loop calls after each step."""

    def over(self) -> bool: ...

    def close(self) -> None: ...


def interference(
    *, name: str, server: dict[str, str], url: str, total_bytes: int, repetitions: int, loop: str = Loop.TORCH
) -> Result:
    """Count the steps that are done while a save runs, and compare their duration with that of steps before and after.

    The save begins with the copy into host memory (every system gets one), for which training waits. The first save
    warms up.

    Returns:
        ``training_lost_s_per_gb`` includes that wait, which is also ``blocked_s_per_gb``, and what the loop waited for
        Python's lock and for a core, ``lock_s_per_gb`` and ``core_s_per_gb``; ``extra_memory_mb`` is over the state
        and its copy, after the first save; ``seconds`` is the median duration of a save.
    """
    mesh = init_device_mesh("cpu", (1,))
    state = llama.sharded(llama.shapes(total_bytes), mesh, [Shard(0)])
    llama.fill(state)
    gigabytes = sum(llama.local(tensor).nbytes for tensor in state.values()) / 1e9
    step = _step(Loop(loop))
    saver = _saver(name, Server(**server), state, url)
    _save(saver, step)
    memory = PeakMemory()
    alone = _steps_alone(saver, step)
    runs = []
    for _ in range(repetitions):
        save = _save(saver, step)
        after = _steps_alone(saver, step)
        lost = save.seconds - save.steps * statistics.mean((alone, after))
        runs.append((lost, save.blocked, save.lock, save.core, save.seconds))
        alone = after
    saver.close()
    lost, blocked, lock, core, seconds = (statistics.median(values) for values in zip(*runs, strict=True))
    return {
        "bytes": int(gigabytes * 1e9),
        "training_lost_s_per_gb": lost / gigabytes,
        "blocked_s_per_gb": blocked / gigabytes,
        "lock_s_per_gb": lock / gigabytes,
        "core_s_per_gb": core / gigabytes,
        "extra_memory_mb": memory.extra_bytes() / 1e6,
        "seconds": seconds,
    }


def _step(loop: Loop) -> Callable[[], None]:
    if loop is Loop.PYTHON:
        return _add
    first, second = torch.ones(64), torch.ones(64)

    def step() -> None:
        for _ in range(_CALLS_A_STEP):
            torch.add(first, second, out=second)

    return step


def _add() -> None:
    total = 0
    for number in range(_ADDITIONS_A_STEP):
        total += number


def _scheduling() -> tuple[float, float]:
    """Seconds that this thread ran, and that it was ready to run but had no core."""
    running, ready, _ = _SCHEDULING.read_text().split()
    return int(running) / 1e9, int(ready) / 1e9


def _steps_alone(saver: Saver, step: Callable[[], None]) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    for _ in range(_STEPS_ALONE):
        step()
        saver.step()
    return (time.perf_counter() - began) / _STEPS_ALONE


def _save(saver: Saver, step: Callable[[], None]) -> Save:
    began = time.perf_counter()
    saver.begin()
    blocked, steps = time.perf_counter() - began, 0
    running, ready = _scheduling()
    while steps == 0 or not saver.over():
        assert time.perf_counter() - began < _TIMEOUT_SECONDS, "a save does not end"
        step()
        saver.step()
        steps += 1
    seconds = time.perf_counter() - began
    running, ready = (after - before for after, before in zip(_scheduling(), (running, ready), strict=True))
    return Save(blocked, steps, seconds, core=ready, lock=max(0.0, seconds - blocked - running - ready))


def _saver(name: str, server: Server, state: llama.State, url: str) -> Saver:
    if name == OURS:
        return _Checkpointer(server, state, url)
    tested = system(name.removesuffix(IN_A_PROCESS), server, rank=0)
    assert isinstance(tested, Dcp)
    return _AsyncSave(tested, state, url, in_a_process=name.endswith(IN_A_PROCESS))


class _AsyncSave:
    """``dcp.async_save`` with torch's stager; memory that is shared is what it passes to a process."""

    def __init__(self, tested: Dcp, state: llama.State, url: str, *, in_a_process: bool) -> None:
        self._tested, self._state, self._url = tested, state, url
        self._kind = AsyncCheckpointerType.PROCESS if in_a_process else AsyncCheckpointerType.THREAD
        self._stager = DefaultStager(StagingOptions(False, in_a_process, False, False))
        self._number = 0
        self._running: Future[Any] | None = None

    def begin(self) -> None:
        self._number += 1
        writer = self._tested.writer(f"{self._url}/{self._number}")
        self._running = dcp.async_save(
            dict(self._state), storage_writer=writer, async_stager=self._stager, async_checkpointer_type=self._kind
        )

    def step(self) -> None:
        """DCP needs no call."""

    def over(self) -> bool:
        if self._running is None or not self._running.done():
            return False
        self._running.result()
        return True

    def close(self) -> None:
        self._stager.close()


class _Weights:
    def __init__(self, state: llama.State) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is restored here."""


class _Checkpointer:
    """Ours. A save is due at every step that is a multiple of ``_EVERY``."""

    _EVERY = 1_000_000

    def __init__(self, server: Server, state: llama.State, url: str) -> None:
        from checkpoint_sidecar import Checkpointer
        from checkpoint_sidecar.core.policy import SavePolicy
        from checkpoint_sidecar.store.access import Credentials, StoreSettings

        credentials = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        settings = StoreSettings(url, server.endpoint, REGION, credentials=Credentials.of(credentials))
        policy = SavePolicy(every_steps=self._EVERY, every_seconds=None)
        self._checkpointer = Checkpointer({"model": _Weights(state)}, settings, save=policy)
        self._checkpointer.restore()
        self._step = 0

    def begin(self) -> None:
        self._step = (self._step // self._EVERY + 1) * self._EVERY
        self._checkpointer.step(self._step)

    def step(self) -> None:
        self._step += 1
        self._checkpointer.step(self._step)

    def over(self) -> bool:
        return self._checkpointer.progress is None

    def close(self) -> None:
        self._checkpointer.close()


if __name__ == "__main__":
    serve(interference)
