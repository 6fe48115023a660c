"""Runs a script of ``examples/`` on two ranks, as torchrun does."""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from training.ranks import SERVER

EXAMPLES = Path(__file__).parents[2] / "examples"
RANKS = 2


def run_example(name: str, url: str, *arguments: str) -> None:
    """Run the script until it ends, which must be a good end.

    Args:
        url: The run that it trains.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "CHECKPOINT_URL": url,
        "CHECKPOINT_RUN": "local/local/run",
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        SERVER.Process(target=_run, args=(EXAMPLES / name, environment | {"RANK": str(rank)}, arguments))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0


def _run(script: Path, environment: dict[str, str], arguments: Sequence[str]) -> None:
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
