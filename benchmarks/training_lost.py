"""Thread or process: which of them takes less from the training loop while a save runs.

    .venv/bin/python benchmarks/training_lost.py

Our Checkpointer's thread, DCP's process with our writer, and torch's own writer both ways, against the same sink.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import processes
import sink
from interference import IN_A_PROCESS
from runs import OURS, STOCK
from sink_s3 import DROPPING

WAYS = {
    "ours, in its thread": OURS,
    "ours, in DCP's process": OURS + IN_A_PROCESS,
    "stock, in DCP's thread": STOCK,
    "stock, in DCP's process": STOCK + IN_A_PROCESS,
}
_COLUMNS = {
    "training lost, s/GB": "training_lost_s_per_gb",
    "of it waiting for the copy, s/GB": "blocked_s_per_gb",
    "duration of a save, s": "seconds",
}


def main(
    model_bytes: Annotated[int, typer.Option(help="Size of the model that is saved.")] = 1024 * 1024 * 1024,
    repetitions: Annotated[int, typer.Option(help="Saves after the first, which warms up.")] = 3,
) -> None:
    """Measure every way, one after the other, and print one table."""
    table = Table("save", *_COLUMNS)
    with sink.running() as endpoint:
        for way, name in WAYS.items():
            parameters = {"name": name, "server": {"endpoint": endpoint}, "url": f"s3://{DROPPING}/{name}"}
            found = processes.start(
                "interference",
                parameters | {"total_bytes": model_bytes, "repetitions": repetitions},
                environment={},
            )
            table.add_row(way, *(f"{found[key]:.2f}" for key in _COLUMNS.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
