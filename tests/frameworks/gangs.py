"""A gang: the processes of one start of a trainer, as a launcher would start them, and what they leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from checkpoint_sidecar import CheckpointReader, open_run

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 600
"""Limit for one wait: on a busy machine a rank needs minutes to import its trainer."""


class Gang:
    """One process per rank, over gloo on loopback, which write into one file.

    Args:
        start: Starts a process, as ``subprocess.Popen`` does.
    """

    def __init__(
        self,
        script: Path,
        *arguments: object,
        folder: Path,
        ranks: int = 2,
        start: Callable[..., Any] = subprocess.Popen,
        **environment: str,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._output = folder / f"gang-{port}.txt"
        variables = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with self._output.open("w") as output:
            self.processes = [
                start(
                    [sys.executable, "-u", str(script), *map(str, arguments)],
                    env=variables | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for rank in range(ranks)
            ]

    @property
    def output(self) -> str:
        return self._output.read_text()

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened while all processes run."""
        end = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < end, self.output
            assert all(process.poll() is None for process in self.processes), self.output
            time.sleep(0.02)

    def until_printed(self, text: str) -> None:
        self.until(lambda: text in self.output)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the ranks. SIGKILL ends their child processes too, as the end of a pod does."""
        for process in self.processes:
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    def exits(self) -> set[int]:
        """Wait for all ranks and return the ways in which they ended."""
        return {process.wait(SECONDS) for process in self.processes}

    def finishes(self) -> str:
        """Wait for the end, which must be a good one, and return what was printed."""
        assert self.exits() == {0}, self.output
        return self.output


@contextmanager
def gang(script: Path, *arguments: object, folder: Path, **options: Any) -> Iterator[Gang]:
    started = Gang(script, *arguments, folder=folder, **options)
    try:
        yield started
    finally:
        for process in started.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def trained(script: Path, *arguments: object, folder: Path, **options: Any) -> str:
    """What a start prints that nothing disturbs."""
    with gang(script, *arguments, folder=folder, **options) as started:
        return started.finishes()


def committed(url: str) -> list[int]:
    """The steps of all snapshots of a run, in the order of their commits."""
    return [snapshot.step for snapshot in open_run(url).snapshots()]


def contents(url: str, step: int) -> Mapping[str, Any]:
    """Everything that stock torch reads from a step of a run."""
    found: dict[str, Any] = {}
    _load_state_dict(
        found,
        storage_reader=CheckpointReader(f"{url}/step-{step}", trust="full"),
        planner=_EmptyStateDictLoadPlanner(),
        no_dist=True,
    )
    return found
