"""Running an experiment in processes of its own, one per rank, so that no system finds what another left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_TIMEOUT = timedelta(minutes=10)

Result = dict[str, Any]


class ExperimentError(Exception):
    """A rank failed; the message is the end of its output."""


def start(experiment: str, parameters: Mapping[str, Any], *, ranks: int = 1, environment: Mapping[str, str]) -> Result:
    """Run a module of this folder that calls ``serve``, on so many ranks, and return what rank 0 found.

    Args:
        parameters: JSON values; the module's function takes them by name.
        environment: Variables beyond those of this process.

    Raises:
        ExperimentError: A rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"{rank}.txt") for rank in range(ranks)]
        # As torchrun does it: with one thread per rank, ranks do not fight for the cores.
        variables = (
            os.environ | {"OMP_NUM_THREADS": "1", "MEETING": f"{folder}/store", "RANKS": str(ranks)} | environment
        )
        running = []
        for rank, output in enumerate(outputs):
            with output.open("w") as errors:
                command = [sys.executable, str(_HERE / f"{experiment}.py"), json.dumps(parameters)]
                running.append(
                    subprocess.Popen(
                        command, env=variables | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=errors, text=True
                    )
                )
        answers = [process.communicate()[0] for process in running]
        for process, output in zip(running, outputs, strict=True):
            if process.returncode:
                raise ExperimentError(f"{experiment} {parameters}:\n{output.read_text()[-2000:]}")
        return json.loads(answers[0].splitlines()[-1])


def serve(experiment: Callable[..., Result], *, with_group: bool = True) -> None:
    """The other end of ``start``: join the ranks, do it, print the result as the last line."""
    # Only here: what starts the ranks has no need of torch, which takes seconds to import.
    import torch.distributed as dist

    if with_group:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{os.environ['MEETING']}",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["RANKS"]),
            timeout=_TIMEOUT,
        )
    result = experiment(**json.loads(sys.argv[1]))
    if with_group:
        dist.destroy_process_group()
    print(json.dumps(result))
