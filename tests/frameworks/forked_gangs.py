"""Gangs whose processes are forked from a server that has imported the trainers, which takes ten seconds each time."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from signal import Signals
from typing import Any

from frameworks import gangs

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

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], stdout: Any, stderr: int, start_new_session: bool
    ) -> None:
        del stderr, start_new_session  # it goes where stdout goes, and there is always one
        self._process = SERVER.Process(target=_run, args=(list(command[2:]), dict(env), stdout.name))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def send_signal(self, number: Signals) -> None:
        os.kill(self.pid, number)


gang = partial(gangs.gang, start=Forked)
trained = partial(gangs.trained, start=Forked)


def _run(arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
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
