"""What it costs to open a run's log, by its length, with and without compactions.

    make bench-log
    PYTHONPATH=tests:tools .venv/bin/python benchmarks/run_log.py --entries 1000 --store local

Requests are counted as S3 would see them, a listing page for every 1,000 keys. Seconds are those of this machine
without any network: reading, checking the chain and replaying.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from support.longlogs import compact, write_log

RESULT = Path("build/bench/run_log.json")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Opened:
    """One log opened once.

    Attributes:
        seconds, cpu_seconds: Duration of an opening during which memory is not traced.
        peak_mib, kept_mib: Python memory while opening, and afterwards, above that before.
        stored_mib: Size of the entries, or of the compactions.
    """

    entries: int
    compacted: bool
    snapshots: int
    listing_pages: int
    reads: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    kept_mib: float
    stored_mib: float


def main(
    entries: Annotated[list[int], typer.Option(help="Lengths of the logs.")] = [1_000, 10_000, 100_000],  # noqa: B006
    store: Annotated[Literal["memory", "local"], typer.Option(help="Where they are kept.")] = "memory",
    keep_all: Annotated[bool, typer.Option(help="Let every snapshot stay, as without retention.")] = False,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = RESULT,
) -> None:
    """Open logs of several lengths and print what that costs."""
    results: list[Opened] = []
    for length in track(entries, "opening logs", transient=True):
        with _store(store) as kept:
            write_log(kept, length, policy=Policy() if keep_all else None)
            results.append(_open(kept, length, compacted=False))
            compact(kept)
            results.append(_open(kept, length, compacted=True))
    Console().print(_table(results, store))
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": sys.version.split()[0], "machine": platform.machine(), "store": store}
    output.write_text(json.dumps(machine | {"opened": [asdict(each) for each in results]}, indent=2) + "\n")


@contextlib.contextmanager
def _store(kind: str) -> Iterator[Store]:
    if kind == "memory":
        yield MemoryStore()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield open_store(StoreSettings(f"file://{folder}"))


def _open(store: Store, length: int, *, compacted: bool) -> Opened:
    counting = CountingStore(store)
    before, cpu_before = time.perf_counter(), time.process_time()
    run = RunLog(counting, writer="benchmark").refresh()
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    if run.head != length:
        raise RuntimeError(f"the log has {length} entries, {run.head} were read")
    tracemalloc.start()
    log = RunLog(store, writer="benchmark")
    log.refresh()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    folder = layout.COMPACTION_FOLDER if compacted else layout.LOG_FOLDER
    return Opened(
        entries=length,
        compacted=compacted,
        snapshots=len(log.run.snapshots),
        listing_pages=counting.requests["list"],
        reads=counting.requests["get"],
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu_seconds, 3),
        peak_mib=round(peak / MIB, 1),
        kept_mib=round(kept / MIB, 1),
        stored_mib=round(sum(info.size for info in store.list(folder)) / MIB, 1),
    )


def _table(results: list[Opened], store: str) -> Table:
    table = Table(title=f"opening a run's log ({store} store)", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = (
        "entries",
        "compacted",
        "listing\npages",
        "reads",
        "seconds",
        "CPU\nseconds",
        "peak\nMiB",
        "kept\nMiB",
        "stored\nMiB",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for each in results:
        table.add_row(
            f"{each.entries:,}",
            "yes" if each.compacted else "no",
            f"{each.listing_pages:,}",
            f"{each.reads:,}",
            f"{each.seconds:.2f}",
            f"{each.cpu_seconds:.2f}",
            f"{each.peak_mib:.1f}",
            f"{each.kept_mib:.1f}",
            f"{each.stored_mib:.1f}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
