"""Gangs whose processes are forked from a server that has imported the trainers, which takes ten seconds each time."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any
from unittest import mock

from frameworks.gangs import Gang

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torchdata.stateful_dataloader",
        "transformers.models.llama.modeling_llama",
        "checkpoint_sidecar.integrations.accelerate",
        "checkpoint_sidecar.integrations.transformers",
        "checkpoint_sidecar.store.http.adapter",
    ]
)


class Forked:
    """A forked process with the methods of one that ``subprocess`` started."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stdout: Any, stderr: int) -> None:
        del stderr  # goes where stdout goes
        self._process = SERVER.Process(target=_run, args=(list(command[2:]), dict(env), stdout.name))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def send_signal(self, number: Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def gang(script: Path, *arguments: object, folder: Path, ranks: int = 2, **environment: str) -> Iterator[Gang]:
    with mock.patch("frameworks.gangs.subprocess.Popen", Forked):
        started = Gang(script, *arguments, folder=folder, ranks=ranks, **environment)
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.wait()


def trained(script: Path, *arguments: object, folder: Path, ranks: int = 2, **environment: str) -> str:
    """What a start prints that nothing disturbs."""
    with gang(script, *arguments, folder=folder, ranks=ranks, **environment) as started:
        return started.finishes()


def _run(arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.environ.clear()  # what the server started with
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
