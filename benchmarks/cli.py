"""Measures the command line: processes from start to exit, in seconds, and requests to the store.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/cli.py [--snapshots 10000]

The run lies in a local folder with compactions, so a store adds the time of the requests that are counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.policy import KeepBest, Policy, RetentionPolicy
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from doubles.counting import CountingStore
from support.longlogs import compact, long_log

ALL = Policy(retention=RetentionPolicy(keep_every_steps=1, keep_best=(KeepBest("loss", "Min", 10),)))
ENTRIES_PER_SNAPSHOT = 2.03
REPEATS = 5
PROGRAM = str(Path(sys.executable).with_name("checkpoint"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=10_000)
    count = parser.parse_args().snapshots
    print(f"{'--help':40}{_seconds('--help'):8.2f}s")
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder, "run").as_uri()
        store = LocalStore(StoreSettings(url))
        for entry in long_log(round(count * ENTRIES_PER_SNAPSHOT), policy=ALL):
            store.put(layout.log_key(entry.number), entry.data)
        compact(store)
        counted = CountingStore(store)
        snapshots = len(StoredRun(counted).snapshots())
        for verb in ("ls", "show", "status"):
            print(f"{f'{verb} of {snapshots:,} snapshots':40}{_seconds(verb, url):8.2f}s")
    print(f"{'requests to read the run':40}{sum(counted.requests.values()):8}")


def _seconds(*arguments: str) -> float:
    return statistics.median(_once(arguments) for _ in range(REPEATS))


def _once(arguments: tuple[str, ...]) -> float:
    started = time.perf_counter()
    subprocess.run([PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
