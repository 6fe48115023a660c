"""Measures the report of runs with 10,000 snapshots: seconds, and bytes of the page.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/report.py [--snapshots 10000]

The log lies in a local folder, so the figures are those of the computation; a store adds one request per compaction.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.gather import gather
from checkpoint_cli.report.view import report_of
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.policy import KeepBest, Policy, RetentionPolicy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.longlogs import compact, long_log

ALL = Policy(retention=RetentionPolicy(keep_every_steps=1, keep_best=(KeepBest("loss", "Min", 10),)))
ENTRIES = {"3 kept": 5.03, "all kept": 2.03}
"""Log entries for each snapshot: a commit, a check, three for its deletion, and a few for each attempt."""

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=10_000)
    count = parser.parse_args().snapshots
    print(f"{'run':32}{'read':>9}{'decide':>9}{'draw':>9}{'all':>9}{'page':>12}")
    for name, each in ENTRIES.items():
        with tempfile.TemporaryDirectory() as folder:
            store = LocalStore(StoreSettings(Path(folder, "run").as_uri()))
            for entry in long_log(round(count * each), policy=None if name == "3 kept" else ALL):
                store.put(layout.log_key(entry.number), entry.data)
            compact(store)
            facts, reading = _timed(functools.partial(gather, store))
        report, deciding = _timed(functools.partial(report_of, facts))
        page, drawing = _timed(functools.partial(render, report))
        times = "".join(f"{seconds:8.2f}s" for seconds in (reading, deciding, drawing, reading + deciding + drawing))
        size = f"{len(page.encode()) / 1e6:.2f} MB"
        print(f"{f'{len(facts.run.snapshots):,} snapshots, {name}':32}{times}{size:>12}", flush=True)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


if __name__ == "__main__":
    main()
