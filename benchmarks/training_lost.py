"""Thread or process: which of them takes less from the training loop while a save runs.

    .venv/bin/python benchmarks/training_lost.py

Our Checkpointer's thread, DCP's process with our writer, and torch's own writer both ways, against the same sink: each
beside a loop that calls torch and one that never releases Python's lock. The ways take turns; the medians are shown.
"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import processes
import sink
from interference import IN_A_PROCESS, Loop
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
    "of it waiting for the copy": "blocked_s_per_gb",
    "for Python's lock": "lock_s_per_gb",
    "for a core": "core_s_per_gb",
    "duration of a save, s": "seconds",
}


def main(
    model_bytes: Annotated[int, typer.Option(help="Size of the model that is saved.")] = 1024 * 1024 * 1024,
    repetitions: Annotated[int, typer.Option(help="Saves after the first, which warms up.")] = 3,
    rounds: Annotated[int, typer.Option(help="Turns of each way.")] = 3,
    only: Annotated[str, typer.Option(help="Only ways with this in their names.")] = "",
    loops: Annotated[list[Loop], typer.Option(help="What training does.")] = list(Loop),  # noqa: B006
) -> None:
    """Measure every way by turns, and print one table."""
    table = Table("training", "save", *_COLUMNS)
    for loop in loops:
        found: dict[str, list[processes.Result]] = {way: [] for way in WAYS if only in way}
        for _ in range(rounds):
            for way, results in found.items():
                results.append(_measured(WAYS[way], loop, model_bytes, repetitions))
        for way, results in found.items():
            medians = (statistics.median(each[key] for each in results) for key in _COLUMNS.values())
            table.add_row(loop, way, *(f"{median:.2f}" for median in medians))
    Console().print(table)


def _measured(name: str, loop: Loop, total_bytes: int, repetitions: int) -> processes.Result:
    with sink.running() as endpoint:
        parameters = {"name": name, "server": {"endpoint": endpoint}, "url": f"s3://{DROPPING}/{name}", "loop": loop}
        return processes.start(
            "interference", parameters | {"total_bytes": total_bytes, "repetitions": repetitions}, environment={}
        )


if __name__ == "__main__":
    typer.run(main)
