"""Several ranks: real ones over gloo that run many checks in one start of the process group, and played ones.

A script of checks registers them with a ``Checks`` and calls its ``main``; a test starts the script by ``run_ranks``.
Ranks are forked from a server that has imported torch, so that starting some takes a moment instead of seconds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

Check = Callable[[Path], None]

SERVER = multiprocessing.get_context("forkserver")
# The first optimizer imports dynamo, which takes seconds; the stores and the operator take one more.
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.fsdp",
        "checkpoint_sidecar.training.checkpointer",
        "checkpoint_sidecar.training.dcp.dropin",
        "checkpoint_sidecar.store.s3.s3fs_adapter",
        "checkpoint_sidecar.store.http.adapter",
        "checkpoint_operator.act.execute",
        "checkpoint_operator.decide.plan",
        "checkpoint_operator.gather.spec_policy",
    ]
)


class Checks:
    """What every rank runs, in order, whatever became of the ones before. Each check gets a folder of its own."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def __call__(self, check: Check) -> Check:
        """Register one: a decorator."""
        self._checks[check.__name__] = check
        return check

    def main(self) -> None:
        """Run as ``python script.py <rank> <ranks> <folder>``; writes ``result-<rank>.json``: error texts by check."""
        rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        results = {}
        for name, check in self._checks.items():
            (folder / name).mkdir(exist_ok=True)
            dist.barrier()
            try:
                check(folder / name)
                results[name] = ""
            except BaseException:  # noqa: BLE001 - reported by the test of this check
                results[name] = traceback.format_exc()
            (folder / f"result-{rank}.json").write_text(json.dumps(results))
        dist.destroy_process_group()


def run_ranks(script: Path, ranks: int, folder: Path) -> list[dict[str, str]]:
    """Run a script of checks to its end; error text by check, for each rank."""
    running = [
        SERVER.Process(target=_run_script, args=(script, rank, ranks, folder, dict(os.environ)))
        for rank in range(ranks)
    ]
    deadline = time.monotonic() + 240
    try:
        for process in running:
            process.start()
        for rank, process in enumerate(running):
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode == 0, (folder / f"errors-{rank}").read_text()[-4000:]
    finally:
        for process in running:
            if process.is_alive():
                process.kill()
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(ranks)]


def _run_script(script: Path, rank: int, ranks: int, folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()  # what the server started with
    os.environ.update(environment)
    with (folder / f"errors-{rank}").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    sys.argv = [str(script), str(rank), str(ranks), str(folder)]
    runpy.run_path(str(script), run_name="__main__")


@contextlib.contextmanager
def playing(rank: int, ranks: int) -> Iterator[None]:
    """torch takes this process for one rank of many. Nothing is communicated, so only planning makes sense in here."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
